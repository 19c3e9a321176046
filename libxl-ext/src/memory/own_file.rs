//! A memory image at a place of the user's own. Until the snapshot is recorded the file has a second name there, which
//! is called after the snapshot and so can only be ours: as long as both are one file, the first one is ours too, and
//! may be removed when all is taken back. Afterwards its checksum says whether it still is what was written.

use super::prove::prove;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::model::name::SnapshotId;
use crate::model::record::MemoryProof;
use crate::store::{absent_is_fine, atomic};
use std::fs::Metadata;
use std::io::ErrorKind as IoErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The second name.
pub(crate) fn partial(file: &Path, id: SnapshotId) -> PathBuf {
    file.with_file_name(format!(".{}.memory", id.tag()))
}

/// Refuses a name that is taken, and one from which the image could not be read back.
pub(crate) fn require_new(file: &Path) -> Result<()> {
    let refuse = |why: &str| {
        Error::new(
            ErrorKind::InvalidRequest,
            format!("the memory cannot be written to {}: {why}", file.display()),
        )
    };
    let parts = (file.is_absolute(), file.file_name(), file.parent());
    let (true, Some(_), Some(directory)) = parts else {
        return Err(refuse("that is no absolute path of a file"));
    };
    match look(directory)? {
        Some(found) if found.is_dir() => {}
        Some(_) => {
            return Err(refuse("its directory is none, or is a link")
                .hint("name the directory itself: a link may lead elsewhere later"));
        }
        None => return Err(refuse("its directory is missing")),
    }
    match look(file)? {
        None => Ok(()),
        Some(_) => Err(refuse("it is there already").hint("name a file that is not there")),
    }
}

/// Makes the image durable and gives it its name.
pub(crate) fn seal(file: &Path, id: SnapshotId) -> Result<()> {
    let partial = partial(file, id);
    if look(&partial)?.is_none() && look(file)?.is_some() {
        return atomic::open_own(file).map(drop);
    }
    atomic::sync_file(&partial)?;
    match std::fs::hard_link(&partial, file) {
        Err(error) if error.kind() == IoErrorKind::AlreadyExists && is_ours(file, &partial)? => {}
        Err(error) => {
            return Err(Error::io(
                format!("give the memory image the name {}", file.display()),
                error,
            ));
        }
        Ok(()) => {}
    }
    atomic::sync_parent(file)
}

/// Removes the second name, once the file is recorded.
pub(crate) fn settle(file: &Path, id: SnapshotId) -> Result<()> {
    remove(&partial(file, id))
}

/// Removes the file if it was written for this snapshot, which is not recorded.
pub(crate) fn withdraw(file: &Path, id: SnapshotId) -> Result<()> {
    let partial = partial(file, id);
    if is_ours(file, &partial)? {
        remove(file)?;
    }
    remove(&partial)
}

/// Removes the file of a snapshot that is deleted, if it is still what was written. Returns why it is left
/// otherwise.
pub(crate) fn remove_proven(
    file: &Path,
    proof: &MemoryProof,
    observer: &dyn Observer,
) -> Result<Option<String>> {
    let Some(before) = look(file)? else {
        return Ok(None);
    };
    if let Err(error) = prove(file, proof, observer) {
        return match error.kind() {
            ErrorKind::Corrupt | ErrorKind::Io => Ok(Some(error.report())),
            _ => Err(error),
        };
    }
    match look(file)? {
        Some(now) if is_same(&before, &now) => remove(file).map(|()| None),
        Some(_) => Ok(Some(format!(
            "{} was replaced while it was read",
            file.display()
        ))),
        None => Ok(None),
    }
}

fn is_ours(file: &Path, partial: &Path) -> Result<bool> {
    Ok(match (look(file)?, look(partial)?) {
        (Some(file), Some(partial)) => is_same(&file, &partial),
        _ => false,
    })
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn look(path: &Path) -> Result<Option<Metadata>> {
    match path.symlink_metadata() {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == IoErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("look at {}", path.display()), error)),
    }
}

fn remove(path: &Path) -> Result<()> {
    if look(path)?.is_none() {
        return Ok(());
    }
    absent_is_fine(std::fs::remove_file(path))
        .map_err(|error| Error::io(format!("remove {}", path.display()), error))?;
    atomic::sync_parent(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Unobserved;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn written(content: &str) -> (tempfile::TempDir, PathBuf, SnapshotId) {
        let directory = tempfile::tempdir().unwrap();
        let (file, id) = (directory.path().join("m"), SnapshotId::random());
        require_new(&file).unwrap();
        fs::write(partial(&file, id), content).unwrap();
        (directory, file, id)
    }

    fn proof(content: &str) -> MemoryProof {
        MemoryProof::plain(
            content.len() as u64,
            format!("{:032x}", xxhash_rust::xxh3::xxh3_128(content.as_bytes())),
        )
    }

    #[test]
    fn sealed_settled_and_removed_nothing_is_left_however_often() {
        let (directory, file, id) = written("memory");
        for _ in 0..2 {
            seal(&file, id).unwrap();
        }
        for _ in 0..2 {
            settle(&file, id).unwrap();
            seal(&file, id).unwrap();
        }
        assert_eq!(fs::read(&file).unwrap(), b"memory");
        for _ in 0..2 {
            let left = remove_proven(&file, &proof("memory"), &Unobserved).unwrap();
            assert_eq!(left, None);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_taken_back_is_our_file_and_no_other() {
        let (directory, file, id) = written("memory");
        seal(&file, id).unwrap();
        for _ in 0..2 {
            withdraw(&file, id).unwrap();
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

        let (directory, file, id) = written("memory");
        fs::write(&file, "somebody was quicker").unwrap();
        assert!(seal(&file, id).is_err());
        withdraw(&file, id).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(fs::read(&file).unwrap(), b"somebody was quicker");
    }

    #[test]
    fn a_file_that_is_not_what_was_written_is_left_and_told() {
        let (directory, file, _) = written("");
        let moved = directory.path().join("elsewhere");
        for change in ["another", "memorx"] {
            fs::write(&file, change).unwrap();
            let left = remove_proven(&file, &proof("memory"), &Unobserved).unwrap();
            assert!(
                left.is_some_and(|why| why.contains("memory image")),
                "{change}"
            );
            assert!(file.exists());
        }
        fs::write(&moved, "memory").unwrap();
        fs::remove_file(&file).unwrap();
        symlink(&moved, &file).unwrap();
        let left = remove_proven(&file, &proof("memory"), &Unobserved).unwrap();
        assert!(left.is_some() && moved.exists());
    }

    #[test]
    fn a_name_that_is_taken_or_leads_elsewhere_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        symlink(directory.path(), &link).unwrap();
        let taken = directory.path().join("taken");
        symlink("nowhere", &taken).unwrap();
        for (file, word) in [
            (taken, "already"),
            (link.join("m"), "link"),
            (directory.path().join("none/m"), "missing"),
            ("m".into(), "absolute"),
            ("/".into(), "absolute"),
        ] {
            let report = require_new(&file).unwrap_err().report();
            assert!(report.contains(word), "{report}");
        }
    }
}
