//! What a kind of replication has to be able to do.

use super::Mode;
use crate::error::Result;

/// One thing that is replicated, such as a disk: `ReplicationOps` of QEMU's `replication.h`, with what its
/// `opaque` points to.
///
/// [`Registry`](super::Registry) never makes two calls at the same time, nor one that makes no sense in its
/// [`Phase`](super::Phase); each may come on another thread. While one runs, the registry takes no calls.
pub trait ReplicationOps: Send {
    /// Begins to replicate. The guest does not run meanwhile, which the caller sees to, and the secondary's
    /// start comes before the primary's.
    ///
    /// # Errors
    /// If it cannot. Nothing of it may be left running then: no stop follows.
    fn start(&mut self, mode: Mode) -> Result<()>;

    /// Makes the present the state that both sides have in common. It comes after all of the guest's state
    /// has been transferred to the secondary.
    ///
    /// # Errors
    /// If it was not made, or if nobody can say.
    fn checkpoint(&mut self) -> Result<()>;

    /// Tells whether an error has occurred since the start. It is `get_error` in QEMU, and is asked after a
    /// failover too, which may go on in the background.
    ///
    /// # Errors
    /// The one that occurred.
    fn error(&mut self) -> Result<()>;

    /// Ends the replication; with `failover` so that the guest of this side goes on alone. Without, the guest
    /// does not run meanwhile, which the caller sees to.
    ///
    /// # Errors
    /// If it does not end, or if nobody can say. The same stop may come again, so it has to bear that it was
    /// done in part.
    fn stop(&mut self, failover: bool) -> Result<()>;
}
