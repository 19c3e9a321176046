//! Plain data and its rules: names, disks, the snapshot tree. Nothing here does I/O.

pub(crate) mod configuration;
pub mod disk;
pub mod domain;
pub mod layer;
pub mod name;
pub mod process;
pub mod record;
pub mod tree;
