//! A domain's disk as libxl's configuration describes it, and an image as `qemu-img` and QEMU show it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `libxl_device_disk` in libxl's JSON dialect: the fields that snapshots decide on by name, every
/// other one kept as it came, so that nothing is lost between reading a configuration and writing it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceDisk {
    /// Path of the image in dom0 (`target=` in xl.cfg).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pdev_path: Option<String>,
    /// Name of the virtual device in the guest, such as `xvda`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vdev: Option<String>,
    /// `libxl_disk_backend` by name: `qdisk`, `phy`, `tap` or `unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// `libxl_disk_format` by name: `qcow2`, `raw`, `empty` and others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// 1 for a device that can be ejected.
    #[serde(skip_serializing_if = "is_zero")]
    pub removable: i64,
    /// 1 where the guest may write.
    #[serde(skip_serializing_if = "is_zero")]
    pub readwrite: i64,
    /// 1 for a CD-ROM drive.
    #[serde(skip_serializing_if = "is_zero")]
    pub is_cdrom: i64,
    /// The fields that this project has no opinion on.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

// Serde's `skip_serializing_if` passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

impl DeviceDisk {
    /// The virtual device's name, or `?` where the configuration names none.
    pub fn vdev(&self) -> &str {
        self.vdev.as_deref().unwrap_or("?")
    }

    /// Whether the guest can change the content, so that a snapshot has to hold it.
    pub fn is_writable(&self) -> bool {
        self.readwrite != 0 && self.is_cdrom == 0
    }
}

/// An internal snapshot in a qcow2 image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InternalSnapshot {
    /// Its name in the image.
    pub tag: String,
    /// When QEMU made it, in seconds and nanoseconds since the epoch: with the tag, the identity of
    /// the content.
    pub stamp: Stamp,
}

/// The instant at which QEMU made an internal snapshot, by the clock of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// Seconds since the epoch.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanoseconds: i64,
}

/// In seconds since the epoch: later than any clock is.
const FAR: u64 = 1 << 33;

impl Stamp {
    /// The same as a time; the epoch for one before it, and [`FAR`] for what is later than that.
    pub(crate) fn time(self) -> SystemTime {
        let seconds = u64::try_from(self.seconds).unwrap_or(0);
        let nanoseconds = u64::try_from(self.nanoseconds).unwrap_or(0);
        let since = Duration::from_secs(seconds.min(FAR)) + Duration::from_nanos(nanoseconds);
        UNIX_EPOCH + since
    }
}

/// What an image file was seen to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// Size that the guest sees, in bytes.
    pub virtual_size: u64,
    /// Bytes that the file takes on its own disk, without what is below it.
    pub allocated: u64,
    /// When the file was last written to.
    pub written: Stamp,
    /// Whether it is a block device, of which the time of the last write says nothing.
    pub is_device: bool,
    /// Whether it is a layer of ours that was emptied because the image below it holds all of its content. (A
    /// file that is missing says no such thing: its file system may not be mounted.)
    pub retired: bool,
    /// The image below it, as the image itself says. It is compared with our records, never followed.
    pub backing: Option<PathBuf>,
    /// The format of that, as the image itself says: QEMU opens it as such. None where the image leaves it to be guessed.
    pub backing_format: Option<String>,
    /// Internal snapshots in the image.
    pub snapshots: Vec<InternalSnapshot>,
}

impl ImageFacts {
    /// The internal snapshot of the given name.
    pub fn snapshot(&self, tag: &str) -> Option<&InternalSnapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.tag == tag)
    }
}

/// A disk that a step works on: the device's name for the user, the image for the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskTarget {
    /// Name of the virtual device.
    pub vdev: String,
    /// The image.
    pub image: Box<Path>,
    /// Format of the image, always said and never probed.
    pub format: ImageFormat,
}

impl fmt::Display for DiskTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.vdev, self.image.display())
    }
}

/// Formats of images, by libxl's names for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// QEMU's qcow2, which can hold snapshots of its own.
    Qcow2,
    /// The disk's content and nothing else.
    Raw,
}

impl ImageFormat {
    /// The name of the block driver in QEMU.
    pub const fn driver(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }

    /// The format of libxl's name (`libxl_disk_format`), if it is one of these.
    pub fn of(name: &str) -> Option<Self> {
        [Self::Qcow2, Self::Raw]
            .into_iter()
            .find(|format| format.driver() == name)
    }
}

/// Where a snapshot keeps the state of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskKind {
    /// Inside the image, which the guest goes on writing to.
    #[default]
    Internal,
    /// As the image itself, which nobody writes to any more: the guest goes on in an overlay.
    External,
}

impl fmt::Display for DiskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Internal => "internal",
            Self::External => "external",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_that_we_do_not_know_survive_a_round_trip() {
        let from_libxl = json!({
            "pdev_path": "/root/a.qcow2", "vdev": "xvda", "backend": "qdisk", "format": "qcow2",
            "readwrite": 1, "discard_enable": "True", "colo_port": 0,
        });
        let disk: DeviceDisk = serde_json::from_value(from_libxl.clone()).unwrap();
        assert!(disk.is_writable());
        assert_eq!(serde_json::to_value(&disk).unwrap(), from_libxl);
    }

    #[test]
    fn a_cdrom_is_never_written() {
        let disk = DeviceDisk {
            readwrite: 1,
            is_cdrom: 1,
            ..DeviceDisk::default()
        };
        assert!(!disk.is_writable());
    }
}
