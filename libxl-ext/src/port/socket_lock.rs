//! The lock around a QMP socket, which has room for one client.

use crate::error::{Error, Result};
use crate::model::domain::DomainLife;
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where libxl keeps its per-domain data (`XEN_LIB_DIR`).
const LIB_DIRECTORY: &str = "/var/lib/xen";

/// How long somebody else may hold the socket.
pub(super) const LOCK_LIMIT: Duration = Duration::from_secs(60);

/// libxl's lock around a domain's QMP socket: `flock` on a file that its holder removes, so that who
/// gets the lock has to look whether the file is still the one of that name.
pub(super) struct SocketLock {
    path: PathBuf,
    file: File,
}

impl SocketLock {
    pub(super) fn take(life: DomainLife) -> Result<Self> {
        let path = Path::new(LIB_DIRECTORY).join(format!(
            "userdata-l.{}.{}.qmp-socket-lock",
            life.domid, life.uuid
        ));
        let deadline = Instant::now() + LOCK_LIMIT;
        Self::take_at(path, deadline).map_err(|error| {
            error.while_doing(format!("lock the QEMU monitor of domain {}", life.domid))
        })
    }

    /// Takes the lock of the file of this name.
    pub(super) fn take_at(path: PathBuf, deadline: Instant) -> Result<Self> {
        let failed = |error: std::io::Error| Error::io(format!("lock {}", path.display()), error);
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file: File = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
                .map_err(|error| failed(error.into()))?
                .into();
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let ours = file.metadata().map_err(failed)?;
                    if std::fs::metadata(&path)
                        .is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino()))
                    {
                        return Ok(Self { path, file });
                    }
                }
                Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

impl Drop for SocketLock {
    fn drop(&mut self) {
        // Before the lock goes with the file: whoever waits then finds that the file is not the one.
        let _ = std::fs::remove_file(&self.path);
        // A program that another thread is starting holds a copy of the descriptor until it execs.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn the_socket_lock_lets_one_in_at_a_time_though_its_file_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let inside = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let deadline = Instant::now() + Duration::from_secs(60);
                        let _lock =
                            SocketLock::take_at(directory.path().join("lock"), deadline).unwrap();
                        assert!(!inside.swap(true, Ordering::SeqCst));
                        inside.store(false, Ordering::SeqCst);
                    }
                });
            }
        });
    }
}
