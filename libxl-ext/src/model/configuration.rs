//! A domain's configuration as libxl keeps it, in JSON, and which images its disks are in it.

use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::DeviceDisk;
use crate::plan::Switch;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// The disks in libxl's JSON configuration of a domain; one without the key has none.
///
/// # Errors
/// If what is there are no disks.
pub(crate) fn disks_of(configuration: &Value) -> serde_json::Result<Vec<DeviceDisk>> {
    match configuration.get("disks") {
        None => Ok(Vec::new()),
        Some(disks) => Vec::deserialize(disks),
    }
}

/// Gives disks other images in libxl's JSON `configuration`, and leaves everything else as it is. Disks are
/// found by their virtual device and their image: one that was detached, or has another image, is left alone.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if the text is no configuration.
pub(crate) fn redirect(configuration: &str, switches: &[Switch]) -> Result<String> {
    let unreadable = |why: String| {
        Error::new(ErrorKind::Corrupt, "read the domain's configuration").because(why)
    };
    let mut value: Value =
        serde_json::from_str(configuration).map_err(|error| unreadable(error.to_string()))?;
    let disks = match value.get_mut("disks") {
        None => return Ok(configuration.to_owned()),
        Some(Value::Array(disks)) => disks,
        Some(_) => return Err(unreadable("its disks are no list".into())),
    };
    for disk in disks.iter_mut().filter_map(Value::as_object_mut) {
        let text = |key: &str| disk.get(key).and_then(Value::as_str);
        let (vdev, image) = (text("vdev"), text("pdev_path").map(Path::new));
        let is_it = |switch: &&Switch| {
            Some(&*switch.from.vdev) == vdev && Some(&*switch.from.image) == image
        };
        let Some(switch) = switches.iter().find(is_it) else {
            continue;
        };
        let path = switch
            .to
            .image
            .to_str()
            .ok_or_else(|| unreadable(format!("{} is no UTF-8", switch.to.image.display())))?;
        disk.insert("pdev_path".into(), path.into());
        disk.insert("format".into(), switch.to.format.driver().into());
    }
    Ok(value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::disk::{DiskTarget, ImageFormat};
    use crate::model::layer::Backing;
    use serde_json::json;

    #[test]
    fn only_the_image_of_the_named_disk_changes() {
        let before = json!({
            "c_info": { "name": "g1" },
            "disks": [
                { "pdev_path": "/i/a.raw", "vdev": "xvda", "format": "raw", "backend": "qdisk" },
                { "pdev_path": "/i/b.qcow2", "vdev": "xvdb", "format": "qcow2" },
            ],
        });
        let switch = |vdev: &str| Switch {
            from: DiskTarget {
                vdev: vdev.into(),
                image: Path::new("/i/a.raw").into(),
                format: ImageFormat::Raw,
            },
            to: Backing {
                image: Path::new("/i/a.qcow2").into(),
                format: ImageFormat::Qcow2,
            },
        };
        let text = redirect(&before.to_string(), &[switch("xvda"), switch("xvdz")]).unwrap();
        let mut after: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(after["disks"][0]["pdev_path"], "/i/a.qcow2");
        assert_eq!(after["disks"][0]["format"], "qcow2");
        after["disks"][0]["pdev_path"] = "/i/a.raw".into();
        after["disks"][0]["format"] = "raw".into();
        assert_eq!(after, before);
        assert!(redirect("{\"disks\": 5}", &[]).is_err());
        assert!(redirect("no JSON", &[]).is_err());
    }
}
