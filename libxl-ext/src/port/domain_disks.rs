//! A domain's disks in xenstore: which images they are, where libxl and others look it up, and whether the guest
//! has connected to them. libxl's stored configuration, by which `xl reboot` makes the domain anew and `xl save`
//! describes it, is the other place.

use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::ImageFormat;
use crate::model::layer::Backing;
use crate::plan::Switch;
use xenstore_rs::Xs;
use xenstore_rs::unix::XsUnix;

/// `XenbusStateConnected` of xen/io/xenbus.h.
const CONNECTED: &str = "4";

/// Where the backends that run in domain 0 are; another domain's could claim anything.
const BACKENDS: &str = "/local/domain/0/backend/";

/// Whether both ends of every disk, but for CD-ROM drives, say that they are connected: the guest's driver is the last
/// to say so. What the guest says is believed here because nothing but our patience hangs on it.
pub(super) fn are_connected(domid: u32) -> Result<bool> {
    let failed = |error: std::io::Error| {
        Error::new(
            ErrorKind::Toolstack,
            format!("look for the disks of domain {domid} in xenstore"),
        )
        .because(error)
    };
    let xs = XsUnix::new().map_err(failed)?;
    let read = |node: String| match xs.read(&node) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    };
    let devices = format!("/libxl/{domid}/device/vbd");
    let names = match xs.directory(&devices) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        names => names.map_err(failed)?,
    };
    for device in names {
        let Some(backend) = read(format!("{devices}/{device}/backend"))? else {
            continue;
        };
        let is_disk = backend.starts_with(BACKENDS)
            && read(format!("{backend}/device-type"))?.as_deref() != Some("cdrom");
        let frontend = format!("/local/domain/{domid}/device/vbd/{device}");
        for end in [&*backend, &*frontend] {
            if is_disk && read(format!("{end}/state"))?.as_deref() != Some(CONNECTED) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Sets the `params` of the disks that `switches` name. Both nodes are written by dom0 alone: the guest's
/// own directory is not looked at.
pub(super) fn point(domid: u32, switches: &[Switch]) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::new(
            ErrorKind::Toolstack,
            format!("set the disks of domain {domid} in xenstore"),
        )
        .because(error)
    };
    let xs = XsUnix::new().map_err(failed)?;
    let devices = format!("/libxl/{domid}/device/vbd");
    for device in xs.directory(&devices).map_err(failed)? {
        let device = format!("{devices}/{device}");
        let vdev = xs.read(&format!("{device}/dev")).map_err(failed)?;
        let Some(switch) = switches.iter().find(|switch| *switch.from.vdev == *vdev) else {
            continue;
        };
        let params = params(&switch.to);
        let backend = xs.read(&format!("{device}/backend")).map_err(failed)?;
        for node in [&*backend, &device] {
            xs.write(&format!("{node}/params"), &params)
                .map_err(failed)?;
        }
    }
    Ok(())
}

/// As libxl's `device_disk_add` writes it for a qdisk, which calls raw images `aio`.
fn params(image: &Backing) -> String {
    let format = match image.format {
        ImageFormat::Qcow2 => "qcow2",
        ImageFormat::Raw => "aio",
    };
    format!("{format}:{}", image.image.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn params_are_as_libxl_writes_them() {
        let image = |format| Backing {
            image: Path::new("/i/a").into(),
            format,
        };
        assert_eq!(params(&image(ImageFormat::Raw)), "aio:/i/a");
        assert_eq!(params(&image(ImageFormat::Qcow2)), "qcow2:/i/a");
    }
}
