//! The configuration in a memory image from another host: what it names there, made to name what is here.

use super::manifest::corrupt;
use crate::error::{Error, ErrorKind, Result};
use crate::model::layer::Backing;
use serde_json::{Map, Value};
use std::path::Path;
use uuid::Uuid;

/// What a domain becomes here.
pub(crate) struct Identity<'a> {
    pub(crate) name: &'a str,
    pub(crate) uuid: Uuid,
}

/// Keys whose values start programs, or give the guest what is the host's, also without a path in them.
const REACHING_OUT: [&str; 11] = [
    "bootloader",
    "bootloader_args",
    "device_model_override",
    "device_model_user",
    "dtdevs",
    "extra",
    "extra_hvm",
    "extra_pv",
    "p9s",
    "pcidevs",
    "usbdevs",
];

/// The configuration with another identity and other images. `image` gives the new image of a disk, by its virtual
/// device and its path. CD-ROM drives become empty; their virtual devices are returned. With `keep_paths` other paths
/// stay; without, they are refused.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for no configuration, or a disk without an image; [`ErrorKind::InvalidRequest`] with the
/// paths that are in it.
pub(crate) fn rewrite(
    configuration: &str,
    identity: &Identity<'_>,
    keep_paths: bool,
    image: impl Fn(&str, &Path) -> Option<Backing>,
) -> Result<(String, Vec<String>)> {
    let no_configuration = || corrupt("a configuration in it is none");
    let mut value: Value = serde_json::from_str(configuration).map_err(|_| no_configuration())?;
    let info = value
        .get_mut("c_info")
        .and_then(Value::as_object_mut)
        .ok_or_else(no_configuration)?;
    info.insert("name".into(), identity.name.into());
    info.insert("uuid".into(), identity.uuid.to_string().into());
    let mut disks = match value.as_object_mut().and_then(|map| map.remove("disks")) {
        None => Vec::new(),
        Some(Value::Array(disks)) => disks,
        Some(_) => return Err(no_configuration()),
    };
    let mut emptied = Vec::new();
    for disk in &mut disks {
        let disk = disk.as_object_mut().ok_or_else(no_configuration)?;
        emptied.extend(of_disk(disk, &image)?);
    }
    if let Some(map) = value.as_object_mut().filter(|_| !disks.is_empty()) {
        map.insert("disks".into(), Value::Array(disks));
    }
    let paths = reaching_out(&value);
    if !paths.is_empty() && !keep_paths {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!(
                "the configuration names what is on the host that it comes from: {}",
                paths.join(", ")
            ),
        )
        .hint("where that is the same here, and you trust who made the file, --keep-paths takes it as it is"));
    }
    Ok((value.to_string(), emptied))
}

/// What a configuration in libxl's JSON names of the host that it comes from, beside the images of its disks, or would
/// start there.
pub fn reaching_out(configuration: &Value) -> Vec<String> {
    let mut rest = configuration.clone();
    let disks = rest.as_object_mut().and_then(|map| map.remove("disks"));
    let mut found = Vec::new();
    collect(&rest, "", &mut found);
    let disks = disks.as_ref().and_then(Value::as_array);
    for disk in disks.into_iter().flatten() {
        let mut disk = disk.clone();
        if let Some(disk) = disk.as_object_mut() {
            disk.remove("pdev_path");
        }
        collect(&disk, "disks", &mut found);
    }
    found.sort();
    found.dedup();
    found
}

/// Gives a disk its new image. Returns the virtual device of a drive that was emptied.
fn of_disk(
    disk: &mut Map<String, Value>,
    image: impl Fn(&str, &Path) -> Option<Backing>,
) -> Result<Option<String>> {
    let text = |key: &str| disk.get(key).and_then(Value::as_str).map(str::to_owned);
    let vdev = text("vdev").unwrap_or_default();
    let path = text("pdev_path");
    let is_cdrom = disk.get("is_cdrom").and_then(Value::as_i64).unwrap_or(0) != 0;
    let Some(path) = path.filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    if is_cdrom {
        disk.remove("pdev_path");
        disk.insert("format".into(), "empty".into());
        return Ok(Some(vdev));
    }
    let new = image(&vdev, Path::new(&path))
        .ok_or_else(|| corrupt(&format!("it has no image of {vdev}")))?;
    let new_path = new.image.to_str().ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidRequest,
            format!("{} is no UTF-8", new.image.display()),
        )
    })?;
    disk.insert("pdev_path".into(), new_path.into());
    disk.insert("format".into(), new.format.driver().into());
    Ok(None)
}

/// Every value that is a path, or that reaches out of the guest in another way.
fn collect(value: &Value, key: &str, found: &mut Vec<String>) {
    match value {
        Value::String(text) if text.contains('/') => found.push(format!("{key} {text:?}")),
        Value::Array(items) => items.iter().for_each(|item| collect(item, key, found)),
        Value::Object(map) => {
            for (key, value) in map {
                let is_set = !matches!(value, Value::Null)
                    && *value != Value::String(String::new())
                    && *value != Value::Array(Vec::new());
                if REACHING_OUT.contains(&key.as_str()) && is_set {
                    let text: String = value.to_string().chars().take(200).collect();
                    found.push(format!("{key} {text}"));
                } else {
                    collect(value, key, found);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::disk::ImageFormat;
    use serde_json::json;

    fn identity() -> Identity<'static> {
        Identity {
            name: "new",
            uuid: Uuid::from_u128(5),
        }
    }

    fn new_image(vdev: &str, _: &Path) -> Option<Backing> {
        (vdev == "xvda").then(|| Backing {
            image: Path::new("/new/a").into(),
            format: ImageFormat::Qcow2,
        })
    }

    #[test]
    fn disks_and_identity_are_ours_and_the_rest_stays() {
        let before = json!({
            "c_info": { "name": "old", "uuid": Uuid::from_u128(1), "type": "pv" },
            "b_info": { "max_memkb": 1024 },
            "disks": [
                { "vdev": "xvda", "pdev_path": "/etc/shadow", "format": "raw", "readwrite": 1 },
                { "vdev": "hdc", "pdev_path": "/etc/passwd", "format": "raw", "is_cdrom": 1 },
            ],
        });
        let (text, emptied) = rewrite(&before.to_string(), &identity(), false, new_image).unwrap();
        let after: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(after["disks"][0]["pdev_path"], "/new/a");
        assert_eq!(after["disks"][0]["format"], "qcow2");
        assert_eq!(after["disks"][1]["format"], "empty");
        assert!(after["disks"][1].get("pdev_path").is_none());
        assert_eq!(emptied, ["hdc"]);
        assert_eq!(after["c_info"]["name"], "new");
        assert_eq!(after["c_info"]["type"], "pv");
        assert_eq!(after["b_info"], before["b_info"]);
    }

    #[test]
    fn what_reaches_out_of_the_guest_is_refused_unless_it_is_wanted() {
        let with = |key: &str, value: Value| {
            json!({ "c_info": { "type": "pv" }, "b_info": { key: value } }).to_string()
        };
        for (key, value) in [
            ("kernel", json!("/boot/vmlinuz")),
            ("device_model_override", json!("sh")),
            ("extra", json!(["-drive", "file=x"])),
            ("nics", json!([{ "script": "../x" }])),
            ("pcidevs", json!([{ "bus": 1 }])),
        ] {
            let text = with(key, value);
            let error = rewrite(&text, &identity(), false, new_image).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{key}");
            assert!(error.report().contains("--keep-paths"));
            rewrite(&text, &identity(), true, new_image).unwrap();
        }
        let script = json!({ "c_info": {}, "disks": [{ "vdev": "xvda", "pdev_path": "/x", "script": "/x" }] });
        assert!(rewrite(&script.to_string(), &identity(), false, new_image).is_err());
        let none = json!({ "c_info": {}, "disks": [{ "vdev": "xvdb", "pdev_path": "/x" }] });
        for text in [none.to_string(), "{}".into(), "[]".into(), "x".into()] {
            let error = rewrite(&text, &identity(), true, new_image).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{text}");
        }
    }
}
