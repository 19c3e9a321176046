//! The snapshots on disk: one directory per domain, 0700, owned by root.
//!
//! ```text
//! <root>/<domain, escaped>/lock           taken by every command that changes something
//!                         /domain         the record: all snapshots of the domain
//!                         /journal        what an operation in progress intended and did
//!                         /present        a copy of what the record says beside its snapshots
//!                         /replication    what this host is to the domain's replication
//!                         /replica/       images and buffers of a secondary
//!                         /packs/<id>     pages of memory that were new with a snapshot
//!                         /<id>/memory    a memory image
//!                         /<id>/snapshot  a copy of what the record says of the snapshot
//! ```
//! `docs/store-format.md` specifies the bytes.

pub(crate) mod atomic;
mod copies;
mod envelope;
mod lock;
mod replication;
pub(crate) mod room;

pub use copies::{PresentCopy, SnapshotCopy};
#[cfg(test)]
pub(crate) use envelope::refuses_every_changed_byte;
pub use envelope::{Envelope, FORMAT_VERSION};
pub use lock::{DomainLock, LockWait};

use crate::error::{Error, ErrorKind, Result};
use crate::memory::packed;
use crate::memory::{self, Kept};
use crate::model::name::{SnapshotId, domain_directory};
use crate::model::record::{DomainRecord, SnapshotRecord};
use rustix::fs::Mode;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Where snapshots are kept unless the user says otherwise.
pub const DEFAULT_ROOT: &str = "/var/lib/xen/libxl-ext";

/// Files of ours: readable and writable by root alone, since they hold guests' memory.
pub(crate) const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// The journal's name in a domain's directory.
pub(crate) const JOURNAL: &str = "journal";

/// All domains' snapshots below one directory.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store below `root`. Nothing is created before something is written.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directories of the domains of which something is kept, each with its record, if there is one.
    pub(crate) fn records(&self) -> impl Iterator<Item = (PathBuf, Result<Option<DomainRecord>>)> {
        records(&self.root).flatten()
    }

    /// Bytes that can still be written below it.
    pub(crate) fn free_bytes(&self) -> Result<u64> {
        free_bytes(&self.root)
    }

    /// Whether nothing is kept for anybody.
    pub fn is_empty(&self) -> bool {
        match fs::read_dir(&self.root) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// The part of the store that belongs to one domain.
    pub fn domain(&self, name: &str) -> DomainStore {
        DomainStore {
            name: name.to_owned(),
            directory: self.root.join(domain_directory(name)),
        }
    }
}

/// One domain's part of the store.
#[derive(Clone, Debug)]
pub struct DomainStore {
    name: String,
    directory: PathBuf,
}

impl DomainStore {
    /// The domain's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory that holds everything of the domain.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory of one snapshot.
    pub fn snapshot_directory(&self, id: SnapshotId) -> PathBuf {
        self.directory.join(id.to_string())
    }

    /// The memory image of one snapshot.
    pub fn memory_path(&self, id: SnapshotId) -> PathBuf {
        self.snapshot_directory(id).join("memory")
    }

    /// The memory image of a recorded snapshot, here or where the user wanted it.
    pub fn memory_of(&self, snapshot: &SnapshotRecord) -> PathBuf {
        match &snapshot.snapshot.memory_file {
            Some(file) => file.into(),
            None => self.memory_path(snapshot.id),
        }
    }

    /// Where the pages of packed memory images are.
    pub fn packs_directory(&self) -> PathBuf {
        self.directory.join("packs")
    }

    /// The memory image of a recorded snapshot, with the packs that it may need.
    pub(crate) fn kept_memory(&self, snapshot: &SnapshotRecord) -> Kept {
        self.kept(self.memory_of(snapshot))
    }

    /// The memory image in the store, be it of a snapshot that is not recorded.
    pub(crate) fn kept_in_store(&self, id: SnapshotId) -> Kept {
        self.kept(self.memory_path(id))
    }

    fn kept(&self, image: PathBuf) -> Kept {
        Kept {
            image,
            packs: self.packs_directory(),
        }
    }

    /// Every packed memory image that is there, recorded or not: what these need, nobody removes.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if they cannot be listed. An image that cannot be read is among them.
    pub(crate) fn packed_images(&self) -> Result<Vec<(SnapshotId, PathBuf)>> {
        let mut images = Vec::new();
        for id in self.memory_directories()? {
            let path = self.memory_path(id);
            // One that is damaged in its beginning may need packs.
            if atomic::is_there(&path) && !memory::is_stock(&path).unwrap_or(false) {
                images.push((id, path));
            }
        }
        images.sort();
        Ok(images)
    }

    /// The directories of memory images that are there, whatever is in them.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if they cannot be listed.
    pub(crate) fn memory_directories(&self) -> Result<Vec<SnapshotId>> {
        let failed = |error| Error::io(format!("list {}", self.directory.display()), error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            found.extend(SnapshotId::of_file_name(&name));
        }
        Ok(found)
    }

    /// The memory image of one snapshot while it is being written.
    pub fn partial_memory_path(&self, id: SnapshotId) -> PathBuf {
        self.snapshot_directory(id).join("memory.partial")
    }

    /// The journal of an operation in progress.
    pub fn journal_path(&self) -> PathBuf {
        self.directory.join(JOURNAL)
    }

    /// The record.
    pub(crate) fn record_path(&self) -> PathBuf {
        self.directory.join("domain")
    }

    /// Whether anything is kept for the domain.
    pub fn exists(&self) -> bool {
        atomic::is_there(&self.record_path())
            || self.has_journal()
            || atomic::is_there(&self.replication_path())
    }

    /// Whether an operation is in progress, or was interrupted.
    pub fn has_journal(&self) -> bool {
        atomic::is_there(&self.journal_path())
    }

    /// Reads the record; a domain of which nothing is kept has an empty one.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] and [`ErrorKind::NewerVersion`] for a file that is there and cannot be
    /// believed, [`ErrorKind::Io`] if it cannot be read. Absence is no error.
    pub fn load(&self) -> Result<DomainRecord> {
        match self.read()? {
            RecordFile::Absent => Ok(DomainRecord::new(&self.name)),
            RecordFile::Damaged(error) => Err(error),
            RecordFile::Whole(record) => {
                record.check()?;
                Ok(*record)
            }
        }
    }

    /// Reads the record as it was written, whether it makes sense or not.
    ///
    /// # Errors
    /// [`ErrorKind::NewerVersion`], [`ErrorKind::Corrupt`] for that of another domain, [`ErrorKind::Io`].
    pub(crate) fn read(&self) -> Result<RecordFile> {
        let path = self.record_path();
        let Some(bytes) = atomic::read_own(&path)? else {
            return Ok(RecordFile::Absent);
        };
        let record: DomainRecord = match Envelope::RECORD.open(&bytes, &path) {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                return Ok(RecordFile::Damaged(error.hint(
                    "`xl-ext snapshot-check --repair` makes it anew of what else is there",
                )));
            }
            opened => opened?,
        };
        self.require_own(&path, &record.domain)?;
        Ok(RecordFile::Whole(Box::new(record)))
    }

    /// Refuses a file that says that it is another domain's.
    fn require_own(&self, path: &Path, domain: &str) -> Result<()> {
        if domain == self.name {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "{} belongs to domain '{domain}', not to '{}'",
                path.display(),
                self.name
            ),
        ))
    }

    /// Replaces the record in one step that a crash cannot split.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] or [`ErrorKind::NoSpace`]; the old record is then still there.
    pub fn save(&self, record: &DomainRecord) -> Result<()> {
        record.check()?;
        self.ensure_directory()?;
        atomic::replace_but_for_flush(&self.record_path(), &Envelope::RECORD.seal(record)?)?;
        // The record is what counts: without room for its copies, the next commit writes them.
        if let Err(error) = self.write_copies(record) {
            tracing::warn!("copies of the record: {}", error.report());
        }
        // One for both files that are in it.
        atomic::sync_directory(&self.directory)
    }

    /// The records of the other domains, as far as they can be read.
    pub(crate) fn others(&self) -> Vec<DomainRecord> {
        let root = self.directory.parent();
        let records = root.into_iter().flat_map(records_below);
        records
            .filter(|record| record.domain != self.name)
            .collect()
    }

    /// The records of all domains, this one's too.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub(crate) fn all_records(&self) -> Result<Vec<DomainRecord>> {
        let root = self.directory.parent();
        let all = root.into_iter().flat_map(records);
        all.filter_map(|found| found.and_then(|(_, record)| record).transpose())
            .collect()
    }

    /// Creates the domain's directory if it is not there.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] or [`ErrorKind::NoSpace`].
    pub fn ensure_directory(&self) -> Result<()> {
        private_directory(&self.directory)
    }

    /// Where images are put that come from elsewhere, unless the user says otherwise.
    pub(crate) fn images_directory(&self) -> PathBuf {
        self.directory.join("images")
    }

    /// Creates the directory of one snapshot.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] or [`ErrorKind::NoSpace`].
    pub fn create_snapshot_directory(&self, id: SnapshotId) -> Result<()> {
        private_directory(&self.snapshot_directory(id))
    }

    /// Makes a memory image that was written completely durable, with the pack that was, and gives them their final
    /// names.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] or [`ErrorKind::NoSpace`], if what was written did not reach the disk.
    pub fn seal_memory(&self, id: SnapshotId) -> Result<()> {
        packed::seal(&self.packs_directory(), id)?;
        let (partial, path) = (self.partial_memory_path(id), self.memory_path(id));
        if !atomic::is_there(&partial) && atomic::is_there(&path) {
            return atomic::open_own(&path).map(drop);
        }
        atomic::sync_file(&partial)?;
        memory::forget(atomic::open_own(&partial)?);
        fs::rename(&partial, &path)
            .map_err(|error| Error::io(format!("rename {}", partial.display()), error))?;
        atomic::sync_directory(&self.snapshot_directory(id))
    }

    /// Removes the directory of one snapshot with the files of ours that are in it. Doing it again is
    /// no error.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], also when the directory holds a file that is not ours: it is left there.
    /// [`ErrorKind::Corrupt`] if something else stands in its place.
    pub fn remove_snapshot_directory(&self, id: SnapshotId) -> Result<()> {
        directory_or_nothing(&self.snapshot_directory(id))?;
        remove_temporaries_in(&self.snapshot_directory(id))?;
        for path in [
            self.partial_memory_path(id),
            self.memory_path(id),
            self.snapshot_copy_path(id),
        ] {
            absent_is_fine(fs::remove_file(&path))
                .map_err(|error| Error::io(format!("remove {}", path.display()), error))?;
        }
        let directory = self.snapshot_directory(id);
        absent_is_fine(fs::remove_dir(&directory))
            .map_err(|error| Error::io(format!("remove {}", directory.display()), error))?;
        if self.directory.exists() {
            atomic::sync_directory(&self.directory)
        } else {
            Ok(())
        }
    }

    /// Removes what a crash left of a file that was being replaced. For the holder of the lock alone.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn remove_temporaries(&self) -> Result<()> {
        remove_temporaries_in(&self.directory)
    }

    /// Bytes that can still be written below the store.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn free_bytes(&self) -> Result<u64> {
        free_bytes(&self.directory)
    }

    /// Waits for, or tries to take, the lock of the domain.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] naming the holder's pid, [`ErrorKind::Io`].
    pub fn lock(&self, wait: LockWait) -> Result<DomainLock> {
        self.ensure_directory()?;
        DomainLock::take(&self.directory.join("lock"), &self.name, wait)
    }
}

/// Replaces a file by one that is root's alone, in a directory that is made private, so that a crash leaves the old one or
/// the new one.
///
/// # Errors
/// [`ErrorKind::Io`] or [`ErrorKind::NoSpace`].
pub fn replace_file(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(directory) = path.parent() {
        private_directory(directory)?;
    }
    atomic::replace(path, content)
}

/// Bytes that can still be written where a file or directory is, or will be.
pub(crate) fn free_bytes(path: &Path) -> Result<u64> {
    let existing = path
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let room = rustix::fs::statvfs(existing)
        .map_err(|error| Error::io(format!("statvfs {}", existing.display()), error))?;
    Ok(room.f_bavail.saturating_mul(room.f_frsize))
}

/// What was found in the place of a record.
#[derive(Debug)]
pub(crate) enum RecordFile {
    /// Nothing.
    Absent,
    /// A record, which may contradict itself.
    Whole(Box<DomainRecord>),
    /// Something that is no record, or no longer.
    Damaged(Error),
}

/// Whether a file of this name is one that was being replaced.
pub(crate) fn is_temporary(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes()
        .starts_with(atomic::TEMPORARY.as_bytes())
}

fn remove_temporaries_in(directory: &Path) -> Result<()> {
    let failed = |error| Error::io(format!("tidy up {}", directory.display()), error);
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if is_temporary(&entry.file_name()) {
            absent_is_fine(fs::remove_file(entry.path())).map_err(failed)?;
        }
    }
    Ok(())
}

pub(crate) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Refuses what is planted in the place of a directory of ours. Those above the domain's may be links.
fn directory_or_nothing(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Error::new(
            ErrorKind::Corrupt,
            format!("{} is no directory", path.display()),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(format!("look at {}", path.display()), error)),
    }
}

/// The records of all domains, as far as they can be read.
fn records_below(root: &Path) -> impl Iterator<Item = DomainRecord> + use<> {
    records(root)
        .flatten()
        .filter_map(|(_, record)| record.ok().flatten())
}

/// The directories of all domains, each with its record, if there is one.
fn records(
    root: &Path,
) -> impl Iterator<Item = Result<(PathBuf, Result<Option<DomainRecord>>)>> + use<> {
    let listed = format!("list {}", root.display());
    let (entries, error) = match fs::read_dir(root) {
        Ok(entries) => (Some(entries), None),
        Err(error) => (None, Some(Err(error))),
    };
    let entries = entries.into_iter().flatten().chain(error);
    entries.filter_map(move |entry| {
        let directory = match entry {
            Ok(entry) => entry.path(),
            Err(error) => return Some(Err(Error::io(listed.clone(), error))),
        };
        directory.is_dir().then(|| {
            let path = directory.join("domain");
            let bytes = atomic::read_own(&path);
            let record = bytes.and_then(|bytes| {
                bytes
                    .map(|bytes| Envelope::RECORD.open(&bytes, &path))
                    .transpose()
            });
            Ok((directory, record))
        })
    })
}

/// Creates a directory and those above it that are missing, so that a power cut does not take them.
pub(crate) fn private_directory(path: &Path) -> Result<()> {
    directory_or_nothing(path)?;
    let missing: Vec<_> = path
        .ancestors()
        .take_while(|ancestor| !ancestor.exists())
        .collect();
    for directory in missing.into_iter().rev() {
        let created =
            room::needed().and_then(|()| fs::DirBuilder::new().mode(0o700).create(directory));
        match created {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io(
                    format!("create directory {}", directory.display()),
                    error,
                ));
            }
            _ => atomic::sync_directory(directory.parent().unwrap_or(Path::new("/")))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod hostile;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tree::tests::record;
    use std::os::unix::fs::PermissionsExt;

    fn store() -> (tempfile::TempDir, DomainStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("root")).domain("g 1/x");
        (directory, store)
    }

    #[test]
    fn a_record_comes_back_as_it_was_saved_and_only_root_can_read_it() {
        let (_keep, store) = store();
        let mut domain = DomainRecord::new("g 1/x");
        domain.add(record(1));
        store.save(&domain).unwrap();
        assert_eq!(store.load().unwrap(), domain);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&store.record_path()), 0o600);
        assert_eq!(mode(store.directory()), 0o700);
    }

    #[test]
    fn absent_corrupt_and_newer_are_three_answers() {
        let (_keep, store) = store();
        assert!(store.load().unwrap().snapshots.is_empty());
        store.save(&DomainRecord::new("g 1/x")).unwrap();
        let good = fs::read(store.record_path()).unwrap();
        fs::write(store.record_path(), &good[..good.len() - 1]).unwrap();
        assert_eq!(store.load().unwrap_err().kind(), ErrorKind::Corrupt);
        let newer = String::from_utf8(good).unwrap().replacen(" 1 ", " 2 ", 1);
        fs::write(store.record_path(), newer).unwrap();
        assert_eq!(store.load().unwrap_err().kind(), ErrorKind::NewerVersion);
    }

    #[test]
    fn a_record_of_another_domain_is_refused() {
        let (_keep, store) = store();
        store.save(&DomainRecord::new("other")).unwrap();
        assert_eq!(store.load().unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn removing_a_snapshot_twice_is_fine_but_a_foreign_file_stays() {
        let (_keep, store) = store();
        let id = SnapshotId::random();
        store.create_snapshot_directory(id).unwrap();
        fs::write(store.memory_path(id), b"m").unwrap();
        let foreign = store.snapshot_directory(id).join("notes.txt");
        fs::write(&foreign, b"not ours").unwrap();
        assert!(store.remove_snapshot_directory(id).is_err());
        assert!(foreign.exists());
        fs::remove_file(foreign).unwrap();
        store.remove_snapshot_directory(id).unwrap();
        store.remove_snapshot_directory(id).unwrap();
    }

    #[test]
    fn the_lock_keeps_a_second_operation_out() {
        let (_keep, store) = store();
        let held = store.lock(LockWait::No).unwrap();
        let error = store.lock(LockWait::No).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked);
        assert!(
            error.report().contains(&std::process::id().to_string()),
            "{}",
            error.report()
        );
        drop(held);
        store.lock(LockWait::No).unwrap();
    }
}
