//! What the secondary's QEMU opens for a disk, in the words of `blockdev-add`. Every format is said: a guest can write
//! what looks like the header of another one.

use crate::error::Result;
use crate::model::disk::DiskTarget;
use crate::model::layer::Backing;
use crate::model::replication::as_text;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The images that keep what is written on the secondary, and what the primary overwrites, both since the last checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Buffers {
    /// What is written on the secondary itself.
    pub(super) active: PathBuf,
    /// What the primary has overwritten.
    pub(super) hidden: PathBuf,
}

impl Buffers {
    /// Those of a disk, in a directory that is the secondary's alone.
    pub(super) fn of(disk: &DiskTarget, directory: &Path) -> Self {
        let vdev = &disk.vdev;
        Self {
            active: directory.join(format!("active-{vdev}.qcow2")),
            hidden: directory.join(format!("hidden-{vdev}.qcow2")),
        }
    }

    pub(super) fn each(&self) -> [&Path; 2] {
        [&self.active, &self.hidden]
    }
}

/// The node of a secondary disk.
pub(super) fn disk_node(at: usize) -> String {
    format!("colo{at}")
}

/// The nodes of a disk, the ones below first. `at` tells the disks of a domain apart.
///
/// # Errors
/// If a path is not UTF-8.
pub(super) fn nodes(
    at: usize,
    disk: &Backing,
    protocol: &str,
    buffers: &Buffers,
) -> Result<[Value; 3]> {
    let (colo, repl, top) = (disk_node(at), format!("repl{at}"), format!("top{at}"));
    let buffer = |path: &Path, name: &str, backing: Value| -> Result<Value> {
        Ok(json!({
            "driver": "qcow2",
            "node-name": format!("{name}{at}"),
            "file": { "driver": "file", "filename": as_text(path)? },
            "backing": backing,
        }))
    };
    let hidden = buffer(&buffers.hidden, "hidden", json!(colo))?;
    let active = buffer(&buffers.active, "active", hidden)?;
    let mut image = json!({
        "driver": disk.format.driver(),
        "node-name": colo,
        "file": { "driver": protocol, "filename": as_text(&disk.image)? },
    });
    if disk.format == crate::model::disk::ImageFormat::Qcow2 {
        // It stands on nothing, whatever its header says.
        image["backing"] = Value::Null;
    }
    Ok([
        image,
        json!({
            "driver": "replication",
            "node-name": repl,
            "mode": "secondary",
            "top-id": top,
            "file": active,
        }),
        json!({
            "driver": "quorum",
            "node-name": top,
            "vote-threshold": 1,
            "read-pattern": "fifo",
            "children": [repl],
        }),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::disk::ImageFormat;

    #[test]
    fn every_image_and_format_of_the_graph_is_said() {
        let image = Path::new("/i/a").into();
        let mut disk = Backing {
            image,
            format: ImageFormat::Raw,
        };
        let target = DiskTarget {
            vdev: "xvdb".into(),
            image: disk.image.clone(),
            format: disk.format,
        };
        let buffers = Buffers::of(&target, Path::new("/b"));
        let [colo, repl, top] = nodes(1, &disk, "file", &buffers).unwrap();
        assert_eq!(
            colo,
            json!({
                "driver": "raw", "node-name": "colo1",
                "file": { "driver": "file", "filename": "/i/a" },
            })
        );
        let active = &repl["file"];
        assert_eq!(
            (&repl["mode"], &repl["top-id"]),
            (&json!("secondary"), &json!("top1"))
        );
        assert_eq!(active["file"]["filename"], "/b/active-xvdb.qcow2");
        assert_eq!(active["backing"]["driver"], "qcow2");
        assert_eq!(
            active["backing"]["file"]["filename"],
            "/b/hidden-xvdb.qcow2"
        );
        assert_eq!(active["backing"]["backing"], "colo1");
        assert_eq!(top["children"], json!(["repl1"]));

        disk.format = ImageFormat::Qcow2;
        let [colo, ..] = nodes(1, &disk, "file", &buffers).unwrap();
        assert_eq!(colo["backing"], Value::Null);
        assert!(colo.as_object().unwrap().contains_key("backing"));
    }
}
