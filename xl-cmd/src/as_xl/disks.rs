//! The disks of a domain that is about to be made: those whose image has layers on top of it are those layers.

use super::{dry_run, real};
use libxl_ext::event::Unobserved;
use libxl_ext::model::disk::DeviceDisk;
use libxl_ext::model::layer::Layer;
use libxl_ext::snapshot::Host;
use libxl_ext::store::Store;
use libxl_ext::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::Value;
use std::ffi::OsString;
use std::path::Path;

#[derive(Deserialize)]
struct Config {
    c_info: CreateInfo,
    #[serde(default)]
    disks: Vec<DeviceDisk>,
}

#[derive(Deserialize)]
struct CreateInfo {
    name: String,
}

/// What there is to be known for the making of a domain.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ForCreate {
    /// Nothing.
    Nothing,
    /// One more argument.
    Disks(OsString),
    /// The domain of this name was saved.
    GoOn(String),
}

/// Looks at what `xl create ARGUMENTS` would make.
pub(super) fn for_create(root: &Path, arguments: &[OsString]) -> Result<ForCreate> {
    if Store::new(root).is_empty() {
        return Ok(ForCreate::Nothing);
    }
    let Some(output) = real::dry_run_of_create(arguments)? else {
        return Ok(ForCreate::Nothing);
    };
    let config = Config::deserialize(dry_run::read(&output)?).map_err(|error| {
        Error::new(ErrorKind::Toolstack, "read what `xl -N create` printed").because(error)
    })?;
    let name = &config.c_info.name;
    if !Store::new(root).domain(name).exists() {
        return Ok(ForCreate::Nothing);
    }
    let host = Host::connect()?.with_store(root);
    let Some(layers) = host.layers_for_start(name, &config.disks, &Unobserved)? else {
        return Ok(ForCreate::GoOn(name.clone()));
    };
    if layers.iter().all(Option::is_none) {
        return Ok(ForCreate::Nothing);
    }
    for (disk, layer) in config.disks.iter().zip(&layers) {
        if let Some(layer) = layer {
            eprintln!(
                "xl-ext: {} of '{name}' is {}, which is on top of {}",
                disk.vdev(),
                layer.image.display(),
                layer.base.image.display()
            );
        }
    }
    let disks = config.disks.iter().zip(&layers);
    let disks = disks
        .map(|(disk, layer)| specification(disk, layer.as_ref()))
        .collect::<Result<Vec<_>>>()?;
    Ok(ForCreate::Disks(
        format!("disk=[{}]", disks.join(",")).into(),
    ))
}

/// A disk as an entry of `disk=[...]`, as it is.
pub(crate) fn specification_of(disk: &DeviceDisk) -> Result<String> {
    specification(disk, None)
}

/// A disk as an entry of `disk=[...]` (xl-disk-configuration(5)), with the image of a layer.
fn specification(disk: &DeviceDisk, layer: Option<&Layer>) -> Result<String> {
    let refuse = |what: &str| {
        Error::new(
            ErrorKind::Unsupported,
            format!("disk {} {what}", disk.vdev()),
        )
        .hint(
            "give the layer that is its image in the configuration file; `snapshot-info` names it",
        )
    };
    let mut words = vec![format!("vdev={}", disk.vdev())];
    let image = layer.map(|layer| layer.image.to_string_lossy().into_owned());
    let image = image.or_else(|| disk.pdev_path.clone());
    match (layer, disk.format.as_deref()) {
        (Some(_), _) => words.push("format=qcow2".into()),
        (None, Some(format @ ("qcow2" | "raw" | "vhd" | "qed"))) => {
            words.push(format!("format={format}"));
        }
        (None, Some("empty") | None) => {}
        (None, Some(other)) => return Err(refuse(&format!("has the format {other}"))),
    }
    words.push(format!(
        "access={}",
        if disk.readwrite == 0 { "ro" } else { "rw" }
    ));
    match disk.backend.as_deref() {
        None | Some("unknown") => {}
        Some(backend) => words.push(format!("backendtype={backend}")),
    }
    if disk.is_cdrom != 0 {
        words.push("devtype=cdrom".into());
    } else if disk.removable != 0 {
        words.push("removable".into());
    }
    for (key, value) in &disk.other {
        match (key.as_str(), value) {
            (_, Value::Null | Value::Bool(false)) => {}
            (_, Value::Number(number)) if number.as_u64() == Some(0) => {}
            (_, Value::String(text)) if text.is_empty() || text == "<default>" => {}
            // What libxl makes of a disk of which nothing is said of these.
            ("colo_enable" | "colo_restore_enable", Value::String(off)) if off == "False" => {}
            ("transport", Value::String(unknown)) if unknown == "unknown" => {}
            ("trusted", Value::String(on)) if on == "True" => {}
            ("script", Value::String(script)) => words.push(format!("script={script}")),
            ("backend_domname", Value::String(name)) => words.push(format!("backend={name}")),
            ("discard_enable", Value::String(on)) if on == "True" => words.push("discard".into()),
            ("discard_enable", Value::String(_)) => words.push("no-discard".into()),
            ("direct_io_safe", Value::Bool(true)) => words.push("direct-io-safe".into()),
            ("specification", Value::String(xen)) if xen == "xen" => {}
            (other, _) => return Err(refuse(&format!("has a setting {other}"))),
        }
    }
    // Everything behind it is taken for the path.
    words.push(format!("target={}", image.unwrap_or_default()));
    let text = words.join(",");
    if text.contains(['"', '\\']) || text.chars().any(char::is_control) {
        return Err(refuse(
            "has a name that cannot be written in a configuration",
        ));
    }
    Ok(format!("\"{text}\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use libxl_ext::model::disk::ImageFormat;
    use libxl_ext::model::layer::Backing;
    use serde_json::json;
    use std::path::Path;

    fn disk(value: Value) -> DeviceDisk {
        serde_json::from_value(value).unwrap()
    }

    fn layer() -> Layer {
        let base = Backing {
            image: Path::new("/i/a.raw").into(),
            format: ImageFormat::Raw,
        };
        Layer {
            vdev: "xvda".into(),
            image: Path::new("/i/a,b.qcow2").into(),
            backing: Some(base.clone()),
            below_written: None,
            base,
            active: true,
            merging: None,
        }
    }

    #[test]
    fn a_disk_becomes_its_layer_and_keeps_what_was_said_of_it() {
        let raw = disk(json!({
            "pdev_path": "/i/a.raw", "vdev": "xvda", "backend": "qdisk", "format": "raw",
            "readwrite": 1, "discard_enable": "True", "backend_domid": 0,
        }));
        assert_eq!(
            specification(&raw, Some(&layer())).unwrap(),
            "\"vdev=xvda,format=qcow2,access=rw,backendtype=qdisk,discard,target=/i/a,b.qcow2\""
        );
        let cdrom =
            disk(json!({ "vdev": "hdc", "format": "empty", "is_cdrom": 1, "removable": 1 }));
        assert_eq!(
            specification(&cdrom, None).unwrap(),
            "\"vdev=hdc,access=ro,devtype=cdrom,target=\""
        );
    }

    /// Who has no snapshots is not kept from anything.
    #[test]
    fn nothing_is_asked_where_nothing_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let stdin = [OsString::from("-")];
        let store = root.path().join("store");
        assert_eq!(for_create(&store, &stdin).unwrap(), ForCreate::Nothing);
        std::fs::create_dir(&store).unwrap();
        assert_eq!(for_create(&store, &stdin).unwrap(), ForCreate::Nothing);
        std::fs::create_dir(store.join("g")).unwrap();
        let refused = for_create(&store, &stdin).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
    }

    /// As `xl list -l` tells of a disk, where everything has a value.
    #[test]
    fn the_disk_of_a_domain_that_runs_is_said_as_it_was_configured() {
        let running = disk(json!({
            "pdev_path": "/i/a.raw", "vdev": "xvda", "backend": "qdisk", "format": "raw", "readwrite": 1,
            "discard_enable": "True", "colo_enable": "False", "colo_restore_enable": "False",
            "trusted": "True", "transport": "unknown", "specification": "xen",
        }));
        assert_eq!(
            specification_of(&running).unwrap(),
            "\"vdev=xvda,format=raw,access=rw,backendtype=qdisk,discard,target=/i/a.raw\""
        );
        for (key, value) in [("colo_enable", "True"), ("trusted", "False")] {
            let mut other = running.clone();
            other.other.insert(key.into(), value.into());
            assert!(specification_of(&other).is_err(), "{key}");
        }
    }

    #[test]
    fn what_cannot_be_said_is_refused_and_not_dropped() {
        let with = |key: &str, value: Value| {
            let mut disk = disk(json!({ "vdev": "xvda", "pdev_path": "/i/a", "format": "raw" }));
            disk.other.insert(key.into(), value);
            specification(&disk, None)
        };
        assert!(with("colo_host", "x".into()).is_err());
        assert!(with("transport", "mmio".into()).is_err());
        assert!(with("script", "a\"b".into()).is_err());
        assert!(with("script", "block-x".into()).is_ok());
    }
}
