//! Snapshots of Xen domains, memory and disks, over libxl and the qdisk backend.
//!
//! [`snapshot::Host`] is the way in. `docs/ARCHITECTURE.md` shows how the modules work together.

pub mod agent;
pub mod bundle;
pub mod check;
pub mod diff;
pub mod error;
pub mod event;
pub mod exec;
pub mod ffi;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod memory;
pub mod model;
pub mod observe;
pub mod plan;
pub mod port;
pub mod replication;
pub mod snapshot;
pub mod store;
// A union of which one value has a member matches all others at once.
#[allow(clippy::match_wildcard_for_single_variants)]
pub mod types;
pub mod verify;

pub use error::{Error, ErrorKind, Result};
