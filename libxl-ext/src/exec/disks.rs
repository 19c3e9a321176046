//! What the steps do that work on images: those that a QEMU has open, and those that nobody has.

use super::perform::{LAST_WRITES, Measured, Performer};
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::{DiskKind, DiskTarget, ImageFormat};
use crate::model::domain::{DomainLife, DomainState};
use crate::model::layer::{Backing, Into, Layer};
use crate::model::name::SnapshotId;
use crate::model::record::{DiskProof, DomainRecord};
use crate::plan::{Extracted, Merge, StoreChange, Switch};
use crate::port::BlockNode;
use std::path::Path;

/// A domain's QEMU at one instant.
struct Qemu {
    life: DomainLife,
    state: DomainState,
    nodes: Vec<BlockNode>,
}

impl Qemu {
    fn has_open(&self, image: &Path) -> bool {
        self.nodes.iter().any(|node| &*node.image == image)
    }

    /// Whether it has an image open that stands on another one.
    fn stands_on(&self, image: &Path, below: Option<&Backing>) -> bool {
        let below = below.map(|below| &*below.image);
        self.nodes
            .iter()
            .any(|node| &*node.image == image && node.facts.backing.as_deref() == below)
    }
}

impl Performer<'_> {
    /// Whether a disk is still what the snapshot says.
    pub(super) fn prove_disk(&self, id: SnapshotId, proof: &DiskProof) -> Result<()> {
        let DiskTarget {
            image,
            format,
            vdev,
        } = &proof.target;
        let facts = self.ports.images.facts(image, *format)?;
        let holds = facts.is_some_and(|facts| match proof.kind {
            DiskKind::Internal => facts.snapshot(&id.tag()).is_some(),
            DiskKind::External => proof.stamp.is_none_or(|stamp| stamp == facts.written),
        });
        if holds {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            match proof.kind {
                DiskKind::Internal => {
                    format!("{} ({vdev}) no longer holds {}", image.display(), id.tag())
                }
                DiskKind::External => {
                    format!("{} ({vdev}) is gone or was written to", image.display())
                }
            },
        ))
    }

    pub(super) fn create_layers(&self, layers: &[Layer]) -> Result<()> {
        layers
            .iter()
            .try_for_each(|layer| self.ports.images.create_layer(layer))
    }

    pub(super) fn extract_layers(&self, id: SnapshotId, layers: &[Extracted]) -> Result<()> {
        layers.iter().try_for_each(|made| {
            self.ports
                .images
                .extract(&made.from, &id.tag(), &made.layer)
        })
    }

    pub(super) fn merge_layer(&self, merge: &Merge) -> Result<()> {
        let (layer, images) = (&merge.layer, &self.ports.images);
        let below = layer.backing.as_ref();
        let seen = self.look_at_qemu()?;
        match &seen {
            Some(qemu) if qemu.has_open(&layer.image) => {
                self.ports.block.merge(qemu.life, merge)?;
            }
            // The domain left it, and its file went.
            _ if merge.into == Into::Below
                && images.facts(&layer.image, ImageFormat::Qcow2)?.is_none() => {}
            Some(qemu) if below.is_some_and(|below| qemu.has_open(&below.image)) => {
                let is_done = |above: &Layer| qemu.stands_on(&above.image, below);
                if !merge.above.iter().any(is_done) {
                    return Err(self.not_its_layer(layer));
                }
            }
            _ => self.merge_closed(merge)?,
        }
        if merge.into == Into::Below {
            // Those that a QEMU has open it has put onto the image below itself.
            let is_open = |image: &Path| seen.as_ref().is_some_and(|qemu| qemu.has_open(image));
            let mut closed = merge.above.iter().filter(|above| !is_open(&above.image));
            closed.try_for_each(|above| images.rebase_layer(above, below, false))?;
        }
        // The other image is removed soon: nothing of it may be in a cache only.
        let left = match (merge.into, below) {
            (Into::Below, Some(below)) => &below.image,
            _ => &layer.image,
        };
        let above = merge.above.iter().map(|above| &above.image);
        [left]
            .into_iter()
            .chain(above)
            .try_for_each(|image| images.make_durable(image))
    }

    /// Merges images that no QEMU has open. A domain that is started meanwhile would write to one of them.
    fn merge_closed(&self, merge: &Merge) -> Result<()> {
        let images = &self.ports.images;
        match merge.into {
            Into::Layer => images.rebase_layer(&merge.layer, merge.onto.as_ref(), true)?,
            Into::Below => images.commit_layer(&merge.layer)?,
        }
        match self.look_at_qemu()? {
            None => Ok(()),
            Some(_) => Err(Error::new(
                ErrorKind::Stale,
                format!(
                    "domain '{}' was started while its images were merged",
                    self.plan.domain
                ),
            )
            .hint("shut it down and give the command again: what it wrote is not lost")),
        }
    }

    /// The images that the QEMU of the domain of the plan's name has open; none if there is no domain.
    fn look_at_qemu(&self) -> Result<Option<Qemu>> {
        let Some(view) = self.find_by_name()? else {
            return Ok(None);
        };
        // Without its word nobody knows what is open.
        let nodes = self.ports.block.nodes(view.life)?;
        Ok(Some(Qemu {
            life: view.life,
            state: view.state,
            nodes,
        }))
    }

    fn not_its_layer(&self, layer: &Layer) -> Error {
        Error::new(
            ErrorKind::Stale,
            format!(
                "domain '{}' goes on in the image below {} and not in that",
                self.plan.domain,
                layer.target()
            ),
        )
        .hint("was it started from its configuration file, without the layers?")
    }

    /// Images that a change of ours wrote to are known by their last writes again.
    pub(super) fn restamp(&self, record: &mut DomainRecord, change: &StoreChange) -> Result<()> {
        let changed: Vec<_> = match change {
            StoreChange::Merged { merge } => merge.images(),
            StoreChange::Remove { changed, .. } => changed.iter().map(|image| &**image).collect(),
            _ => return Ok(()),
        };
        let proofs = record
            .snapshots
            .iter_mut()
            .flat_map(|snapshot| &mut snapshot.disks);
        for proof in proofs.filter(|proof| proof.kind == DiskKind::External) {
            let DiskTarget { image, format, .. } = &proof.target;
            if changed.contains(&&**image) {
                self.ports.images.make_durable(image)?;
                let facts = self.ports.images.facts(image, *format)?;
                proof.stamp = facts.map(|facts| facts.written);
            }
        }
        Ok(())
    }

    pub(super) fn remove_layers(&self, layers: &[Layer]) -> Result<()> {
        layers
            .iter()
            .try_for_each(|layer| self.ports.images.remove_layer(layer))
    }

    pub(super) fn snapshot_disks(
        &self,
        life: DomainLife,
        id: SnapshotId,
        disks: &[DiskTarget],
        layers: &[Layer],
        measured: &mut Measured,
    ) -> Result<()> {
        let below = layers.iter().filter_map(Layer::below);
        self.refuse_if_open_twice(
            life,
            &disks.iter().cloned().chain(below).collect::<Vec<_>>(),
        )?;
        self.ports.block.snapshot(life, &id.tag(), disks, layers)?;
        self.read_stamps(life, id, disks, measured)?;
        self.read_last_writes(layers, measured)
    }

    /// The images below the layers are not written to any more: when they were is what they are known by.
    fn read_last_writes(&self, layers: &[Layer], measured: &mut Measured) -> Result<()> {
        for below in layers.iter().filter_map(|layer| layer.backing.as_ref()) {
            self.ports.images.make_durable(&below.image)?;
            let facts = self.ports.images.facts(&below.image, below.format)?;
            let facts = facts.ok_or_else(|| {
                Error::new(
                    ErrorKind::Toolstack,
                    format!("{} has gone", below.image.display()),
                )
            })?;
            measured.stamps.insert(below.image.clone(), facts.written);
        }
        Ok(())
    }

    /// A domain that is gone, or another one, needs not be told.
    pub(super) fn point_disks(&self, life: DomainLife, switches: &[Switch]) -> Result<()> {
        match self.look(life)? {
            Some(_) => self.ports.toolstack.point_disks(life.domid, switches),
            None => Ok(()),
        }
    }

    pub(super) fn leave_layers(
        &self,
        life: DomainLife,
        layers: &[Layer],
        wake: bool,
    ) -> Result<()> {
        let Some(qemu) = self.look_at_qemu()? else {
            return layers.iter().try_for_each(|layer| self.leave_closed(layer));
        };
        let (open, closed): (Vec<_>, Vec<_>) =
            layers.iter().partition(|layer| qemu.has_open(&layer.image));
        for layer in closed {
            let is_below = layer
                .backing
                .as_ref()
                .is_some_and(|b| qemu.has_open(&b.image));
            match (is_below, qemu.life == life) {
                // It was never put on top, or was left before.
                (true, true) => {}
                (true, false) if self.is_gone(layer)? => {}
                (true, false) => return Err(self.not_its_layer(layer)),
                (false, _) => self.leave_closed(layer)?,
            }
        }
        if qemu.state == DomainState::Running && !open.is_empty() {
            self.ports.toolstack.pause(qemu.life.domid)?;
        }
        let left = open
            .iter()
            .try_for_each(|layer| self.ports.block.leave_layer(qemu.life, layer));
        let told = self.point_back(layers);
        let settled = left.and(told).and_then(|()| {
            // From here on the image below is the newer one.
            open.iter()
                .try_for_each(|layer| self.ports.images.remove_layer(layer))
        });
        let awake = settled.and_then(|()| if wake { self.wake(qemu.life) } else { Ok(()) });
        awake.map_err(|error| {
            Error::new(
                ErrorKind::NeedsRepair,
                format!(
                    "domain '{}' may be between two images, and paused",
                    self.plan.domain
                ),
            )
            .because(error)
            .hint("the next command for this domain goes on with it")
        })
    }

    /// Tells libxl of the disks that are the images below layers now.
    fn point_back(&self, layers: &[Layer]) -> Result<()> {
        let Some(qemu) = self.look_at_qemu()? else {
            return Ok(());
        };
        let switches: Vec<_> = layers
            .iter()
            .filter(|layer| !qemu.has_open(&layer.image))
            .filter_map(|layer| {
                let to = layer.backing.clone()?;
                qemu.has_open(&to.image).then_some(Switch {
                    from: layer.target(),
                    to,
                })
            })
            .collect();
        if switches.is_empty() {
            return Ok(());
        }
        self.ports.toolstack.point_disks(qemu.life.domid, &switches)
    }

    /// What a guest that is gone wrote to a layer belongs onto the image as it was left, and to no other.
    fn leave_closed(&self, layer: &Layer) -> Result<()> {
        if self.is_gone(layer)? {
            return Ok(());
        }
        let below = layer.backing.iter().map(|below| &below.image);
        self.refuse_if_written_since(below)?;
        self.ports.images.commit_layer(layer)?;
        self.ports.images.remove_layer(layer)
    }

    fn is_gone(&self, layer: &Layer) -> Result<bool> {
        let facts = self.ports.images.facts(&layer.image, ImageFormat::Qcow2)?;
        Ok(facts.is_none())
    }

    fn read_stamps(
        &self,
        life: DomainLife,
        id: SnapshotId,
        disks: &[DiskTarget],
        measured: &mut Measured,
    ) -> Result<()> {
        let nodes = self.ports.block.nodes(life)?;
        let tag = id.tag();
        for disk in disks {
            let snapshot = nodes
                .iter()
                .filter(|node| node.image == disk.image)
                .find_map(|node| node.facts.snapshot(&tag))
                .ok_or_else(|| {
                    Error::new(
                        ErrorKind::Toolstack,
                        format!("QEMU made no snapshot {tag} in {}", disk.image.display()),
                    )
                })?;
            measured.stamps.insert(disk.image.clone(), snapshot.stamp);
        }
        Ok(())
    }

    pub(super) fn apply_images(&self, id: SnapshotId, disks: &[DiskTarget]) -> Result<()> {
        self.refuse_if_used_since(disks)?;
        disks
            .iter()
            .try_for_each(|disk| self.ports.images.apply_snapshot(disk, &id.tag()))
    }

    /// After a kill: a memory image fits the disks as they were left. If somebody used them since, it does
    /// not. Our own domain is gone by the time that images are set back.
    fn refuse_if_used_since(&self, disks: &[DiskTarget]) -> Result<()> {
        if self.killed_at.is_none() || self.images_are_ours.get() {
            return Ok(());
        }
        if let Some(view) = self.find_by_name()? {
            return Err(self.usurped(view));
        }
        self.refuse_if_written_since(disks.iter().map(|disk| &disk.image))?;
        self.images_are_ours.set(true);
        Ok(())
    }

    pub(super) fn refuse_if_written_since<'a>(
        &self,
        images: impl Iterator<Item = &'a Box<Path>>,
    ) -> Result<()> {
        let Some(killed_at) = self.killed_at else {
            return Ok(());
        };
        for image in images {
            let written = std::fs::metadata(image).and_then(|image| image.modified());
            if written.is_ok_and(|time| time > killed_at + LAST_WRITES) {
                return Err(Error::new(
                    ErrorKind::NeedsRepair,
                    format!(
                        "{} was written to after the operation had been interrupted",
                        image.display()
                    ),
                )
                .hint(self.ways_out()));
            }
        }
        Ok(())
    }

    pub(super) fn delete_tags(&self, id: SnapshotId, disks: &[DiskTarget]) -> Result<()> {
        let tag = id.tag();
        let live = self.changeable_nodes(disks)?;
        for disk in disks {
            match &live {
                Some((view, Some(nodes))) if nodes.iter().any(|node| node.image == disk.image) => {
                    self.ports.block.delete_snapshot(view.life, &tag, disk)?;
                }
                _ => self.ports.images.delete_snapshot(disk, &tag)?,
            }
        }
        Ok(())
    }
}
