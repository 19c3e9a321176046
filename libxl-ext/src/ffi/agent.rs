//! The agent as the library sees it: a socket that brings reports.

use super::spawn;
use crate::agent::protocol::{ABORT, LINE_MAX, Order, Report};
use crate::error::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::process::{PidfdFlags, pidfd_open};
use std::ffi::{CStr, CString, OsStr};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The directory of the agent below that of the shared library.
const PRIVATE: &str = "libxl-ext";
/// The program.
const PROGRAM: &str = "libxl-ext-agent";
/// Where `make install` puts it, for a library that was linked statically.
const INSTALLED: &str = match option_env!("LIBXL_EXT_PRIVATE_DIR") {
    Some(directory) => directory,
    None => "/usr/local/lib/libxl-ext",
};

/// One agent at work.
pub(super) struct Agent {
    socket: Arc<UnixStream>,
    process: Process,
    /// What was read and is no whole line yet.
    partial: Vec<u8>,
    /// How much of that is known to have no end of a line.
    searched: usize,
    /// It said what it could not have said; nothing after that can be believed.
    broken: bool,
}

/// The agent's process. Its end is watched beside that of the socket, of which a process that the
/// application forked may have a copy.
enum Process {
    /// The descriptor becomes readable when it ends.
    Watched(OwnedFd),
    /// It had ended before it could be watched.
    Ended,
    /// The kernel has no such descriptors.
    Unwatched,
}

/// What reading brought.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    /// Reports, oldest first; more may come.
    Reports(Vec<Report>),
    /// The agent has ended.
    End,
}

impl Agent {
    /// Starts an agent, which then waits for its order.
    ///
    /// # Errors
    /// [`ErrorKind::Toolstack`] if the program cannot be started.
    pub(super) fn start(program: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| {
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            let failed = Error::new(ErrorKind::Toolstack, format!("start {}", program.display()))
                .because(error);
            if missing {
                return failed.hint("is it installed with the library?");
            }
            failed
        };
        let (socket, theirs) = UnixStream::pair().map_err(failed)?;
        let path =
            CString::new(program.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
        let pid = spawn::start(&path, theirs.as_fd()).map_err(failed)?;
        drop(theirs);
        socket.set_nonblocking(true).map_err(failed)?;
        let socket = spawn::off_standard(socket.into()).map_err(failed)?;
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => Process::Watched(spawn::off_standard(process).map_err(failed)?),
            Err(Errno::SRCH) => Process::Ended,
            Err(_) => Process::Unwatched,
        };
        Ok(Self {
            socket: Arc::new(socket.into()),
            process,
            partial: Vec::new(),
            searched: 0,
            broken: false,
        })
    }

    /// Gives it the order.
    ///
    /// # Errors
    /// [`ErrorKind::Toolstack`] if it has ended; nothing was done then.
    pub(super) fn order(&self, order: &Order) -> Result<()> {
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::Toolstack, "give the agent its order").because(error)
        };
        let mut text = serde_json::to_vec(order).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        send(&self.socket, &text).map_err(failed)
    }

    /// What becomes readable when there is something to hear.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let process = match &self.process {
            Process::Watched(process) => Some(process.as_fd()),
            Process::Ended | Process::Unwatched => None,
        };
        std::iter::once(self.socket.as_fd()).chain(process)
    }

    /// Waits until there is something to hear.
    pub(super) fn wait(&self) {
        if matches!(self.process, Process::Ended) {
            return;
        }
        let mut polled: Vec<PollFd<'_>> = self
            .descriptors()
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        // A signal ends the wait early, as does an error, which the reading then meets.
        let _ = poll(&mut polled, None);
    }

    fn has_ended(&self) -> bool {
        match &self.process {
            Process::Ended => true,
            Process::Unwatched => false,
            Process::Watched(process) => {
                let mut polled = [PollFd::new(process, PollFlags::IN)];
                poll(&mut polled, Some(&Timespec::default())) == Ok(1)
            }
        }
    }

    /// The means to stop it, for another thread than the one that listens.
    pub(super) fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.socket))
    }

    /// Reads what there is, without waiting.
    pub(super) fn hear(&mut self) -> Heard {
        let mut chunk = [0; 16 << 10];
        let mut reports = Vec::new();
        let mut ended = false;
        while !self.broken {
            match (&*self.socket).read(&mut chunk) {
                Ok(0) => break,
                Ok(length) => self.partial.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if ended {
                        break;
                    }
                    // What it said before its end is read once more.
                    ended = self.has_ended();
                    if !ended {
                        return Heard::Reports(reports);
                    }
                }
                Err(_) => break,
            }
            self.take_lines(&mut reports);
        }
        // What came before the end is told first; the end is found again.
        if reports.is_empty() {
            Heard::End
        } else {
            Heard::Reports(reports)
        }
    }

    fn take_lines(&mut self, reports: &mut Vec<Report>) {
        let mut start = 0;
        while let Some(length) = self.partial[self.searched..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            let end = self.searched + length;
            let Ok(report) = serde_json::from_slice(&self.partial[start..end]) else {
                self.broken = true;
                return;
            };
            reports.push(report);
            start = end + 1;
            self.searched = start;
        }
        self.partial.drain(..start);
        self.searched = self.partial.len();
        self.broken = self.partial.len() > LINE_MAX;
    }
}

/// Stops an agent.
#[derive(Clone)]
pub(super) struct Stopper(Arc<UnixStream>);

impl Stopper {
    /// Asks it to stop. One that has ended cannot be asked any more.
    pub(super) fn stop(&self) {
        let _ = send(&self.0, format!("{ABORT}\n").as_bytes());
    }
}

/// Writes without the signal that the end of the agent would raise.
fn send(socket: &UnixStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(Errno::INTR) => {}
            // An agent reads at once what it is told.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(socket, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The agent beside the shared library that this code is in, or where `make install` put it.
pub(super) fn program() -> PathBuf {
    beside_the_library()
        .unwrap_or_else(|| PathBuf::from(INSTALLED))
        .join(PROGRAM)
}

fn beside_the_library() -> Option<PathBuf> {
    // SAFETY: the struct is valid memory for the call to fill.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: the address is one of this very code.
    let found = unsafe { libc::dladdr(program as fn() -> PathBuf as *const _, &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: it is a C string that lives as long as the library is loaded.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    let library = Path::new(OsStr::from_bytes(name.to_bytes()));
    // In a program that was linked statically it is whatever the program was called by.
    let shared = library
        .file_name()
        .is_some_and(|name| name.as_bytes().starts_with(b"libxlext.so"));
    if !shared || !library.is_absolute() {
        return None;
    }
    Some(library.parent()?.join(PRIVATE))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::agent::protocol::{Answer, Call, Level, VERSION};
    use std::os::unix::fs::PermissionsExt;

    pub(crate) fn order() -> Order {
        Order {
            version: VERSION,
            application: std::process::id(),
            store: None,
            domain: "g1".into(),
            call: Call::List,
        }
    }

    /// A program that is a shell script; the socket is its standard input and output.
    pub(crate) fn script(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("agent");
        std::fs::write(&program, format!("#!/bin/sh\nexec >&0\n{text}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        // Another test's child may still have the file open for writing, which forbids to execute it.
        while let Err(error) = Agent::start(&program) {
            assert!(
                error.report().contains("Text file busy"),
                "{}",
                error.report()
            );
        }
        (directory, program)
    }

    fn scripted(text: &str) -> (tempfile::TempDir, Agent) {
        let (keep, program) = script(text);
        let agent = Agent::start(&program).unwrap();
        agent.order(&order()).unwrap();
        (keep, agent)
    }

    fn hear_all(agent: &mut Agent) -> Vec<Report> {
        let mut all = Vec::new();
        loop {
            match agent.hear() {
                Heard::Reports(reports) => all.extend(reports),
                Heard::End => return all,
            }
            agent.wait();
        }
    }

    #[test]
    fn reports_are_heard_up_to_the_end_also_in_pieces() {
        let (_keep, mut agent) = scripted(
            r#"read order; case $order in *g1*) ;; *) exit;; esac
               printf '{"log":["notice","on'; sleep 0.1; printf 'e"]}\n{"done":"nothing"}\n'"#,
        );
        assert_eq!(
            hear_all(&mut agent),
            [
                Report::Log(Level::Notice, "one".into()),
                Report::Done(Answer::Nothing)
            ]
        );
    }

    #[test]
    fn nonsense_ends_it() {
        let (_keep, mut agent) =
            scripted("read order; echo nonsense; echo '{\"done\":\"nothing\"}'");
        assert_eq!(hear_all(&mut agent), []);
    }

    #[test]
    fn it_is_asked_to_stop_and_may_be_gone() {
        let (_keep, mut agent) = scripted(
            r#"read order; read word; [ "$word" = abort ] && echo '{"failed":[-27,"stopped"]}'"#,
        );
        agent.stopper().stop();
        assert_eq!(
            hear_all(&mut agent),
            [Report::Failed(-27, "stopped".into())]
        );
        agent.stopper().stop();
    }

    #[test]
    fn its_end_is_noticed_though_a_copy_of_its_socket_is_held() {
        let (_keep, mut agent) = scripted("read order; sleep 30 & exit");
        let begun = std::time::Instant::now();
        assert_eq!(hear_all(&mut agent), []);
        assert!(begun.elapsed().as_secs() < 20, "it waited for the copy");
    }
}
