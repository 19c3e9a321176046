//! Temporary.
use crate::model::disk::DeviceDisk;
use serde::{Deserialize, Serialize};
/// x
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DomainSnapshot {
    /// x
    pub name: Option<String>,
    /// x
    pub description: Option<String>,
    /// x
    pub creation_time: u64,
    /// x
    pub memory: bool,
    /// x
    pub memory_file: Option<String>,
    /// x
    pub disks: Vec<DiskSnapshot>,
}
/// x
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskSnapshot {
    /// x
    pub disk: DeviceDisk,
    /// x
    pub name: Option<String>,
    /// x
    pub external: bool,
    /// x
    pub external_sn: DeviceDisk,
}
