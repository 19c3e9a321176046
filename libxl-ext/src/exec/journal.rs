//! What an operation intended and how far it got, on disk before each step.
//!
//! The file begins with the plan and grows by an entry per event. It is created in one step that a crash
//! cannot split; an entry that a crash cut short is the last one and is ignored: what it announced has
//! not begun.

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::store::{DomainStore, Envelope, absent_is_fine, atomic};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// One event.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Entry {
    /// The operation and all that it will do.
    Opened(Box<Plan>),
    /// A step is about to begin.
    Begun(usize),
    /// A step was done.
    Done(usize),
    /// Everything up to and including this step is being taken back.
    Undoing(usize),
    /// So many of the steps of the undo were done.
    Undone(usize),
}

/// The journal of the operation in progress, open for more.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

/// How far an operation got.
#[derive(Debug)]
pub(super) struct Progress {
    /// The plan.
    pub(super) plan: Plan,
    /// The last step that may have begun.
    pub(super) begun: Option<usize>,
    /// How many steps are known to be done.
    pub(super) done: usize,
    /// When the last entry was written.
    pub(super) written: Option<SystemTime>,
    /// The step from which the undo had started, and how many of its steps were done.
    pub(super) undoing: Option<(usize, usize)>,
}

impl Journal {
    /// Opens a new journal with the plan in it.
    pub(super) fn create(store: &DomainStore, plan: &Plan) -> Result<Self> {
        let path = store.journal_path();
        atomic::replace(
            &path,
            &Envelope::JOURNAL.seal(&Entry::Opened(Box::new(plan.clone())))?,
        )?;
        Self::append_to(path)
    }

    /// Opens the journal that an earlier process left, if there is one.
    pub(super) fn left_over(store: &DomainStore) -> Result<Option<(Self, Progress)>> {
        let path = store.journal_path();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
        };
        let (mut progress, whole) = replay(&bytes, &path)?;
        progress.written = std::fs::metadata(&path)
            .and_then(|file| file.modified())
            .ok();
        let journal = Self::append_to(path)?;
        // What a crash cut short would hide the entries that follow it.
        journal
            .file
            .set_len(whole as u64)
            .map_err(|error| Error::io(format!("repair {}", journal.path.display()), error))?;
        Ok(Some((journal, progress)))
    }

    fn append_to(path: PathBuf) -> Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|error| Error::io(format!("open {}", path.display()), error))?;
        Ok(Self { path, file })
    }

    pub(super) fn begin(&mut self, step: usize) -> Result<()> {
        self.append(&Entry::Begun(step))
    }

    pub(super) fn done(&mut self, step: usize) -> Result<()> {
        self.append(&Entry::Done(step))
    }

    pub(super) fn undoing(&mut self, from: usize) -> Result<()> {
        self.append(&Entry::Undoing(from))
    }

    pub(super) fn undone(&mut self, steps: usize) -> Result<()> {
        self.append(&Entry::Undone(steps))
    }

    /// The operation has ended, one way or the other.
    pub(super) fn close(self) -> Result<()> {
        absent_is_fine(std::fs::remove_file(&self.path))
            .map_err(|error| Error::io(format!("remove {}", self.path.display()), error))?;
        atomic::sync_directory(self.path.parent().unwrap_or(Path::new("/")))
    }

    fn append(&mut self, entry: &Entry) -> Result<()> {
        let bytes = Envelope::JOURNAL.seal(entry)?;
        self.file
            .write_all(&bytes)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| Error::io(format!("write {}", self.path.display()), error))
    }
}

/// Reads the entries; returns how far they go, and in how many bytes.
fn replay(bytes: &[u8], path: &Path) -> Result<(Progress, usize)> {
    let (first, mut rest) = Envelope::JOURNAL.open_next::<Entry>(bytes, path)?;
    let Entry::Opened(plan) = first else {
        return Err(Error::new(
            crate::ErrorKind::Corrupt,
            format!("{} does not begin with a plan", path.display()),
        ));
    };
    let mut progress = Progress {
        plan: *plan,
        begun: None,
        done: 0,
        written: None,
        undoing: None,
    };
    while let Ok((entry, next)) = Envelope::JOURNAL.open_next::<Entry>(rest, path) {
        match entry {
            Entry::Opened(_) => break,
            Entry::Begun(step) => progress.begun = Some(step),
            Entry::Done(step) => progress.done = step + 1,
            Entry::Undoing(from) => progress.undoing = Some((from, 0)),
            Entry::Undone(steps) => {
                progress.undoing = progress.undoing.map(|(from, _)| (from, steps));
            }
        }
        rest = next;
    }
    Ok((progress, bytes.len() - rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::domain::Keeper;
    use crate::plan::{Cost, Operation, Step};
    use crate::store::Store;
    use uuid::Uuid;

    fn plan() -> Plan {
        Plan {
            id: Uuid::nil(),
            operation: Operation::SnapshotDelete,
            domain: "g".into(),
            snapshot: "s".into(),
            keeper: Keeper::Xl,
            steps: vec![Step::Announce],
            cost: Cost::default(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn an_entry_that_was_cut_short_has_not_begun_and_does_not_hide_later_ones() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path()).domain("g");
        store.ensure_directory().unwrap();
        let mut journal = Journal::create(&store, &plan()).unwrap();
        journal.begin(0).unwrap();
        journal.done(0).unwrap();
        let whole = std::fs::read(store.journal_path()).unwrap();
        journal.begin(1).unwrap();
        let longer = std::fs::read(store.journal_path()).unwrap();
        for length in whole.len()..longer.len() {
            std::fs::write(store.journal_path(), &longer[..length]).unwrap();
            let (mut journal, progress) = Journal::left_over(&store).unwrap().unwrap();
            assert_eq!((progress.begun, progress.done), (Some(0), 1));
            assert_eq!(progress.plan, plan());
            journal.undoing(0).unwrap();
            let (_, progress) = Journal::left_over(&store).unwrap().unwrap();
            assert_eq!(progress.undoing, Some((0, 0)));
        }
        journal.close().unwrap();
        assert!(Journal::left_over(&store).unwrap().is_none());
    }
}
