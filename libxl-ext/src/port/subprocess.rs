//! Running the programs that we stand on, with their words kept for the error message.

use crate::error::{Error, ErrorKind, Result};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// Longest part of a program's error output that is shown, in bytes.
const COMPLAINT_MAX: u64 = 4096;

/// What becomes of the program if we are killed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    /// It finishes what it is doing.
    OnItsOwn,
    /// It is killed too.
    WithUs,
}

/// What a program said before it failed.
#[derive(Debug, thiserror::Error)]
#[error("{program} {status}{}", self.said())]
struct ProgramFailure {
    program: String,
    status: std::process::ExitStatus,
    complaint: String,
}

impl ProgramFailure {
    fn said(&self) -> String {
        let lines: Vec<&str> = self
            .complaint
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        if lines.is_empty() {
            String::new()
        } else {
            format!(": {}", lines.join("; "))
        }
    }
}

/// A program that runs beside us, and is killed if we are.
pub(super) struct Beside {
    /// The program.
    pub(super) child: Child,
    complaint: File,
    program: String,
}

impl Beside {
    /// Why it has ended, if it has.
    pub(super) fn failure(&mut self, what: &str) -> Result<Option<Error>> {
        let failed = |error: std::io::Error| Error::new(ErrorKind::Toolstack, what).because(error);
        let Some(status) = self.child.try_wait().map_err(failed)? else {
            return Ok(None);
        };
        let mut text = Vec::new();
        let complaint = &mut self.complaint;
        complaint
            .rewind()
            .and_then(|()| complaint.take(COMPLAINT_MAX).read_to_end(&mut text))
            .map_err(failed)?;
        let failure = ProgramFailure {
            program: self.program.clone(),
            status,
            complaint: String::from_utf8_lossy(&text).into_owned(),
        };
        Ok(Some(
            Error::new(ErrorKind::Toolstack, what).because(failure),
        ))
    }
}

/// Starts a program and lets it run.
pub(super) fn spawn(mut command: Command, what: &str) -> Result<Beside> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Toolstack, what)
            .because(error)
            .hint(format!("is {program} installed?"))
    };
    let complaint = tempfile::tempfile().map_err(failed)?;
    command
        .env("LC_ALL", "C")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(complaint.try_clone().map_err(failed)?);
    // SAFETY: between fork and exec only one system call is made, which allocates nothing.
    unsafe {
        command.pre_exec(|| {
            set_parent_process_death_signal(Some(Signal::KILL)).map_err(std::io::Error::from)
        });
    }
    tracing::debug!("start {command:?}");
    let child = command.spawn().map_err(failed)?;
    Ok(Beside {
        child,
        complaint,
        program,
    })
}

/// Starts a program that goes on when we end. What it complains of goes to `log`.
pub(super) fn leave(mut command: Command, log: File, what: &str) -> Result<Child> {
    command
        .env("LC_ALL", "C")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    tracing::debug!("start {command:?}");
    command.spawn().map_err(|error| {
        let program = command.get_program().to_string_lossy();
        Error::new(ErrorKind::Toolstack, what)
            .because(error)
            .hint(format!("is {program} installed?"))
    })
}

/// Runs a program to its end and returns its standard output.
///
/// Its output goes through files and not pipes: a daemon that it leaves behind may keep them open.
pub(super) fn run(command: Command, death: Death, what: &str) -> Result<Vec<u8>> {
    run_with_input(command, death, Stdio::null(), what)
}

/// As [`run`], for a program that reads something.
pub(super) fn run_with_input(
    mut command: Command,
    death: Death,
    input: Stdio,
    what: &str,
) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Toolstack, what)
            .because(error)
            .hint(format!("is {program} installed?"))
    };
    let mut output = tempfile::tempfile().map_err(failed)?;
    let mut complaint = tempfile::tempfile().map_err(failed)?;
    command
        .env("LC_ALL", "C")
        // ^C is for us alone: we decide what becomes of a program that changes a domain or an image.
        .process_group(0)
        .stdin(input)
        .stdout(output.try_clone().map_err(failed)?)
        .stderr(complaint.try_clone().map_err(failed)?);
    // SAFETY: between fork and exec only one system call is made, which allocates nothing.
    unsafe {
        command.pre_exec(move || match death {
            Death::WithUs => {
                set_parent_process_death_signal(Some(Signal::KILL)).map_err(std::io::Error::from)
            }
            // A service that is stopped signals all its processes. What comes of this one we decide.
            Death::OnItsOwn => match libc::signal(libc::SIGTERM, libc::SIG_IGN) {
                libc::SIG_ERR => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            },
        });
    }
    tracing::debug!("run {command:?}");
    let status = command.status().map_err(failed)?;
    let mut text = Vec::new();
    if status.success() {
        output
            .rewind()
            .and_then(|()| output.read_to_end(&mut text))
            .map_err(failed)?;
        return Ok(text);
    }
    complaint
        .rewind()
        .and_then(|()| complaint.take(COMPLAINT_MAX).read_to_end(&mut text))
        .map_err(failed)?;
    let complaint = String::from_utf8_lossy(&text).into_owned();
    let full = complaint.contains("No space left on device");
    let kind = if full {
        ErrorKind::NoSpace
    } else {
        ErrorKind::Toolstack
    };
    Err(Error::new(kind, what).because(ProgramFailure {
        program,
        status,
        complaint,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_the_programs_own_words() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo first >&2; echo second >&2; exit 3"]);
        let error = run(command, Death::OnItsOwn, "try it").unwrap_err();
        assert_eq!(error.report(), "try it: sh exit status: 3: first; second");
    }

    #[test]
    fn a_program_that_is_missing_is_named() {
        let error = run(Command::new("no-such-program"), Death::WithUs, "try it").unwrap_err();
        assert!(
            error.report().contains("is no-such-program installed?"),
            "{}",
            error.report()
        );
    }
}
