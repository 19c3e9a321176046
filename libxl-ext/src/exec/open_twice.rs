//! Images that a domain's QEMU has open twice, for an emulated disk beside the PV one.

use super::perform::Performer;
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::DiskTarget;
use crate::model::domain::{DomainLife, DomainState};
use crate::port::{BlockNode, DomainView, is_open_twice};
use std::time::{Duration, Instant};

/// How long a guest that boots, or goes on after a restore, may take to have its emulated disks unplugged. After a
/// restore it takes some seconds under emulation.
const UNPLUG_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 60 });

impl Performer<'_> {
    /// A guest that has not unplugged its emulated disks may write by either node of an image. What one of them
    /// holds in memory would not fit the image once the other one has made a snapshot in it.
    pub(super) fn refuse_if_open_twice(
        &self,
        life: DomainLife,
        disks: &[DiskTarget],
    ) -> Result<()> {
        let nodes = self.ports.block.nodes(life)?;
        match open_twice(&nodes, disks) {
            None => Ok(()),
            Some(disk) => Err(refusal(ErrorKind::Unsupported, disk).hint(
                "a snapshot needs a guest whose PV drivers have taken over all disks: wait until it has booted",
            )),
        }
    }

    /// The domain of the plan's name with the nodes of its QEMU, once the disks can be changed through them: while the
    /// guest runs, each image has to be open by one node. `None` for the nodes if QEMU cannot be reached.
    pub(super) fn changeable_nodes(
        &self,
        disks: &[DiskTarget],
    ) -> Result<Option<(DomainView, Option<Vec<BlockNode>>)>> {
        let deadline = Instant::now() + UNPLUG_LIMIT;
        loop {
            let Some(view) = self.find_by_name()? else {
                return Ok(None);
            };
            let nodes = self.ports.block.nodes(view.life).ok();
            let shared = nodes.as_deref().and_then(|nodes| open_twice(nodes, disks));
            let Some(disk) = shared.filter(|_| view.state == DomainState::Running) else {
                return Ok(Some((view, nodes)));
            };
            if Instant::now() >= deadline {
                return Err(refusal(ErrorKind::DomainState, disk).hint(
                    "wait until the guest's PV drivers have taken over, or pause the domain",
                ));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn open_twice<'a>(nodes: &[BlockNode], disks: &'a [DiskTarget]) -> Option<&'a DiskTarget> {
    disks.iter().find(|disk| is_open_twice(nodes, &disk.image))
}

fn refusal(kind: ErrorKind, disk: &DiskTarget) -> Error {
    Error::new(
        kind,
        format!(
            "the domain's QEMU has {} open twice for {}, as an emulated disk and as a PV disk",
            disk.image.display(),
            disk.vdev
        ),
    )
}
