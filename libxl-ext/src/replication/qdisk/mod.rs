//! Replication of the disks of a qdisk backend: what the guest writes goes to a second copy of each disk, which can be
//! set back to the last checkpoint.
//!
//! ```text
//!   the domain's QEMU                        the secondary's QEMU (a sidecar, without a machine)
//!
//!   guest                                       top<n>   quorum of one
//!     |                                           |
//!   [mirror, write-blocking] --- NBD --->       repl<n>  replication
//!     |                            |              |
//!   disk                           |            active   what is written here
//!                                  |              |
//!                                  |            hidden   what the primary has overwritten since the checkpoint
//!                                  v              |
//!                                export  ---->  colo<n>  the secondary disk
//! ```
//!
//! [`Secondary`] is all disks of a domain, since QEMU's commands for it are for a whole process: one checkpoint is of
//! all of them. [`PrimaryDisk`] is one disk, so a set of them starts as one by the [`Registry`]. They are two sets,
//! since they are on two sides, in this order:
//!
//! | | secondary | primary |
//! |---|---|---|
//! | start | it listens | everything is copied, while the guest runs; then each write goes to both |
//! | [`checkpoint`] | the present is what it keeps, from the first one on | nothing is under way to the secondary |
//! | failover | the primary is cut off, the disk set back to the last checkpoint and closed | |
//! | stop | the same, but with nothing to keep it ends | the secondary is cut off |
//!
//! What the secondary has before the first checkpoint is of no instant, and it does not fail over then.

mod checkpoint;
mod graph;
mod primary;
mod secondary;
#[cfg(test)]
mod tests;

pub use crate::model::replication::{Limits, NbdAddress};
pub(super) use checkpoint::both;
pub use checkpoint::{DomainGuest, Each, Guest, GuestMemory, MemoryGuest, checkpoint};
pub use primary::{PrimaryDisk, Pulse, register};
pub(crate) use primary::{end_mirrors, length_of};
pub(crate) use secondary::Stage;
pub(super) use secondary::wrong_mode;
pub use secondary::{Secondary, end_left_over};

#[cfg(doc)]
use super::Registry;
