//! Copies of what the record says, of which a damaged record is made anew: one for each snapshot, in its own
//! directory, and one of the rest. The record alone is believed as long as it is whole; the copies are
//! written after it, so they may lag by one commit.

use super::{DomainStore, Envelope, atomic};
use crate::error::{Error, ErrorKind, Result};
use crate::model::layer::Layer;
use crate::model::name::SnapshotId;
use crate::model::record::{DomainRecord, LeftOver, ManagedImage, SnapshotRecord};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What the record says of one snapshot: the file `snapshot` in its directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotCopy {
    /// Name of the domain.
    pub domain: String,
    /// The commit that it was written after.
    pub generation: u64,
    /// The snapshot.
    pub snapshot: SnapshotRecord,
}

/// What the record says beside its snapshots: the file `present` of the domain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PresentCopy {
    /// Name of the domain.
    pub domain: String,
    /// The commit that it was written after.
    pub generation: u64,
    /// As in the record.
    pub current: Option<SnapshotId>,
    /// As in the record.
    pub layers: Vec<Layer>,
    /// As in the record.
    pub left_over: Vec<LeftOver>,
    /// As in the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedImage>,
}

impl PresentCopy {
    fn of(record: &DomainRecord) -> Self {
        Self {
            domain: record.domain.clone(),
            generation: record.generation,
            current: record.current,
            layers: record.layers.clone(),
            left_over: record.left_over.clone(),
            managed: record.managed.clone(),
        }
    }

    /// Whether it says what the record does.
    pub(crate) fn says_what(&self, record: &DomainRecord) -> bool {
        let now = Self::of(record);
        *self
            == Self {
                generation: self.generation,
                ..now
            }
    }
}

impl SnapshotCopy {
    /// Whether it says what the record does.
    pub(crate) fn says_what(&self, domain: &str, snapshot: &SnapshotRecord) -> bool {
        self.domain == domain && self.snapshot == *snapshot
    }
}

impl DomainStore {
    /// The copy of what the record says of one snapshot.
    pub(crate) fn snapshot_copy_path(&self, id: SnapshotId) -> PathBuf {
        self.snapshot_directory(id).join("snapshot")
    }

    /// The copy of what it says beside its snapshots.
    pub(crate) fn present_path(&self) -> PathBuf {
        self.directory().join("present")
    }

    /// Reads the copy of a snapshot; `None` if there is none.
    ///
    /// # Errors
    /// As [`DomainStore::load`].
    pub(crate) fn snapshot_copy(&self, id: SnapshotId) -> Result<Option<SnapshotCopy>> {
        let path = self.snapshot_copy_path(id);
        let Some(bytes) = atomic::read_own(&path)? else {
            return Ok(None);
        };
        let copy: SnapshotCopy = Envelope::SNAPSHOT.open(&bytes, &path)?;
        if copy.snapshot.id != id || copy.domain != self.name() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{} belongs to another snapshot", path.display()),
            ));
        }
        Ok(Some(copy))
    }

    /// Reads the copy of the rest; `None` if there is none.
    ///
    /// # Errors
    /// As [`DomainStore::load`].
    pub(crate) fn present_copy(&self) -> Result<Option<PresentCopy>> {
        let path = self.present_path();
        let Some(bytes) = atomic::read_own(&path)? else {
            return Ok(None);
        };
        let copy: PresentCopy = Envelope::PRESENT.open(&bytes, &path)?;
        if copy.domain != self.name() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{} belongs to another domain", path.display()),
            ));
        }
        Ok(Some(copy))
    }

    /// Writes the copies that do not say what the record says. A snapshot whose directory is not there, since
    /// it is being deleted, gets none. The flush of the domain's directory is left to the caller.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] or [`ErrorKind::NoSpace`].
    pub(crate) fn write_copies(&self, record: &DomainRecord) -> Result<()> {
        let present = self.present_copy();
        if !matches!(present, Ok(Some(present)) if present.says_what(record)) {
            let sealed = Envelope::PRESENT.seal(&PresentCopy::of(record))?;
            atomic::replace_but_for_flush(&self.present_path(), &sealed)?;
        }
        for snapshot in &record.snapshots {
            let directory = self.snapshot_directory(snapshot.id);
            let is_there = directory.symlink_metadata().is_ok_and(|it| it.is_dir());
            let copy = self.snapshot_copy(snapshot.id);
            let says_it =
                matches!(copy, Ok(Some(copy)) if copy.says_what(&record.domain, snapshot));
            if is_there && !says_it {
                let sealed = Envelope::SNAPSHOT.seal(&SnapshotCopy {
                    domain: record.domain.clone(),
                    generation: record.generation,
                    snapshot: snapshot.clone(),
                })?;
                atomic::replace(&self.snapshot_copy_path(snapshot.id), &sealed)?;
            }
        }
        Ok(())
    }
}
