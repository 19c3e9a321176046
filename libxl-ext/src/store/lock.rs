//! The lock that makes operations on one domain exclude each other.

use super::FILE_MODE;
use crate::error::{Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a child of a process that was killed may keep its lock.
const INHERITED_LIMIT: Duration = Duration::from_secs(20);

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
        let inherited = Instant::now() + INHERITED_LIMIT;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::AGAIN) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                // libxl's children hold copies of our files until they end; so the lock of a process that
                // was killed may be held a little longer than that lived.
                Err(Errno::AGAIN) if !holder_lives(&mut file) && Instant::now() < inherited => {
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

/// Who wrote the file last, as text.
fn holder(file: &mut File) -> String {
    let mut holder = String::new();
    let _ = file
        .rewind()
        .and_then(|()| file.take(32).read_to_string(&mut holder));
    holder.trim().to_owned()
}

fn holder_lives(file: &mut File) -> bool {
    let holder = holder(file);
    holder.is_empty() || Path::new("/proc").join(holder).exists()
}

fn busy(file: &mut File, domain: &str) -> Error {
    let holder = match holder(file).as_str() {
        "" => String::new(),
        pid => format!(" (process {pid})"),
    };
    Error::new(
        ErrorKind::Locked,
        format!("another operation on domain '{domain}' is in progress{holder}"),
    )
    .hint("wait until it has ended")
}
