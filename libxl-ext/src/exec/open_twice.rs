//! Images that a domain's QEMU has open twice, for an emulated disk beside the PV one.

use super::perform::Performer;
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::DiskTarget;
use crate::model::domain::DomainState;
use crate::port::{BlockNode, DomainView, is_open_twice};
use std::time::{Duration, Instant};

/// How long a guest that boots, or goes on after a restore, may take to have its emulated disks unplugged. Under
/// emulation it takes some seconds.
const UNPLUG_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 60 });

impl Performer<'_> {
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
            let shared = disks.iter().find(|disk| {
                nodes
                    .as_ref()
                    .is_some_and(|nodes| is_open_twice(nodes, &disk.image))
            });
            let Some(disk) = shared.filter(|_| view.state == DomainState::Running) else {
                return Ok(Some((view, nodes)));
            };
            if Instant::now() >= deadline {
                return Err(Error::new(
                    ErrorKind::DomainState,
                    format!(
                        "the domain's QEMU has {} open twice for {}, as an emulated disk and as a PV disk",
                        disk.image.display(),
                        disk.vdev
                    ),
                )
                .hint("wait until the guest's PV drivers have taken over, or pause the domain"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
