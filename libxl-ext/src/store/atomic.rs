//! Writing so that a crash or a power cut leaves the old file or the new one.

use super::FILE_MODE;
use crate::error::{Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// How the names of temporary files begin.
pub(super) const TEMPORARY: &str = ".new-";

/// Replaces `path` by `content`: temporary file in the same directory, fsync, rename, fsync of the
/// directory.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let directory = parent(path)?;
    let failed = |error: std::io::Error| Error::io(format!("write {}", path.display()), error);
    // tempfile creates with mode 0600, exclusively, under a name that nobody can guess.
    let mut temporary = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempfile_in(directory)
        .map_err(failed)?;
    temporary.write_all(content).map_err(failed)?;
    temporary.as_file().sync_all().map_err(failed)?;
    temporary
        .persist(path)
        .map_err(|error| failed(error.error))?;
    sync_directory(directory)
}

/// Makes a new file that is read and written by root alone; an existing one or a link is refused.
pub(crate) fn create_new(path: &Path) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, FILE_MODE)
        .map(File::from)
        .map_err(|error| Error::io(format!("create {}", path.display()), error))
}

/// Opens a file of ours for reading; a link planted in its place is refused.
pub(crate) fn open_own(path: &Path) -> Result<File> {
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )
    .map(File::from)
    .map_err(|error| Error::io(format!("open {}", path.display()), error))
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
