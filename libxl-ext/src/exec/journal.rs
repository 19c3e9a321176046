//! What an operation intended and how far it got, on disk before each step.
//!
//! The file begins with the plan and grows by an entry per event. It is created in one step that a crash
//! cannot split; an entry that a crash cut short is the last one and is ignored: what it announced has
//! not begun. Anything else that does not fit is damage, and the journal is refused: without its later
//! entries it would tell of less than was done.

use super::fault;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Plan;
use crate::store::{DomainStore, Envelope, JOURNAL, absent_is_fine, atomic, room};
use serde::{Deserialize, Serialize};
use std::fs::File;
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
    /// When an earlier process wrote last to it, if it is that one's.
    killed_at: Option<SystemTime>,
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
        let journal = Self::append_to(path)?;
        fault::at_journal("opened");
        Ok(journal)
    }

    /// Opens the journal that an earlier process left, if there is one.
    pub(super) fn left_over(store: &DomainStore) -> Result<Option<(Self, Progress)>> {
        let path = store.journal_path();
        let Some(bytes) = atomic::read_own(&path)? else {
            return Ok(None);
        };
        let (mut progress, whole) = replay(&bytes, &path)?;
        if progress.plan.domain != store.name() {
            let owner = &progress.plan.domain;
            return Err(damaged(&path, &format!("belongs to domain '{owner}'")));
        }
        progress.written = std::fs::metadata(&path)
            .and_then(|file| file.modified())
            .ok();
        let mut journal = Self::append_to(path)?;
        journal.killed_at = progress.written;
        if whole < bytes.len() {
            // What a crash cut short would hide the entries that follow it.
            journal
                .file
                .set_len(whole as u64)
                .and_then(|()| journal.keep_time())
                .map_err(|error| Error::io(format!("repair {}", journal.path.display()), error))?;
        }
        Ok(Some((journal, progress)))
    }

    fn append_to(path: PathBuf) -> Result<Self> {
        let file = atomic::append_own(&path)?;
        Ok(Self {
            path,
            file,
            killed_at: None,
        })
    }

    /// On the disk when it returns: what is begun without its word, recovery knows nothing of.
    pub(super) fn begin(&mut self, step: usize) -> Result<()> {
        self.append(&Entry::Begun(step), File::sync_all)
    }

    /// Not flushed: for a step of which recovery need not know ([`crate::plan::Step::needs_no_word`]).
    pub(super) fn note(&mut self, step: usize) -> Result<()> {
        self.append(&Entry::Begun(step), |_| Ok(()))
    }

    /// Not flushed: without its word recovery takes the step for one that was interrupted at its end. The next entry
    /// takes it to the disk.
    pub(super) fn done(&mut self, step: usize) -> Result<()> {
        self.append(&Entry::Done(step), |_| Ok(()))
    }

    /// On the disk when it returns.
    pub(super) fn undoing(&mut self, from: usize) -> Result<()> {
        self.append(&Entry::Undoing(from), File::sync_all)
    }

    /// Flushed, since more of the undo follows without a word before it.
    pub(super) fn undone(&mut self, steps: usize) -> Result<()> {
        self.append(&Entry::Undone(steps), File::sync_all)
    }

    /// The operation has ended, one way or the other.
    pub(super) fn close(self) -> Result<()> {
        fault::at_journal("closing");
        absent_is_fine(std::fs::remove_file(&self.path))
            .map_err(|error| Error::io(format!("remove {}", self.path.display()), error))?;
        atomic::sync_directory(self.path.parent().unwrap_or(Path::new("/")))?;
        fault::at_journal("closed");
        Ok(())
    }

    /// Images are about to be written to by whoever recovers: from now on, that is their time.
    pub(super) fn renew(store: &DomainStore) -> Result<()> {
        let path = store.journal_path();
        let file = atomic::append_own(&path)?;
        file.set_modified(SystemTime::now())
            .and_then(|()| file.sync_all())
            .map_err(|error| Error::io(format!("write {}", path.display()), error))
    }

    /// With `written`, whoever recovers has written to images: the time of the kill says nothing of them any more.
    pub(super) fn moves_on(&mut self, written: bool) {
        self.killed_at = self.killed_at.filter(|_| !written);
    }

    /// The time of the file is that of the kill, also after attempts to recover that wrote to no image: what is written
    /// to images between two of them is a stranger's.
    fn keep_time(&self) -> std::io::Result<()> {
        match self.killed_at {
            Some(time) => self.file.set_modified(time),
            None => Ok(()),
        }
    }

    fn append(
        &mut self,
        entry: &Entry,
        flush: impl FnOnce(&File) -> std::io::Result<()>,
    ) -> Result<()> {
        let bytes = Envelope::JOURNAL.seal(entry)?;
        let failed = |error| Error::io(format!("write {}", self.path.display()), error);
        let length = self.file.metadata().map_err(failed)?.len();
        room::write_all(&mut self.file, &bytes)
            .and_then(|()| self.keep_time())
            .and_then(|()| flush(&self.file))
            // A part of an entry, for which there was no more room, would hide those that follow it, and a whole one
            // that is told to have failed would be believed after a crash.
            .inspect_err(|_| drop(self.file.set_len(length)))
            .map_err(failed)
    }
}

/// The plan of the operation that is in progress, or was interrupted; none if it cannot be read, as when it ends
/// just now.
pub(crate) fn in_progress(store: &DomainStore) -> Result<Option<Plan>> {
    let path = store.journal_path();
    let bytes = atomic::read_own(&path)?;
    let plan = bytes.and_then(|bytes| replay(&bytes, &path).ok());
    Ok(plan.map(|(progress, _)| progress.plan))
}

/// The domain whose operation is in progress, or was interrupted, in a directory that need not have a record; none if
/// there is no journal.
///
/// # Errors
/// If the journal cannot be read.
pub(crate) fn domain_in_progress(directory: &Path) -> Result<Option<String>> {
    let path = directory.join(JOURNAL);
    let Some(bytes) = atomic::read_own(&path)? else {
        return Ok(None);
    };
    Ok(Some(replay(&bytes, &path)?.0.plan.domain))
}

/// Reads the entries; returns how far they go, and in how many bytes.
fn replay(bytes: &[u8], path: &Path) -> Result<(Progress, usize)> {
    let (first, mut rest) = Envelope::JOURNAL.open_next::<Entry>(bytes, path)?;
    let Entry::Opened(plan) = first else {
        return Err(damaged(path, "does not begin with a plan"));
    };
    let mut progress = Progress {
        plan: *plan,
        begun: None,
        done: 0,
        written: None,
        undoing: None,
    };
    while !rest.is_empty() {
        let (entry, next) = match Envelope::JOURNAL.open_next::<Entry>(rest, path) {
            Err(_) if Envelope::JOURNAL.is_cut_short(rest, path) => break,
            read => read?,
        };
        let last = progress.plan.steps.len();
        match (entry, progress.undoing) {
            (Entry::Begun(step), _) if step < last => progress.begun = Some(step),
            (Entry::Done(step), _) if step < last => progress.done = step + 1,
            (Entry::Undoing(from), _) if from < last => progress.undoing = Some((from, 0)),
            (Entry::Undone(steps), Some((from, _))) => progress.undoing = Some((from, steps)),
            _ => return Err(damaged(path, "has an entry that does not fit its plan")),
        }
        rest = next;
    }
    Ok((progress, bytes.len() - rest.len()))
}

fn damaged(path: &Path, how: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{} {how}", path.display())).hint(
        "what was interrupted is not known: look at the domain and its disks, then remove the file",
    )
}

/// For a journal of the given bytes: how many of them are whole entries, and what these come to. It has
/// been made sure that recovery can go through the plan from there.
#[cfg(fuzzing)]
pub(crate) fn read_back(bytes: &[u8]) -> Result<(usize, String)> {
    let (progress, whole) = replay(bytes, Path::new("journal"))?;
    let plan = &progress.plan;
    let last = progress.undoing.map(|(from, _)| from).or(progress.begun);
    assert!(last.is_none_or(|last| last < plan.steps.len()));
    assert!(progress.done <= plan.steps.len());
    let _ = plan.undo_from(last.unwrap_or(0));
    let _ = (plan.point_of_no_loss(), plan.deleted(), plan.to_string());
    Ok((whole, format!("{progress:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::domain::Keeper;
    use crate::plan::{Cost, Operation, Step};
    use crate::store::Store;
    use crate::store::refuses_every_changed_byte;
    use crate::store::room::tests::{End, ends, is_back};
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

    /// A journal with the plan in it.
    fn opened() -> (tempfile::TempDir, DomainStore, Journal) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path()).domain("g");
        store.ensure_directory().unwrap();
        let journal = Journal::create(&store, &plan()).unwrap();
        (directory, store, journal)
    }

    #[test]
    fn an_entry_that_was_cut_short_has_not_begun_and_does_not_hide_later_ones() {
        let (_directory, store, mut journal) = opened();
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

    #[test]
    fn an_entry_for_which_there_was_no_room_does_not_hide_later_ones() {
        let (_directory, store, mut journal) = opened();
        ends(End {
            after: 0,
            for_good: false,
        });
        let error = journal.begin(0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(is_back());
        journal.undoing(0).unwrap();
        let (_, progress) = Journal::left_over(&store).unwrap().unwrap();
        assert_eq!((progress.begun, progress.undoing), (None, Some((0, 0))));
    }

    /// A journal of four entries, and where each of them ends.
    fn four_entries() -> (Vec<u8>, Vec<usize>) {
        let opened = Entry::Opened(Box::new(plan()));
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for entry in [opened, Entry::Begun(0), Entry::Done(0), Entry::Undoing(0)] {
            bytes.extend(Envelope::JOURNAL.seal(&entry).unwrap());
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    #[test]
    fn a_journal_cut_anywhere_tells_of_its_whole_entries_or_is_refused() {
        let (bytes, ends) = four_entries();
        for length in 0..bytes.len() {
            let read = replay(&bytes[..length], Path::new("/x"));
            let whole = ends.iter().rfind(|end| **end <= length);
            match (read, whole) {
                (Ok((_, read)), Some(whole)) => assert_eq!(read, *whole, "cut at {length}"),
                (Err(error), None) => assert_eq!(error.kind(), ErrorKind::Corrupt),
                (read, _) => panic!("cut at {length}: {read:?}"),
            }
        }
    }

    /// Were it taken for shorter than it is, steps that were done would not be taken back.
    #[test]
    fn no_changed_byte_shortens_a_journal() {
        let (bytes, ends) = four_entries();
        let versions: Vec<_> = [0].iter().chain(&ends[..3]).map(|at| at + 18).collect();
        refuses_every_changed_byte(&bytes, &versions, |changed| {
            replay(changed, Path::new("/x"))
        });
    }

    #[test]
    fn entries_that_do_not_fit_the_plan_are_refused() {
        let opened = || Entry::Opened(Box::new(plan()));
        for entries in [
            vec![Entry::Begun(0)],
            vec![opened(), opened()],
            vec![opened(), Entry::Begun(1)],
            vec![opened(), Entry::Done(usize::MAX)],
            vec![opened(), Entry::Undoing(usize::MAX)],
            vec![opened(), Entry::Undone(0)],
        ] {
            let sealed = entries.iter().map(|entry| Envelope::JOURNAL.seal(entry));
            let bytes = sealed.collect::<Result<Vec<_>>>().unwrap().concat();
            let error = replay(&bytes, Path::new("/x")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{entries:?}");
        }
    }

    #[test]
    fn a_journal_of_another_domain_or_a_link_to_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = |name| Store::new(directory.path()).domain(name);
        let (ours, other) = (store("g"), store("other"));
        ours.ensure_directory().unwrap();
        other.ensure_directory().unwrap();
        Journal::create(&ours, &plan()).unwrap();
        let before = std::fs::read(ours.journal_path()).unwrap();
        std::fs::copy(ours.journal_path(), other.journal_path()).unwrap();
        let refused = |store| Journal::left_over(store).err().map(|error| error.kind());
        assert_eq!(refused(&other), Some(ErrorKind::Corrupt));
        let elsewhere = directory.path().join("elsewhere");
        std::fs::rename(ours.journal_path(), &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, ours.journal_path()).unwrap();
        assert_eq!(refused(&ours), Some(ErrorKind::Io));
        assert!(ours.has_journal() && ours.exists());
        assert!(Journal::append_to(ours.journal_path()).is_err());
        std::fs::remove_file(&elsewhere).unwrap();
        assert_eq!(refused(&ours), Some(ErrorKind::Io), "a link to nowhere");
        assert!(ours.has_journal() && ours.exists());
        // A new operation's journal takes the place of the link.
        Journal::create(&ours, &plan()).unwrap();
        assert_eq!(std::fs::read(ours.journal_path()).unwrap(), before);
        assert!(!elsewhere.exists());
    }
}
