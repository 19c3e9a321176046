//! Which disks a snapshot takes, and how each is held: inside its image, or by going on in a layer.

use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::{DeviceDisk, DiskKind, DiskTarget, ImageFormat};
use crate::model::layer::{Into, Layer};
use crate::model::name::{SnapshotId, SnapshotName};
use crate::model::record::DiskProof;
use crate::observe::Inventory;
use crate::plan::Switch;
use crate::types::DiskSnapshot;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What the user wants of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskChoice {
    /// Name of the virtual device.
    pub vdev: String,
    /// How it is held. What is sensible for the disk, if not said.
    pub take: Option<Take>,
    /// Where the guest goes on; only for an external snapshot.
    pub file: Option<PathBuf>,
}

/// How a snapshot takes a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Take {
    /// Not at all.
    No,
    /// As it says.
    As(DiskKind),
}

/// The disks of one snapshot.
#[derive(Default)]
pub(super) struct Chosen {
    /// Those that get an internal snapshot.
    pub(super) internal: Vec<DiskTarget>,
    /// The images in which the guest goes on for the others.
    pub(super) layers: Vec<Layer>,
    /// The same as changes of the domain's disks.
    pub(super) switches: Vec<Switch>,
    /// What the record will hold of each, in the order of `snapshots`.
    pub(super) proofs: Vec<DiskProof>,
    /// What V6's `domain_snapshot` says of each.
    pub(super) snapshots: Vec<DiskSnapshot>,
}

/// Who chooses, and of what.
pub(super) struct Choice<'a> {
    pub(super) inventory: &'a Inventory,
    pub(super) disks: &'a [DeviceDisk],
    pub(super) wanted: &'a [DiskChoice],
    /// How disks are held of which nothing is said.
    pub(super) default: Option<DiskKind>,
    /// Whether they are left out instead.
    pub(super) only_wanted: bool,
    pub(super) id: SnapshotId,
    pub(super) name: &'a SnapshotName,
}

impl Choice<'_> {
    /// Decides on every disk, or refuses with the disk that stands in the way.
    pub(super) fn choose(&self, notes: &mut Vec<String>) -> Result<Chosen> {
        self.refuse_unknown()?;
        let mut chosen = Chosen::default();
        for disk in self.disks {
            let vdev = disk.vdev();
            let wanted = self.wanted.iter().find(|wanted| wanted.vdev == vdev);
            if !disk.is_writable() {
                notes.push(format!("{vdev} is read-only and is left out"));
                continue;
            }
            let is_taken = wanted.map_or(!self.only_wanted, |it| it.take != Some(Take::No));
            if !is_taken {
                self.require_no_layer(disk)?;
                notes.push(format!(
                    "{vdev} is left out as you said: a revert leaves it as it is then"
                ));
                continue;
            }
            let target = target(disk)?;
            self.require_usable(&target)?;
            if let Some(twin) = chosen
                .proofs
                .iter()
                .find(|proof| proof.target.image == target.image)
            {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("{} and {vdev} are the same image", twin.target.vdev),
                ));
            }
            let kind = self.kind(&target, wanted)?;
            let mut snapshot = DiskSnapshot {
                disk: disk.clone(),
                name: Some(self.name.as_str().to_owned()),
                ..DiskSnapshot::default()
            };
            match kind {
                DiskKind::Internal => chosen.internal.push(target.clone()),
                DiskKind::External => {
                    let layer =
                        self.layer(&target, wanted.and_then(|wanted| wanted.file.as_deref()))?;
                    if chosen.layers.iter().any(|other| other.image == layer.image) {
                        return Err(Error::new(
                            ErrorKind::InvalidRequest,
                            format!("two disks cannot go on in {}", layer.image.display()),
                        ));
                    }
                    snapshot.external = true;
                    snapshot.external_sn = DeviceDisk {
                        pdev_path: Some(layer.image.to_string_lossy().into_owned()),
                        format: Some(ImageFormat::Qcow2.driver().to_owned()),
                        ..disk.clone()
                    };
                    chosen.switches.push(Switch {
                        from: target.clone(),
                        to: (&layer.target()).into(),
                    });
                    chosen.layers.push(layer);
                }
            }
            chosen.proofs.push(DiskProof {
                target,
                kind,
                stamp: None,
            });
            chosen.snapshots.push(snapshot);
        }
        Ok(chosen)
    }

    /// The memory image names the disks that are left out too, and a layer has no name to rely on: it is merged
    /// when the snapshots that need it go.
    fn require_no_layer(&self, disk: &DeviceDisk) -> Result<()> {
        let image = Path::new(disk.pdev_path.as_deref().unwrap_or_default());
        if self.inventory.record.layer(image).is_none() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} cannot be left out: it goes on in a layer of an earlier snapshot",
                disk.vdev()
            ),
        )
        .hint("take it too, or delete the snapshots that hold it externally first"))
    }

    fn refuse_unknown(&self) -> Result<()> {
        let unknown = self
            .wanted
            .iter()
            .find(|wanted| self.disks.iter().all(|disk| disk.vdev() != wanted.vdev));
        let Some(unknown) = unknown else {
            return Ok(());
        };
        let there: Vec<_> = self.disks.iter().map(DeviceDisk::vdev).collect();
        Err(Error::new(
            ErrorKind::InvalidRequest,
            format!(
                "domain '{}' has no disk {}",
                self.inventory.domain, unknown.vdev
            ),
        )
        .hint(format!("it has {}", there.join(", "))))
    }

    /// The image is there and is the disk: nothing stands on it, and what it stands on is what it was.
    fn require_usable(&self, target: &DiskTarget) -> Result<()> {
        if !matches!(self.inventory.images.get(&*target.image), Some(Some(_))) {
            return Err(self.not_there(target));
        }
        require_as_recorded(self.inventory, target)?;
        let images = &self.inventory.images;
        let facts = |image: &Path| images.get(image).and_then(Option::as_ref);
        self.inventory.record.require_chain(target, facts)
    }

    fn not_there(&self, target: &DiskTarget) -> Error {
        let (image, vdev) = (target.image.display(), &target.vdev);
        if self.inventory.live.is_some() {
            return Error::new(
                ErrorKind::Toolstack,
                format!("QEMU does not have {image} open for {vdev}"),
            );
        }
        let leave_out = format!("leave it out by --disk {vdev},snapshot=no");
        match self.inventory.unreadable.get(&*target.image) {
            Some(why) => Error::new(
                ErrorKind::Toolstack,
                format!("the image {image} of {vdev} cannot be read"),
            )
            .because(why.clone())
            .hint(leave_out),
            None => Error::new(
                ErrorKind::InvalidRequest,
                format!("the image {image} of {vdev} is missing"),
            )
            .hint(format!(
                "say what the domain is made of by --domain-config FILE, or {leave_out}"
            )),
        }
    }

    fn kind(&self, target: &DiskTarget, wanted: Option<&DiskChoice>) -> Result<DiskKind> {
        let said = match wanted.and_then(|wanted| wanted.take) {
            Some(Take::As(kind)) => Some(kind),
            _ if wanted.is_some_and(|wanted| wanted.file.is_some()) => Some(DiskKind::External),
            _ => None,
        };
        match (said, target.format) {
            (Some(DiskKind::Internal), ImageFormat::Raw) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("disk {target} is raw, and a raw image cannot hold a snapshot"),
            )
            .hint("take it externally: the guest goes on in a layer on top of it")),
            (Some(kind), _) => Ok(kind),
            (None, ImageFormat::Raw) => Ok(DiskKind::External),
            (None, ImageFormat::Qcow2) => Ok(self.default.unwrap_or_default()),
        }
    }

    fn layer(&self, below: &DiskTarget, file: Option<&Path>) -> Result<Layer> {
        let facts = self.inventory.images.get(&*below.image);
        if facts
            .and_then(Option::as_ref)
            .is_some_and(|facts| facts.is_device)
        {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("disk {below} is a block device, and only files are taken externally"),
            )
            .hint(format!(
                "nobody can tell when a device was last written to; leave it out by --disk {},snapshot=no",
                below.vdev
            )));
        }
        let base = self.inventory.record.base_of(below);
        let image: Box<Path> = match file {
            Some(file) if file.is_absolute() => file.into(),
            Some(file) => {
                return Err(Error::new(
                    ErrorKind::InvalidRequest,
                    format!("{} is no absolute path", file.display()),
                ));
            }
            None => beside(&base.image, self.id),
        };
        if matches!(self.inventory.images.get(&*image), Some(Some(_))) {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("{} is there already", image.display()),
            )
            .hint("the guest goes on in a new image: name one that is not there"));
        }
        Ok(Layer {
            vdev: below.vdev.clone(),
            image,
            backing: Some(below.into()),
            below_written: None,
            base,
            active: false,
            merging: None,
        })
    }
}

/// Every disk that the running domain writes to is the one that the record says.
pub(super) fn require_disks_as_recorded(inventory: &Inventory) -> Result<()> {
    inventory
        .live
        .iter()
        .flat_map(|live| &live.disks)
        .filter(|disk| disk.is_writable())
        .filter_map(|disk| target(disk).ok())
        .try_for_each(|target| require_as_recorded(inventory, &target))
}

/// A disk is not written to behind the back of the layers on top of it.
pub(super) fn require_as_recorded(inventory: &Inventory, target: &DiskTarget) -> Result<()> {
    let record = &inventory.record;
    let active = record.active_layer(&record.base_of(target).image);
    let is_leaving = |layer: &Layer| {
        let facts = inventory.images.get(&*layer.image);
        layer.merging == Some(Into::Below)
            && facts.is_some_and(|facts| facts.as_ref().is_some_and(|facts| facts.retired))
    };
    let is_another = active.is_some_and(|layer| layer.image != target.image && !is_leaving(layer));
    // What an interrupted deletion has merged, and not removed yet, is in nobody's way.
    let garbage = record.garbage();
    let is_below = record
        .layers_on(&target.image)
        .any(|layer| !is_leaving(layer) && !garbage.contains(layer));
    if !is_another && !is_below && !record.is_a_state(&target.image) {
        return Ok(());
    }
    let error = Error::new(
        ErrorKind::Stale,
        format!(
            "{} runs on {}, which others stand on and which nobody should have written to",
            target.vdev,
            target.image.display()
        ),
    );
    Err(match active {
        Some(layer) => error.hint(format!(
            "it was started from its configuration file, without {}; `xl-ext` under the name xl starts it \
             with that",
            layer.image.display()
        )),
        None => error,
    })
}

/// The file of a layer that the user named no file for: beside the base and called after it, so that names do
/// not grow. No part of it is a name that a user gave to a snapshot.
pub(super) fn beside(base: &Path, id: SnapshotId) -> Box<Path> {
    let mut name = OsString::from(base.file_name().unwrap_or_default());
    name.push(format!(".{}.qcow2", id.tag()));
    base.with_file_name(name).into()
}

/// The disk as one that can be snapshotted.
pub(super) fn target(disk: &DeviceDisk) -> Result<DiskTarget> {
    let vdev = disk.vdev();
    let refuse = |why: String| Error::new(ErrorKind::Unsupported, format!("disk {vdev} {why}"));
    let leave_out = format!("or leave it out by --disk {vdev},snapshot=no");
    let backend = disk.backend.as_deref().unwrap_or("unknown");
    if backend != "qdisk" {
        return Err(refuse(format!(
            "is on the {backend} backend, which has no snapshots"
        ))
        .hint(format!(
            "put backendtype=qdisk into the disk's configuration, {leave_out}"
        )));
    }
    let path = disk.pdev_path.as_deref().unwrap_or_default();
    let name = disk.format.as_deref().unwrap_or("unknown");
    let format = ImageFormat::of(name).ok_or_else(|| {
        refuse(format!(
            "({path}) is {name}, and only qcow2 and raw images can be snapshotted"
        ))
        .hint(format!(
            "`qemu-img convert -f {name} -O qcow2` makes a qcow2 image of it while the domain is off, {leave_out}"
        ))
    })?;
    if !Path::new(path).is_absolute() {
        return Err(refuse(format!(
            "has the target '{path}', which is no absolute path"
        )));
    }
    Ok(DiskTarget {
        vdev: vdev.to_owned(),
        image: Path::new(path).into(),
        format,
    })
}
