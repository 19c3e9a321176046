//! Which images a domain's disks are, where libxl and others look it up: libxl's stored configuration, by
//! which `xl reboot` makes the domain anew and `xl save` describes it, and the backends' `params` in xenstore.

use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::ImageFormat;
use crate::model::layer::Backing;
use crate::plan::Switch;
use xenstore_rs::Xs;
use xenstore_rs::unix::XsUnix;

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
