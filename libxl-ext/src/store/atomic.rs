//! Writing so that a crash or a power cut leaves the old file or the new one.

use super::{FILE_MODE, room};
use crate::error::{Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// How the names of temporary files begin.
pub(super) const TEMPORARY: &str = ".new-";

/// Replaces `path` by `content`: temporary file in the same directory, fsync, rename, fsync of the
/// directory.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    replace_but_for_flush(path, content)?;
    sync_directory(parent(path)?)
}

/// As [`replace`], but for the directory's fsync: until that, a power cut may bring the old file back.
pub(crate) fn replace_but_for_flush(path: &Path, content: &[u8]) -> Result<()> {
    let directory = parent(path)?;
    let failed = |error: std::io::Error| Error::io(format!("write {}", path.display()), error);
    room::needed().map_err(failed)?;
    // tempfile creates with mode 0600, exclusively, under a name that nobody can guess.
    let mut temporary = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempfile_in(directory)
        .map_err(failed)?;
    room::write_all(temporary.as_file_mut(), content).map_err(failed)?;
    temporary.as_file().sync_all().map_err(failed)?;
    temporary
        .persist(path)
        .map_err(|error| failed(error.error))?;
    Ok(())
}

/// Makes a new file that is read and written by root alone; an existing one or a link is refused.
pub(crate) fn create_new(path: &Path) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    room::needed()
        .and_then(|()| Ok(rustix::fs::open(path, flags, FILE_MODE)?.into()))
        .map_err(|error| Error::io(format!("create {}", path.display()), error))
}

/// Longest file that is read into memory, in bytes. A record is at most about this long; a journal has
/// one plan and a few short entries.
const WHOLE_MAX: u64 = 65 << 20;

/// Opens a file of ours for reading; anything else planted in its place, or in that of its directory, is
/// refused: a link, a device, a pipe that nobody writes to.
pub(crate) fn open_own(path: &Path) -> Result<File> {
    open(path, OFlags::RDONLY)
}

/// Opens a file of ours for writing at its end, as [`open_own`] does for reading.
pub(crate) fn append_own(path: &Path) -> Result<File> {
    open(path, OFlags::WRONLY | OFlags::APPEND)
}

/// Reads the whole of a file of ours; `None` if there is none.
pub(crate) fn read_own(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match open_own(path) {
        Err(error) if is_absence(&error) => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    file.take(WHOLE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::io(format!("read {}", path.display()), error))?;
    if bytes.len() as u64 > WHOLE_MAX {
        let context = format!("{} is longer than any file of ours", path.display());
        return Err(Error::new(ErrorKind::Corrupt, context));
    }
    Ok(Some(bytes))
}

/// Whether something has that name, be it a link that leads nowhere.
pub(crate) fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn open(path: &Path, access: OFlags) -> Result<File> {
    let failed = |error| Error::io(format!("open {}", path.display()), error);
    let directory = rustix::fs::open(
        parent(path)?,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed)?;
    let file: File = rustix::fs::openat(
        directory,
        path.file_name().unwrap_or_default(),
        // Without NONBLOCK a pipe would keep us waiting; a file takes no notice of it.
        access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK,
        Mode::empty(),
    )
    .map_err(failed)?
    .into();
    let kind = file
        .metadata()
        .map_err(|error| Error::io(format!("open {}", path.display()), error))?
        .file_type();
    if kind.is_file() {
        Ok(file)
    } else {
        let context = format!("{} is no file", path.display());
        Err(Error::new(ErrorKind::Corrupt, context))
    }
}

fn is_absence(error: &Error) -> bool {
    let cause = std::error::Error::source(error);
    cause
        .and_then(|cause| cause.downcast_ref::<std::io::Error>())
        .is_some_and(|cause| cause.kind() == std::io::ErrorKind::NotFound)
}

/// Takes everything out of a file that is there, for good.
pub(crate) fn empty_own(path: &Path) -> Result<()> {
    let file = open(path, OFlags::WRONLY)?;
    file.set_len(0)
        .and_then(|()| file.sync_all())
        .map_err(|error| Error::io(format!("empty {}", path.display()), error))
}

/// Waits until a file's content is on the disk.
pub(crate) fn sync_file(path: &Path) -> Result<()> {
    open_own(path)?
        .sync_all()
        .map_err(|error| Error::io(format!("fsync {}", path.display()), error))
}

/// Waits until a directory's entries are on the disk.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| Error::io(format!("fsync directory {}", path.display()), error))
}

/// Waits until the directory that a file is in is on the disk.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_directory(Path::new(".")),
        Some(parent) => sync_directory(parent),
        None => Ok(()),
    }
}

fn parent(path: &Path) -> Result<&Path> {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidRequest,
                format!("{} has no directory", path.display()),
            )
        })
}
