//! What is remembered of the replication of a domain: a file of its own, since the record of its snapshots changes under
//! the domain's lock alone, and at other times.

use super::{DomainStore, Envelope, Store, absent_is_fine, atomic};
use crate::error::{Error, Result};
use crate::model::replica::ReplicationRecord;
use std::path::{Path, PathBuf};

/// The file's name in a domain's directory.
const FILE: &str = "replication";

/// The directory, beside it, of a secondary's images and buffers.
const REPLICA: &str = "replica";

/// The directory in that, with memory images and packs as in a domain's directory.
const MEMORY: &str = "memory";

impl Store {
    /// The directory of all.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is remembered of all domains, as far as there is something.
    ///
    /// # Errors
    /// If the store cannot be listed, or something in it not be read.
    pub(crate) fn replications(&self) -> Result<Vec<ReplicationRecord>> {
        let failed = |error| Error::io(format!("list {}", self.root.display()), error);
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if path.is_dir() {
                found.extend(read(&path.join(FILE))?);
            }
        }
        found.sort_by(|a, b| a.domain.cmp(&b.domain));
        Ok(found)
    }
}

impl DomainStore {
    /// Where that file is.
    pub(crate) fn replication_path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// Where a secondary has the images that it made, and what the primary overwrites.
    pub(crate) fn replica_directory(&self) -> PathBuf {
        self.directory.join(REPLICA)
    }

    /// Where a secondary has the memory of checkpoints: apart from the domain's own, which other operations tidy up.
    pub(crate) fn replica_memory(&self) -> DomainStore {
        DomainStore {
            name: self.name.clone(),
            directory: self.replica_directory().join(MEMORY),
        }
    }

    /// What is remembered of the domain's replication; none if it was never replicated.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] and [`ErrorKind::NewerVersion`] for a file that cannot be believed, [`ErrorKind::Io`].
    pub(crate) fn replication(&self) -> Result<Option<ReplicationRecord>> {
        let path = self.replication_path();
        let record = read(&path)?;
        if let Some(record) = &record {
            self.require_own(&path, &record.domain)?;
        }
        Ok(record)
    }

    /// Remembers it, in one step that a crash cannot split.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] or [`ErrorKind::NoSpace`]; what was remembered is then still there.
    pub(crate) fn remember_replication(&self, record: &ReplicationRecord) -> Result<()> {
        self.ensure_directory()?;
        atomic::replace(
            &self.replication_path(),
            &Envelope::REPLICATION.seal(record)?,
        )
    }

    /// Remembers nothing of it any more.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub(crate) fn forget_replication(&self) -> Result<()> {
        let path = self.replication_path();
        absent_is_fine(std::fs::remove_file(&path))
            .map_err(|error| Error::io(format!("remove {}", path.display()), error))?;
        atomic::sync_directory(&self.directory)
    }
}

fn read(path: &Path) -> Result<Option<ReplicationRecord>> {
    let bytes = atomic::read_own(path)?;
    bytes
        .map(|bytes| Envelope::REPLICATION.open(&bytes, path))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::model::replica::{Replica, ReplicaState, Role};

    #[test]
    fn what_is_remembered_is_found_and_belongs_to_the_domain() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("store"));
        assert_eq!(store.replications().unwrap(), []);
        let record = |domain: &str, generation| ReplicationRecord {
            domain: domain.into(),
            generation,
            role: Role::Secondary(Replica::of_nothing(ReplicaState::FailingOver { at: 7 })),
        };
        let (g, h) = (store.domain("g/1"), store.domain("h"));
        assert_eq!(g.replication().unwrap(), None);
        assert!(!g.exists());
        h.remember_replication(&record("h", 1)).unwrap();
        g.remember_replication(&record("g/1", 2)).unwrap();
        assert!(g.exists(), "who starts the domain has to look at it");
        assert_eq!(g.replication().unwrap(), Some(record("g/1", 2)));
        let all = store.replications().unwrap();
        assert_eq!(all, [record("g/1", 2), record("h", 1)]);
        std::fs::copy(g.replication_path(), h.replication_path()).unwrap();
        assert_eq!(h.replication().unwrap_err().kind(), ErrorKind::Corrupt);
        let bytes = Envelope::REPLICATION.seal(&record("h", 3)).unwrap();
        let version = "libxl-ext replication ".len();
        super::super::refuses_every_changed_byte(&bytes, &[version], |bytes| {
            Envelope::REPLICATION.open::<ReplicationRecord>(bytes, Path::new("/x"))
        });
    }
}
