//! Plain data and its rules: names, disks, the snapshot tree. Nothing here does I/O.

pub(crate) mod below;
pub(crate) mod configuration;
pub mod disk;
pub mod domain;
pub mod last_write;
pub mod layer;
pub mod name;
pub mod process;
pub mod pull;
pub(crate) mod qcow2;
pub mod record;
pub mod replica;
pub mod replication;
pub mod tree;
