//! What is replicated, and over what: the names and rules that both sides have to agree on.

use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::DiskTarget;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the secondary takes what the primary writes: an NBD server without encryption, so it never leaves the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NbdAddress {
    /// A UNIX socket. Who may connect is decided by the directory that it is in, which nobody else should be let into.
    Unix(PathBuf),
    /// A TCP port of this host: every user and program of the host can connect to it.
    Loopback(u16),
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Loopback(port) => write!(f, "127.0.0.1:{port}"),
        }
    }
}

/// Longest path of a UNIX socket, in bytes (`sun_path`, which ends with a zero).
const SOCKET_PATH_MAX: usize = 107;

/// Longest name of a virtual device, in bytes: with what we put in front of it, it has to fit QEMU's node names.
const VDEV_MAX: usize = 16;

/// How long each side waits for the other, and for its own QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For one answer of QEMU. It includes what the guest has under way to the secondary, so a guest's write is held up
    /// for no longer once somebody looks.
    pub answer: Duration,
    /// For a sign of life of the secondary's NBD server.
    pub pulse: Duration,
    /// For the first copy to come any further.
    pub stall: Duration,
    /// For a failover to write back what the primary overwrote after the last checkpoint.
    pub merge: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            pulse: Duration::from_secs(10),
            stall: Duration::from_secs(120),
            merge: Duration::from_secs(600),
        }
    }
}

/// Refuses disks that cannot be told apart, or not be named to QEMU, and an address that it could not use.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`].
pub fn check(disks: &[DiskTarget], address: &NbdAddress) -> Result<()> {
    let invalid = |why: String| Error::new(ErrorKind::InvalidRequest, why);
    if disks.is_empty() {
        return Err(invalid("there is no disk to replicate".into()));
    }
    for (at, disk) in disks.iter().enumerate() {
        let vdev = &disk.vdev;
        if vdev.is_empty()
            || vdev.len() > VDEV_MAX
            || !vdev.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            return Err(invalid(format!("'{vdev}' is no name of a virtual device"))
                .hint(format!("1 to {VDEV_MAX} letters and digits, such as xvda")));
        }
        as_text(&disk.image)?;
        for other in &disks[..at] {
            if other.vdev == *vdev {
                return Err(invalid(format!("disk {vdev} is named twice")));
            }
            if other.image == disk.image {
                let image = disk.image.display();
                let why = format!("{image} is named as {} and as {vdev}", other.vdev);
                return Err(invalid(why).hint("each disk has an image of its own"));
            }
        }
    }
    match address {
        NbdAddress::Unix(path) => {
            if as_text(path)?.len() > SOCKET_PATH_MAX || !path.is_absolute() {
                let path = path.display();
                return Err(
                    invalid(format!("{path} is no path for a UNIX socket")).hint(format!(
                        "an absolute one of at most {SOCKET_PATH_MAX} bytes"
                    )),
                );
            }
        }
        NbdAddress::Loopback(0) => {
            return Err(invalid(
                "TCP port 0 is none that a primary could connect to".into(),
            ));
        }
        NbdAddress::Loopback(_) => {}
    }
    Ok(())
}

/// A path as QEMU can be told it.
///
/// # Errors
/// [`ErrorKind::Unsupported`] if it is not UTF-8.
pub(crate) fn as_text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        let what = format!(
            "{} is not UTF-8, which QEMU's JSON has to be",
            path.display()
        );
        Error::new(ErrorKind::Unsupported, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::disk::ImageFormat;

    fn disk(vdev: &str, image: &str) -> DiskTarget {
        DiskTarget {
            vdev: vdev.into(),
            image: Path::new(image).into(),
            format: ImageFormat::Raw,
        }
    }

    #[test]
    fn disks_are_told_apart_by_device_and_by_image() {
        let socket = NbdAddress::Unix("/run/a/nbd".into());
        let check = |disks: &[DiskTarget]| check(disks, &socket).map_err(|error| error.report());
        check(&[disk("xvda", "/i/a"), disk("xvdb", "/i/b")]).unwrap();
        assert!(check(&[]).unwrap_err().contains("no disk"));
        let twice = check(&[disk("xvda", "/i/a"), disk("xvda", "/i/b")]);
        assert!(twice.unwrap_err().contains("xvda is named twice"));
        let one_image = check(&[disk("xvda", "/i/a"), disk("xvdb", "/i/a")]);
        assert!(
            one_image
                .unwrap_err()
                .contains("/i/a is named as xvda and as xvdb")
        );
    }

    #[test]
    fn a_name_that_qemu_could_take_for_something_else_is_refused() {
        let socket = NbdAddress::Unix("/run/a/nbd".into());
        for vdev in ["", "xvda,x", "a/b", "#block1", "abcdefghijklmnopq", "ä"] {
            let error = check(&[disk(vdev, "/i/a")], &socket).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{vdev}");
        }
    }

    #[test]
    fn an_address_that_nobody_could_connect_to_is_refused() {
        let disks = [disk("xvda", "/i/a")];
        let long = format!("/{}", "x".repeat(SOCKET_PATH_MAX));
        for address in [
            NbdAddress::Unix(long.into()),
            NbdAddress::Unix("nbd".into()),
            NbdAddress::Loopback(0),
        ] {
            assert!(check(&disks, &address).is_err(), "{address}");
        }
        check(&disks, &NbdAddress::Loopback(10809)).unwrap();
        let longest = format!("/{}", "x".repeat(SOCKET_PATH_MAX - 1));
        check(&disks, &NbdAddress::Unix(longest.into())).unwrap();
    }
}
