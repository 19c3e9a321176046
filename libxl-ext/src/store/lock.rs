//! The lock that makes operations on one domain exclude each other.

use super::FILE_MODE;
use crate::error::{Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// What to do while another operation holds the lock.
#[derive(Clone, Copy, Debug)]
pub enum LockWait {
    /// Give up at once.
    No,
    /// Wait at most this long.
    AtMost(Duration),
}

/// The lock, held until it is dropped or the process ends, however it ends.
///
/// The file stays: removing it would let two processes lock two different files of one name.
#[derive(Debug)]
pub struct DomainLock {
    file: File,
}

impl DomainLock {
    pub(super) fn take(path: &Path, domain: &str, wait: LockWait) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut file: File = rustix::fs::open(path, flags, FILE_MODE)
            .map_err(|error| Error::io(format!("open {}", path.display()), error))?
            .into();
        let deadline = match wait {
            LockWait::No => Instant::now(),
            LockWait::AtMost(limit) => Instant::now() + limit,
        };
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::AGAIN) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(Errno::AGAIN) => return Err(busy(&mut file, domain)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io(format!("lock {}", path.display()), error)),
            }
        }
        // Who holds it is for the message above; a full disk must not keep anybody from working.
        if file.set_len(0).and_then(|()| file.rewind()).is_ok() {
            let _ = writeln!(file, "{}", std::process::id());
        }
        Ok(Self { file })
    }
}

impl Drop for DomainLock {
    fn drop(&mut self) {
        // Closing would not do: a program that another thread is starting holds a copy until it execs.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

fn busy(file: &mut File, domain: &str) -> Error {
    let mut holder = String::new();
    let _ = file
        .rewind()
        .and_then(|()| file.take(32).read_to_string(&mut holder));
    let holder = match holder.trim() {
        "" => String::new(),
        pid => format!(" (process {pid})"),
    };
    Error::new(
        ErrorKind::Locked,
        format!("another operation on domain '{domain}' is in progress{holder}"),
    )
    .hint("wait until it has ended")
}
