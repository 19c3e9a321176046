//! Repairs: what mends a part of what was found, and cannot lose anything. Each of them looks first, and doing
//! it again changes nothing.

use crate::error::{Error, Result};
use crate::event::Observer;
use crate::memory::packed::Traced;
use crate::model::name::SnapshotId;
use crate::model::record::DomainRecord;
use crate::store::{DomainLock, DomainStore, absent_is_fine, atomic};
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// One thing that is done.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "repair", rename_all = "snake_case")]
pub enum Repair {
    /// A damaged record stays under another name.
    KeepDamaged {
        /// The new name.
        kept_as: Box<Path>,
    },
    /// The record is replaced by one that fits.
    WriteRecord {
        /// The new one.
        record: Box<DomainRecord>,
        /// How many snapshots it has.
        snapshots: usize,
    },
    /// The copies of what the record says are written again.
    WriteCopies,
    /// A file goes that an operation left which did not end.
    RemoveTemporary {
        /// The file.
        path: Box<Path>,
    },
    /// The packs go that no memory image needs.
    CollectPacks,
    /// The directory of a snapshot goes that nothing names and that holds no memory image.
    RemoveDirectory {
        /// The snapshot.
        id: SnapshotId,
    },
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeepDamaged { kept_as } => {
                write!(f, "keep the damaged record as {}", kept_as.display())
            }
            Self::WriteRecord { snapshots, .. } => {
                write!(f, "write a record of {snapshots} snapshots")
            }
            Self::WriteCopies => f.write_str("write the copies of what the record says"),
            Self::RemoveTemporary { path } => write!(f, "remove {}", path.display()),
            Self::CollectPacks => f.write_str("remove the packs that no memory image needs"),
            Self::RemoveDirectory { id } => write!(f, "remove the directory {id}"),
        }
    }
}

/// Does what the repairs say. The lock says that nobody else works on the domain.
///
/// # Errors
/// That of the first repair that fails. Those before it are done, and doing all of them again goes on.
pub(crate) fn perform(
    repairs: &[Repair],
    store: &DomainStore,
    _lock: &DomainLock,
    observer: &dyn Observer,
) -> Result<()> {
    repairs.iter().try_for_each(|repair| {
        tracing::info!("domain '{}': {repair}", store.name());
        observer.step(&repair.to_string());
        match repair {
            Repair::KeepDamaged { kept_as } => keep(&store.record_path(), kept_as),
            Repair::WriteRecord { record, .. } => store.save(record),
            Repair::WriteCopies => {
                store.write_copies(&store.load()?)?;
                atomic::sync_directory(store.directory())
            }
            Repair::RemoveTemporary { path } => remove(path),
            Repair::CollectPacks => collect_packs(store),
            Repair::RemoveDirectory { id } => store.remove_snapshot_directory(*id),
        }
    })
}

/// Looks again: what is needed is not taken from what was found.
fn collect_packs(store: &DomainStore) -> Result<()> {
    let traced = Traced::needs(&store.packed_images()?)?;
    traced.collect(&store.packs_directory()).map(drop)
}

/// A second name for the file: the first one is not free before something whole takes it.
fn keep(path: &Path, kept_as: &Path) -> Result<()> {
    let failed = |error| Error::io(format!("keep {}", path.display()), error);
    match std::fs::hard_link(path, kept_as) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked.map_err(failed),
    }?;
    atomic::sync_parent(path)
}

fn remove(path: &Path) -> Result<()> {
    absent_is_fine(std::fs::remove_file(path))
        .map_err(|error| Error::io(format!("remove {}", path.display()), error))?;
    atomic::sync_parent(path)
}
