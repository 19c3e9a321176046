//! The monitor of a domain behind [`Monitors`]: the `xl` process that `xl create` or `xl restore` left
//! behind, which acts on the guest's reboot, poweroff and crash.
//!
//! It takes a suspend for the end of its work and exits ("Domain has suspended"), also when the domain
//! goes on afterwards. So it is stopped over a suspend that is to be resumed: when it continues, libxl
//! asks the hypervisor anew, and finds nothing that happened.

use super::{Monitors, proc};
use crate::error::{Error, ErrorKind, Result};
use crate::model::process::ProcessId;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a process may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The processes of this host.
pub struct XlMonitors;

impl Monitors for XlMonitors {
    fn find(&self, domain: &str) -> Result<Option<ProcessId>> {
        // libxl_create_logfile names it so; the monitor's output goes there for as long as it lives.
        let log = format!("/var/log/xen/xl-{domain}.log");
        let monitor = proc::pids().find(|pid| {
            proc::link(*pid, "exe")
                .is_some_and(|exe| exe.file_name().is_some_and(|name| name == "xl"))
                && proc::link(*pid, "fd/1").is_some_and(|output| output == Path::new(&log))
        });
        Ok(monitor.and_then(proc::stat).map(|(_, process)| process))
    }

    fn hold(&self, process: ProcessId) -> Result<()> {
        signal(process, Signal::STOP)?;
        let deadline = Instant::now() + STOP_LIMIT;
        while proc::stat(process.pid).is_some_and(|(state, now)| now == process && state != 'T') {
            if Instant::now() >= deadline {
                return Err(Error::new(
                    ErrorKind::Toolstack,
                    format!("xl's monitor (process {}) does not stop", process.pid),
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn release(&self, process: ProcessId) -> Result<()> {
        signal(process, Signal::CONT)
    }
}

/// Signals the process if it is still the one.
fn signal(process: ProcessId, signal: Signal) -> Result<()> {
    let Some(handle) = Pid::from_raw(process.pid)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        .filter(|_| proc::stat(process.pid).is_some_and(|(_, now)| now == process))
    else {
        return Ok(());
    };
    match pidfd_send_signal(&handle, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(Error::io(
            format!("signal xl's monitor (process {})", process.pid),
            error,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_held_and_let_go_and_one_of_another_life_is_left_alone() {
        let mut child = Command::new("sleep").arg("30").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let (_, process) = proc::stat(pid).unwrap();
        let other = ProcessId {
            started: process.started + 1,
            ..process
        };
        signal(other, Signal::KILL).unwrap();
        XlMonitors.hold(process).unwrap();
        assert_eq!(proc::stat(pid).unwrap().0, 'T');
        XlMonitors.release(process).unwrap();
        let deadline = Instant::now() + STOP_LIMIT;
        while proc::stat(pid).unwrap().0 == 'T' {
            assert!(Instant::now() < deadline);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        XlMonitors.hold(process).unwrap();
    }
}
