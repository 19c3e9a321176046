//! `qemu-img` behind [`Images`]. The format of an image is always given, never probed.

mod glance;

use super::nbd::Nbd;
use super::subprocess::{self, Death};
use super::{DiskContent, Durable, Images, proc, stamp};
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::{DiskTarget, ImageFacts, ImageFormat, InternalSnapshot, Stamp};
use crate::model::layer::{Backing, Layer};
use crate::model::pull::Extent;
use crate::store::{absent_is_fine, atomic};
use serde::Deserialize;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The `qemu-img` on the path.
pub struct QemuImg;

/// What we read of `qemu-img info --output=json`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    #[serde(default)]
    actual_size: u64,
    backing_filename: Option<PathBuf>,
    backing_filename_format: Option<String>,
    #[serde(default)]
    snapshots: Vec<SnapshotInfo>,
}

/// QEMU's `SnapshotInfo`, from `qemu-img` and from QMP alike.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct SnapshotInfo {
    name: String,
    date_sec: i64,
    date_nsec: i64,
}

impl From<SnapshotInfo> for InternalSnapshot {
    fn from(info: SnapshotInfo) -> Self {
        Self {
            tag: info.name,
            stamp: stamp(info.date_sec, info.date_nsec),
        }
    }
}

impl Images for QemuImg {
    fn facts(&self, image: &Path, format: ImageFormat) -> Result<Option<ImageFacts>> {
        let Ok(file) = std::fs::metadata(image) else {
            return Ok(None);
        };
        if format == ImageFormat::Qcow2 && file.is_file() && file.len() == 0 {
            return Ok(Some(retired(image)));
        }
        if let Some(facts) = glance::facts(image, format) {
            return Ok(Some(facts));
        }
        let what = format!("read the {} image {}", format.driver(), image.display());
        // -U: a QEMU may have it open. The table of snapshots is only changed under our lock.
        let arguments = ["info", "-U", "--output=json", "--image-opts"].map(OsString::from);
        let output = qemu_img(arguments.into_iter().chain([options(image, format)]), &what)?;
        let facts = facts_in(&output)
            .map_err(|error| Error::new(ErrorKind::Toolstack, what).because(error))?;
        Ok(Some(ImageFacts {
            written: last_write(image),
            is_device: is_device(image),
            ..facts
        }))
    }

    fn create_snapshot(&self, disk: &DiskTarget, tag: &str) -> Result<()> {
        snapshot(disk, "-c", tag, "make")
    }

    fn apply_snapshot(&self, disk: &DiskTarget, tag: &str) -> Result<()> {
        snapshot(disk, "-a", tag, "apply")
    }

    fn delete_snapshot(&self, disk: &DiskTarget, tag: &str) -> Result<()> {
        let facts = self.facts(&disk.image, disk.format)?;
        if facts.is_none_or(|facts| facts.snapshot(tag).is_none()) {
            return Ok(());
        }
        snapshot(disk, "-d", tag, "delete")
    }

    fn release_leaks(&self, disk: &DiskTarget) -> Result<()> {
        let what = format!("check {} ({})", disk.image.display(), disk.vdev);
        proc::wait_until_closed(&disk.image).map_err(|error| error.while_doing(&what))?;
        let arguments = ["check", "-q", "-r", "leaks", "--image-opts"].map(OsString::from);
        let image = options(&disk.image, disk.format);
        qemu_img(arguments.into_iter().chain([image]), &what).map(drop)
    }

    fn require_absent(&self, image: &Path) -> Result<()> {
        match std::fs::symlink_metadata(image) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io(format!("look at {}", image.display()), error)),
            Ok(_) => Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("{} is there already", image.display()),
            )
            .hint("the guest goes on in a new image: name one that is not there")),
        }
    }

    fn require_closed(&self, image: &Path) -> Result<()> {
        proc::wait_until_closed(image)
    }

    fn create_layer(&self, layer: &Layer) -> Result<()> {
        let what = format!("make {layer}");
        let backing = layer.backing.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::InvalidRequest, &what).because("it stands on nothing")
        })?;
        let facts = self.facts(&backing.image, backing.format)?.ok_or_else(|| {
            Error::new(ErrorKind::Io, &what)
                .because(format!("{} is not there", backing.image.display()))
        })?;
        // Ours alone, and nobody else's file: qemu-img would overwrite one.
        drop(atomic::create_new(&layer.image)?);
        let mut command = Command::new("qemu-img");
        command
            .args(["create", "-q", "-u", "-f", "qcow2", "-F"])
            .arg(backing.format.driver())
            .arg("-b")
            .args([&*backing.image, &*layer.image])
            .arg(facts.virtual_size.to_string());
        subprocess::run(command, Death::OnItsOwn, &what)?;
        self.make_durable(&layer.image)
    }

    fn extract(&self, from: &DiskTarget, tag: &str, layer: &Layer) -> Result<()> {
        let what = format!("copy {tag} of {from} to {}", layer.image.display());
        // Into an image that is there, zeros are written as zeros. With `-B` instead, what the state has from below its
        // own image would be left out, and the copy would have there what its image has now.
        self.create_layer(layer)
            .map_err(|error| error.while_doing(&what))?;
        let mut command = Command::new("qemu-img");
        command
            .args(["convert", "-q", "-U", "-n", "-O", "qcow2", "-l"])
            .arg(format!("snapshot.name={tag}"))
            .arg("--image-opts")
            .arg(options(&from.image, from.format))
            .arg(&*layer.image);
        subprocess::run(command, Death::OnItsOwn, &what)?;
        self.make_durable(&layer.image)
    }

    fn commit_layer(&self, layer: &Layer) -> Result<()> {
        let what = format!("merge {layer}");
        let backing = layer.backing.iter().map(|below| &below.image);
        for image in backing.chain([&layer.image]) {
            proc::wait_until_closed(image).map_err(|error| error.while_doing(&what))?;
        }
        let before = last_write(&layer.image);
        let arguments = ["commit", "-q", "-d", "--image-opts"].map(OsString::from);
        let image = options(&layer.image, ImageFormat::Qcow2);
        qemu_img(arguments.into_iter().chain([image]), &what)?;
        if last_write(&layer.image) == before {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Stale, &what)
            .because("somebody wrote to the layer meanwhile")
            .hint("shut down what uses it and give the command again"))
    }

    fn rebase_layer(&self, layer: &Layer, onto: Option<&Backing>, copy: bool) -> Result<()> {
        let onto_image = onto.map(|onto| &*onto.image);
        let what = format!(
            "put {} onto {}",
            layer.image.display(),
            onto_image.map_or_else(|| "nothing".into(), |image| image.display().to_string())
        );
        let facts = self
            .facts(&layer.image, ImageFormat::Qcow2)?
            .ok_or_else(|| Error::new(ErrorKind::Io, &what).because("it is not there"))?;
        if facts.stands_on(onto) && !copy {
            return Ok(());
        }
        proc::wait_until_closed(&layer.image).map_err(|error| error.while_doing(&what))?;
        if copy {
            // qemu-img changes the header before all of the copy is on the disk, so a header that names the
            // new image does not say that the copy is whole. On the old one the content is right in any case.
            rebase(layer, layer.backing.as_ref(), false, &what)?;
        }
        rebase(layer, onto, copy, &what)?;
        self.make_durable(&layer.image)
    }

    fn retire_layer(&self, layer: &Layer) -> Result<()> {
        let image = &*layer.image;
        let what = format!("empty {}, which was merged", image.display());
        proc::wait_until_closed(image).map_err(|error| error.while_doing(&what))?;
        atomic::empty_own(image).map_err(|error| error.while_doing(&what))
    }

    fn remove_layer(&self, layer: &Layer) -> Result<()> {
        let image = &*layer.image;
        if std::fs::symlink_metadata(image).is_err() {
            return Ok(());
        }
        let what = format!("remove {}", image.display());
        proc::wait_until_closed(image).map_err(|error| error.while_doing(&what))?;
        absent_is_fine(std::fs::remove_file(image)).map_err(|error| Error::io(what, error))?;
        atomic::sync_parent(image)
    }

    fn content(&self, chain: &[Backing], tag: Option<&str>) -> Result<Box<dyn DiskContent>> {
        let top = chain.first().map(|top| top.image.display().to_string());
        let top = top.unwrap_or_default();
        let what = match tag {
            Some(tag) => format!("read {tag} in {top}"),
            None => format!("read {top}"),
        };
        Ok(Box::new(Nbd::open(chain_options(chain), tag, what)?))
    }

    fn extents(&self, chain: &[Backing]) -> Result<Vec<Extent>> {
        let top = chain.first().map(|top| top.image.display().to_string());
        let what = format!("look which image holds what of {}", top.unwrap_or_default());
        let arguments = ["map", "--output=json", "--image-opts"].map(OsString::from);
        let output = qemu_img(arguments.into_iter().chain([chain_options(chain)]), &what)?;
        extents_in(&output).map_err(|error| error.while_doing(what))
    }

    fn open_to_sync(&self, image: &Path) -> Result<Box<dyn Durable>> {
        let file = std::fs::File::open(image)
            .map_err(|error| Error::io(format!("open {}", image.display()), error))?;
        Ok(Box::new(OpenImage(file, image.into())))
    }

    fn last_write(&self, image: &Path) -> Option<Stamp> {
        let file = std::fs::metadata(image).ok()?;
        file.is_file().then(|| written(&file))
    }

    fn make_durable(&self, image: &Path) -> Result<()> {
        // An image of the user's may be a link.
        std::fs::File::open(image)
            .and_then(|file| file.sync_all())
            .map_err(|error| Error::io(format!("fsync {}", image.display()), error))?;
        atomic::sync_parent(image)
    }
}

/// An image with its path.
struct OpenImage(std::fs::File, Box<Path>);

impl Durable for OpenImage {
    fn sync(&self) -> Result<()> {
        self.0
            .sync_all()
            .map_err(|error| Error::io(format!("fsync {}", self.1.display()), error))
    }
}

/// What `qemu-img map --output=json` says, which leaves no gap.
fn extents_in(output: &[u8]) -> Result<Vec<Extent>> {
    let odd = |why: &str| Error::new(ErrorKind::Toolstack, format!("qemu-img map {why}"));
    let extents: Vec<Extent> = serde_json::from_slice(output)
        .map_err(|error| odd("says what cannot be read").because(error))?;
    let mut end = 0_u64;
    for extent in &extents {
        if extent.start != end || extent.length == 0 {
            return Err(odd(&format!("says nothing of what begins at byte {end}")));
        }
        let next = end.checked_add(extent.length);
        end = next.ok_or_else(|| odd("speaks of more than there can be"))?;
    }
    Ok(extents)
}

fn rebase(layer: &Layer, onto: Option<&Backing>, copy: bool, what: &str) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["rebase", "-q"]);
    if !copy {
        command.arg("-u");
    }
    match onto {
        Some(onto) => command
            .args(["-F", onto.format.driver(), "-b"])
            .arg(&*onto.image),
        None => command.args(["-b", ""]),
    };
    command
        .arg("--image-opts")
        .arg(options(&layer.image, ImageFormat::Qcow2));
    subprocess::run(command, Death::OnItsOwn, what).map(drop)
}

/// When a file was last written to; the epoch where it cannot be told, which is no image's time.
pub(super) fn last_write(image: &Path) -> Stamp {
    std::fs::metadata(image).map_or_else(|_| stamp(0, 0), |file| written(&file))
}

fn written(file: &std::fs::Metadata) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    stamp(file.mtime(), file.mtime_nsec())
}

/// What is known of an image of which [`Images::retire_layer`] left an empty file.
fn retired(image: &Path) -> ImageFacts {
    ImageFacts {
        virtual_size: 0,
        allocated: 0,
        written: last_write(image),
        is_device: false,
        retired: true,
        backing: None,
        backing_format: None,
        snapshots: Vec::new(),
    }
}

/// What is seen of an image at a glance.
#[cfg(fuzzing)]
pub(crate) fn facts_at_a_glance(image: &Path) -> Option<ImageFacts> {
    glance::facts(image, ImageFormat::Qcow2)
}

/// What `qemu-img info --output=json` says, which is nothing of the last write.
pub(crate) fn facts_in(output: &[u8]) -> serde_json::Result<ImageFacts> {
    let info: Info = serde_json::from_slice(output)?;
    Ok(ImageFacts {
        virtual_size: info.virtual_size,
        allocated: info.actual_size,
        written: stamp(0, 0),
        is_device: false,
        retired: false,
        backing: info.backing_filename,
        backing_format: info.backing_filename_format,
        snapshots: info.snapshots.into_iter().map(Into::into).collect(),
    })
}

fn snapshot(disk: &DiskTarget, action: &str, tag: &str, verb: &str) -> Result<()> {
    let what = format!(
        "{verb} snapshot {tag} in {} ({})",
        disk.image.display(),
        disk.vdev
    );
    // A QEMU would not notice that the image changes under it.
    proc::wait_until_closed(&disk.image).map_err(|error| error.while_doing(&what))?;
    let arguments = ["snapshot", action, tag, "--image-opts"].map(OsString::from);
    qemu_img(
        arguments
            .into_iter()
            .chain([options(&disk.image, disk.format)]),
        &what,
    )
    .map(drop)
}

fn qemu_img(arguments: impl Iterator<Item = OsString>, what: &str) -> Result<Vec<u8>> {
    let mut command = Command::new("qemu-img");
    command.args(arguments);
    // A write to an image is never cut short by our own death.
    subprocess::run(command, Death::OnItsOwn, what)
}

/// Whether an image is a block device.
pub(super) fn is_device(image: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(image).is_ok_and(|meta| meta.file_type().is_block_device())
}

/// An image with its driver, as `--image-opts` takes it: a comma in the name is doubled, and no name
/// can be taken for a protocol.
fn options(image: &Path, format: ImageFormat) -> OsString {
    let mut text = Vec::new();
    add_options(&mut text, "", image, format);
    OsString::from_vec(text)
}

/// Images on top of each other, the uppermost first. Each one below is said, so that nothing in the images counts; and
/// nothing is locked, since a QEMU may have them open.
fn chain_options(chain: &[Backing]) -> OsString {
    let mut text = Vec::new();
    let mut prefix = String::new();
    for Backing { image, format } in chain {
        if !text.is_empty() {
            text.push(b',');
        }
        add_options(&mut text, &prefix, image, *format);
        prefix.push_str("backing.");
    }
    text.extend_from_slice(b",force-share=on");
    OsString::from_vec(text)
}

/// QEMU's driver for the file that an image is in: block devices (LVM) have another one than files.
pub(crate) fn protocol_of(image: &Path) -> &'static str {
    if is_device(image) {
        "host_device"
    } else {
        "file"
    }
}

/// Makes a new, empty qcow2 image that stands on nothing, readable by root alone.
///
/// # Errors
/// If there is a file of its name, or no room.
pub(crate) fn create_empty(image: &Path, length: u64) -> Result<()> {
    let what = format!("make {}", image.display());
    // Ours alone, and nobody else's file: qemu-img would overwrite one.
    drop(atomic::create_new(image)?);
    let mut command = Command::new("qemu-img");
    command
        .args(["create", "-q", "-f", "qcow2", "--"])
        .arg(image);
    command.arg(length.to_string());
    subprocess::run(command, Death::OnItsOwn, &what).map(drop)
}

fn add_options(text: &mut Vec<u8>, prefix: &str, image: &Path, format: ImageFormat) {
    let protocol = protocol_of(image);
    let head = format!(
        "{prefix}driver={},{prefix}file.driver={protocol},{prefix}file.filename=",
        format.driver()
    );
    text.extend_from_slice(head.as_bytes());
    for byte in OsStr::as_bytes(image.as_os_str()) {
        text.push(*byte);
        if *byte == b',' {
            text.push(b',');
        }
    }
}

#[cfg(test)]
mod tests;
