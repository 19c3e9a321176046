//! The framework for replication: what is replicated registers, and is started, checkpointed, asked for
//! errors and stopped together, as one set.
//!
//! It follows QEMU's replication interfaces (`replication.h` of the series "Block replication for continuous
//! checkpoints"), where a replicated block device is a `ReplicationState` with `ReplicationOps`. How
//! something is replicated is its own affair ([`ReplicationOps`]); which calls make sense when, and that
//! a set never runs in part, is the registry's ([`Registry`]).
//!
//! ```text
//!                 start                      stop(failover)
//!   Stopped ------------------> Running ----------------------> FailedOver -> remove
//!      ^                           |                                ^
//!      |  stop, or a start of      | a stop fails                   | stop(failover),
//!      |  another that fails       v                                | again
//!      +-------------------- Uncertain -----------------------------+
//!          stop, again
//! ```
//!
//! | | QEMU's header | here |
//! |---|---|---|
//! | order | that of a list, not promised | that in which the states were made |
//! | a start fails | the others go on | those that were started are stopped, the last one first |
//! | a stop fails | the rest is not stopped | all are stopped; the same stop again stops what failed |
//! | a checkpoint or `get_error` fails | the rest is not asked | the same |
//! | nothing is registered | success | refused: nobody is to believe that something is replicated |

pub mod keeper;
mod link;
mod ops;
mod pair;
mod protocol;
pub mod qdisk;
mod registry;
mod relay;
mod remote;
mod replica;
mod serve;
#[cfg(test)]
mod tests;
mod transfer;
mod tunnel;

pub use crate::types::ReplicationMode as Mode;
pub use ops::ReplicationOps;
pub use pair::{Key, Pair, Pairs, TEXT_MAX};
pub use protocol::Seen;
pub use registry::{Phase, Registry, StateId};
pub use remote::ask_secondary;
pub(crate) use remote::close_secondary;
pub use replica::{FailedOver, RUN_DIRECTORY, Replicas};
pub use serve::Server;
