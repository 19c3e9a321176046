//! `snapshot-diff`: what changed from one snapshot to another, in the configuration, on the disks, in the memory.

mod configuration;
mod disk;
mod pages;

#[cfg(test)]
mod tests;

pub use configuration::Changed;
pub use disk::DiskDifference;
pub use pages::PageDifference;

use crate::error::{Error, ErrorKind, Result};
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
    /// Values of the domain's configuration; none where one of the two has no memory image.
    pub configuration: Option<Vec<Changed>>,
    /// Each disk that one of the two holds.
    pub disks: Vec<DiskDifference>,
    /// Pages of memory; none where one of the two has no memory image.
    pub memory: Option<PageDifference>,
}

/// Compares. All of the disks and memory images is read, and verified on the way.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for a snapshot that is not what it was; what the ports report.
pub(crate) fn diff(
    ports: &Ports,
    inventory: &Inventory,
    store: &DomainStore,
    [from, to]: [&SnapshotRecord; 2],
    observer: &dyn Observer,
) -> Result<Difference> {
    for snapshot in [from, to] {
        for proof in &snapshot.disks {
            let own = verify::of_disk(inventory, snapshot, proof);
            let chain = verify::chain(inventory, &proof.target.image);
            if let Some(what) = own.into_iter().chain(chain).next() {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("snapshot '{}' is not what it was: {what}", snapshot.name()),
                ));
            }
        }
    }
    let disks = disk::compare(ports, &inventory.record, [from, to], observer)?;
    let read = |snapshot: &SnapshotRecord| match &snapshot.memory {
        None => Ok(None),
        Some(proof) => {
            observer.step(&format!("read the memory of '{}'", snapshot.name()));
            Memory::read(&store.memory_path(snapshot.id), proof, observer).map(Some)
        }
    };
    let (configuration, memory) = match (read(from)?, read(to)?) {
        (Some(from), Some(to)) => (
            Some(configuration::compare(
                &from.configuration,
                &to.configuration,
            )?),
            Some(pages::compare(&from.pages, &to.pages)),
        ),
        _ => (None, None),
    };
    Ok(Difference {
        configuration,
        disks,
        memory,
    })
}
