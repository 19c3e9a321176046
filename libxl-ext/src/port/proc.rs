//! What `/proc` tells of other processes.

use crate::error::{Error, ErrorKind, Result};
use crate::model::process::ProcessId;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a QEMU whose domain is gone may take to flush and close its images.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// Every process now.
pub(super) fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Where one of the links in a process's directory leads.
pub(super) fn link(pid: i32, name: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/{name}")).ok()
}

/// A process's state letter and identity; `None` if it is gone.
pub(super) fn stat(pid: i32) -> Option<(char, ProcessId)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything; what follows the last one is numbered from 3.
    let fields: Vec<_> = stat[stat.rfind(')')? + 1..]
        .split_ascii_whitespace()
        .collect();
    let state = fields.first()?.chars().next()?;
    Some((
        state,
        ProcessId {
            pid,
            started: fields.get(19)?.parse().ok()?,
        },
    ))
}

/// This process.
pub(crate) fn own_process() -> Option<ProcessId> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    stat(own).map(|(_, process)| process)
}

/// Whether a process runs, and has not ended without being waited for.
pub(crate) fn is_alive(process: ProcessId) -> bool {
    stat(process.pid).is_some_and(|(state, now)| now == process && !matches!(state, 'Z' | 'X'))
}

/// Signals the process if it is still the one.
pub(super) fn signal(process: ProcessId, signal: Signal) -> rustix::io::Result<()> {
    let Some(handle) = Pid::from_raw(process.pid)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        .filter(|_| stat(process.pid).is_some_and(|(_, now)| now == process))
    else {
        return Ok(());
    };
    match pidfd_send_signal(&handle, signal) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        sent => sent,
    }
}

/// Waits until no process has the file open.
///
/// QEMU's own image locks do not help: the qdisk backend opens its images with locking off.
pub(crate) fn wait_until_closed(path: &Path) -> Result<()> {
    let deadline = Instant::now() + CLOSE_LIMIT;
    while let Some(holder) = holder(path)? {
        if Instant::now() >= deadline {
            return Err(Error::new(
                ErrorKind::DomainState,
                format!("{} is in use by {holder}", path.display()),
            )
            .hint("shut down the domain that uses it, whatever its name is now"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A process that has the file open, in words.
fn holder(path: &Path) -> Result<Option<String>> {
    let file = fs::metadata(path)
        .map_err(|error| Error::io(format!("look at {}", path.display()), error))?;
    let is_it = |fd: fs::DirEntry| {
        fs::metadata(fd.path())
            .is_ok_and(|open| (open.dev(), open.ino()) == (file.dev(), file.ino()))
    };
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let holder = pids().filter(|pid| *pid != own).find(|pid| {
        // A process that ends in the meantime holds nothing.
        fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|fds| fds.flatten().any(is_it))
    });
    Ok(holder.map(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        format!("{} (process {pid})", name.trim())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_file_that_another_process_has_open_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        fs::write(&path, b"x").unwrap();
        assert_eq!(holder(&path).unwrap(), None);
        let input = fs::File::open(&path).unwrap();
        let mut child = Command::new("sleep")
            .arg("0.3")
            .stdin(input)
            .spawn()
            .unwrap();
        let holder = holder(&path).unwrap().expect("it is open");
        assert!(holder.contains(&child.id().to_string()), "{holder}");
        child.wait().unwrap();
        wait_until_closed(&path).unwrap();
    }

    #[test]
    fn a_process_is_known_by_when_it_started() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let (_, id) = stat(own).unwrap();
        assert!(id.pid == own && id.started > 0);
        assert_eq!(stat(own).unwrap().1, id);
        assert!(stat(i32::MAX).is_none());
    }
}
