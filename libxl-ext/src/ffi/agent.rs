//! The agent as the library sees it: a socket that brings reports.

use super::spawn;
use crate::agent::protocol::{ABORT, LINE_MAX, Order, Report};
use crate::error::{Error, ErrorKind, Result};
use rustix::net::SendFlags;
use std::ffi::{CStr, CString, OsStr};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
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
    /// What was read and is no whole line yet.
    partial: Vec<u8>,
    /// It said what it could not have said; nothing after that can be believed.
    broken: bool,
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
    /// Starts an agent and gives it the order.
    ///
    /// # Errors
    /// [`ErrorKind::Toolstack`] if the program cannot be started.
    pub(super) fn start(program: &Path, order: &Order) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::Toolstack, format!("start {}", program.display()))
                .because(error)
                .hint("is it installed with the library?")
        };
        let (socket, theirs) = UnixStream::pair().map_err(failed)?;
        let path =
            CString::new(program.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
        spawn::start(&path, theirs.as_fd()).map_err(failed)?;
        drop(theirs);
        let agent = Self {
            socket: Arc::new(socket),
            partial: Vec::new(),
            broken: false,
        };
        let mut text = serde_json::to_vec(order).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        send(&agent.socket, &text).map_err(failed)?;
        agent.socket.set_nonblocking(true).map_err(failed)?;
        Ok(agent)
    }

    /// The means to stop it, for another thread than the one that listens.
    pub(super) fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.socket))
    }

    /// Reads what there is, without waiting.
    pub(super) fn hear(&mut self) -> Heard {
        let mut chunk = [0; 16 << 10];
        let mut reports = Vec::new();
        while !self.broken {
            match (&*self.socket).read(&mut chunk) {
                Ok(0) => break,
                Ok(length) => self.partial.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    return Heard::Reports(reports);
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
        let mut rest = self.partial.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end + 1);
            rest = after;
            let Ok(report) = serde_json::from_slice(line) else {
                self.broken = true;
                return;
            };
            reports.push(report);
        }
        self.partial = rest.to_vec();
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
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl AsFd for Agent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
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
        while let Err(error) = Agent::start(&program, &order()) {
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
        (keep, Agent::start(&program, &order()).unwrap())
    }

    fn hear_all(agent: &mut Agent) -> Vec<Report> {
        let mut all = Vec::new();
        loop {
            match agent.hear() {
                Heard::Reports(reports) => all.extend(reports),
                Heard::End => return all,
            }
            let mut poll = [rustix::event::PollFd::new(
                &*agent.socket,
                rustix::event::PollFlags::IN,
            )];
            rustix::event::poll(&mut poll, None).unwrap();
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
}
