//! The monitor of a domain behind [`Monitors`]: the `xl` process that `xl create` or `xl restore` left
//! behind, which acts on the guest's reboot, poweroff and crash.
//!
//! It takes a suspend for the end of its work and exits ("Domain has suspended"), also when the domain
//! goes on afterwards. So it is stopped over a suspend that is to be resumed: when it continues, libxl
//! asks the hypervisor anew, and finds nothing that happened.

use super::{Monitors, proc};
use crate::error::{Error, ErrorKind, Result};
use crate::model::process::ProcessId;
use rustix::process::Signal;
use std::fs::{File, Metadata};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a process may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The processes of this host.
pub struct XlMonitors;

impl Monitors for XlMonitors {
    fn find(&self, domain: &str, domid: Option<u32>) -> Result<Option<ProcessId>> {
        // libxl_create_logfile names it so; the monitor's output goes there for as long as it lives. A domain that
        // migrated here had the second name while it came.
        let logs = [domain.to_owned(), format!("{domain}--incoming")]
            .map(|name| PathBuf::from(format!("/var/log/xen/xl-{name}.log")));
        let is_it = |pid: &i32| {
            let exe = proc::link(*pid, "exe");
            let is_xl = exe.is_some_and(|exe| exe.file_name().is_some_and(|name| name == "xl"));
            let Some(log) = proc::link(*pid, "fd/1").filter(|_| is_xl) else {
                return false;
            };
            match (domid, waits_for(*pid)) {
                // Also under the name that a domain had before it was renamed.
                (Some(domid), Some(waits_for)) => waits_for == domid,
                _ => logs.contains(&log),
            }
        };
        let monitor = proc::pids().find(is_it);
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

/// How much of the end of a monitor's log is read, in bytes: what it waits for is said anew after each reboot.
const LOG_END: u64 = 64 << 10;

/// The number of the domain that a monitor says to wait for, if its log says so.
fn waits_for(pid: i32) -> Option<u32> {
    let mut log = File::open(format!("/proc/{pid}/fd/1")).ok()?;
    let metadata = log.metadata().ok().filter(Metadata::is_file)?;
    log.seek(SeekFrom::Start(metadata.len().saturating_sub(LOG_END)))
        .ok()?;
    let mut end = Vec::new();
    log.take(LOG_END).read_to_end(&mut end).ok()?;
    let end = String::from_utf8_lossy(&end);
    end.lines().rev().find_map(|line| waited_for(line, pid))
}

/// From xl's "Waiting for domain NAME (domid N) to die [pid P]".
fn waited_for(line: &str, pid: i32) -> Option<u32> {
    let line = line.strip_prefix("Waiting for domain ")?;
    let line = line.strip_suffix(&format!(") to die [pid {pid}]"))?;
    line.rsplit_once(" (domid ")?.1.parse().ok()
}

/// Signals the process if it is still the one.
fn signal(process: ProcessId, signal: Signal) -> Result<()> {
    proc::signal(process, signal).map_err(|error| {
        Error::io(
            format!("signal xl's monitor (process {})", process.pid),
            error,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_monitor_says_which_domain_it_waits_for() {
        let line = "Waiting for domain a (domid 1) b--incoming (domid 29) to die [pid 4163]";
        assert_eq!(waited_for(line, 4163), Some(29));
        assert_eq!(waited_for(line, 163), None);
        assert_eq!(
            waited_for("Domain 29 has shut down, reason code 2 0x2", 29),
            None
        );
    }

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
