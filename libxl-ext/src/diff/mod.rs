//! `snapshot-diff`: what changed from one snapshot to another, in the configuration, on the disks, in the memory.

mod configuration;
mod disk;
mod pages;

#[cfg(test)]
mod tests;

pub use configuration::Changed;
pub use disk::DiskDifference;
pub(crate) use disk::checksum;
pub use pages::PageDifference;

use crate::error::Result;
use crate::event::Observer;
use crate::model::record::SnapshotRecord;
use crate::observe::Inventory;
use crate::port::Ports;
use crate::store::DomainStore;
use crate::verify;
use pages::Memory;
use serde::Serialize;

/// What differs between two snapshots.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Values of the domain's configuration; none where nothing is recorded of one of the two.
    pub configuration: Option<Vec<Changed>>,
    /// Each disk that one of the two holds.
    pub disks: Vec<DiskDifference>,
    /// Pages of memory; none where one of the two has no memory image.
    pub memory: Option<PageDifference>,
}

/// Compares. All of the disks and memory images is read, and verified on the way.
///
/// # Errors
/// [`crate::ErrorKind::Corrupt`] for a snapshot that is not what it was; what the ports report.
pub(crate) fn diff(
    ports: &Ports,
    inventory: &Inventory,
    store: &DomainStore,
    [from, to]: [&SnapshotRecord; 2],
    observer: &dyn Observer,
) -> Result<Difference> {
    for snapshot in [from, to] {
        verify::require_disks_as_recorded(inventory, snapshot)?;
    }
    let disks = disk::compare(ports, &inventory.record, [from, to], observer)?;
    let read = |snapshot: &SnapshotRecord| match &snapshot.memory {
        None => Ok(None),
        Some(proof) => {
            observer.step(&format!("read the memory of '{}'", snapshot.name()));
            Memory::read(&store.kept_memory(snapshot), proof, observer).map(Some)
        }
    };
    // That of the disks alone is in the record.
    let recorded = |snapshot: &SnapshotRecord| {
        let configuration = snapshot.configuration.as_ref();
        configuration.map(ToString::to_string)
    };
    let (from_memory, to_memory) = (read(from)?, read(to)?);
    let configuration_of = |snapshot, memory: &Option<Memory>| {
        let saved = memory.as_ref().map(|memory| memory.configuration.clone());
        saved.or_else(|| recorded(snapshot))
    };
    let configurations = configuration_of(from, &from_memory).zip(configuration_of(to, &to_memory));
    let configuration = configurations
        .map(|(from, to)| configuration::compare(&from, &to))
        .transpose()?;
    let memory = from_memory
        .zip(to_memory)
        .map(|(from, to)| pages::compare(&from.pages, &to.pages));
    Ok(Difference {
        configuration,
        disks,
        memory,
    })
}
