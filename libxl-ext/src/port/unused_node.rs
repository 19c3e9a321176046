//! Nodes of QEMU's that nothing reads through any more, but that are still open.
//!
//! The node that a disk began with belongs to the monitor: QEMU's own xen-block device adds it by
//! `blockdev-add` (hw/block/xen-block.c, `xen_block_blockdev_add`), so it survives a job that takes it out of
//! the chain. When the disk is detached the device deletes the node by its name, and fails half-way if there is none
//! of that name.

use super::qmp_wire::{Command, Monitor, is_refusal};
use crate::error::Result;
use serde::Serialize;
use serde_json::{Value, json};

/// Closes a node.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct BlockdevDel<'a> {
    pub(super) node_name: &'a str,
}

impl Command for BlockdevDel<'_> {
    const NAME: &'static str = "blockdev-del";
    type Answer = Value;
}

/// Adds a node, which is said in QEMU's own words.
#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct BlockdevAdd<'a>(pub(super) &'a Value);

impl Command for BlockdevAdd<'_> {
    const NAME: &'static str = "blockdev-add";
    type Answer = Value;
}

/// Closes the image of a node that is no part of a chain any more, and leaves an empty node of its name for
/// the device that will delete it. Returns whether it is closed: QEMU does not while a device, a job or another node
/// uses the node.
///
/// # Errors
/// If QEMU cannot be reached, or does not take the empty node.
pub(super) fn close(monitor: &mut Monitor, node_name: &str) -> Result<bool> {
    match monitor.run(&BlockdevDel { node_name }) {
        Err(error) if is_refusal(&error) => return Ok(false),
        deleted => deleted?,
    };
    let empty = empty(node_name);
    monitor.run(&BlockdevAdd(&empty)).map(|_| true)
}

/// A node without an image.
fn empty(node_name: &str) -> Value {
    json!({ "driver": "null-co", "node-name": node_name, "read-only": true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_node_is_written_as_qemu_reads_it() {
        let empty = empty("xvda-qcow2");
        assert_eq!(
            serde_json::to_value(BlockdevAdd(&empty)).unwrap(),
            serde_json::json!({ "driver": "null-co", "node-name": "xvda-qcow2", "read-only": true })
        );
        assert_eq!(
            serde_json::to_value(&BlockdevDel { node_name: "n" }).unwrap(),
            serde_json::json!({ "node-name": "n" })
        );
    }
}
