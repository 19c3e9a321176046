//! The process of a domain's QEMU, as something to wait for.

use super::DeviceModel;
use crate::error::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::OwnedFd;

/// How long a QEMU whose domain is gone may take to end, in seconds.
const PATIENCE_SECONDS: i64 = 60;

/// A process, held so that another one with the same number is not taken for it.
pub(super) struct Process {
    pid: Pid,
    handle: Option<OwnedFd>,
}

impl Process {
    pub(super) fn new(pid: Pid) -> Self {
        // No handle means that the process has ended already.
        Self {
            pid,
            handle: pidfd_open(pid, PidfdFlags::empty()).ok(),
        }
    }
}

impl DeviceModel for Process {
    fn wait_until_gone(&self) -> Result<()> {
        let Some(handle) = &self.handle else {
            return Ok(());
        };
        let what = format!(
            "wait for QEMU (process {}) to end",
            self.pid.as_raw_nonzero()
        );
        let mut ended = [PollFd::new(handle, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: PATIENCE_SECONDS,
            tv_nsec: 0,
        };
        match poll(&mut ended, Some(&limit)) {
            Ok(0) => Err(Error::new(ErrorKind::Toolstack, what)
                .because(format!("it is still there after {PATIENCE_SECONDS} s"))),
            Ok(_) => Ok(()),
            Err(error) => Err(Error::io(what, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_end_of_a_process_is_noticed() {
        let mut child = Command::new("sleep").arg("0.1").spawn().unwrap();
        let process = Process::new(Pid::from_child(&child));
        process.wait_until_gone().unwrap();
        child.wait().unwrap();
    }
}
