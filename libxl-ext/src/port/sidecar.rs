//! The QEMU of a secondary: without a machine, beside whatever the domain itself will be, since the QEMU of Debian's Xen
//! has no replication driver. One for each domain: its commands are for everything that it replicates.
//!
//! It goes on when we end. Whoever comes later finds it by its directory.

use super::proc;
use super::qmp::{HumanMonitorCommand, Locked};
use super::qmp_wire::{Command, Terms, is_refusal};
use super::storage_daemon::{Quit, SOCKET};
use super::unused_node::BlockdevAdd;
use super::{Worker, subprocess};
use crate::error::{Error, ErrorKind, Result};
use crate::model::process::ProcessId;
use crate::model::replication::{NbdAddress, as_text};
use crate::store::{absent_is_fine, atomic, private_directory};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

/// The only one of Debian's that has the replication driver and its commands.
const PROGRAM: &str = "qemu-system-x86_64";

/// The package that it is in.
const PACKAGE: &str = "qemu-system-x86";

/// Who it is, in its directory.
const IDENTITY: &str = "process";

/// What it complains of, in its directory.
const LOG: &str = "log";

/// Longest part of its complaints that is shown, in bytes.
const COMPLAINT_MAX: u64 = 4096;

/// How long it may take until it can be asked.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Between two looks at whether it has done something.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A QEMU without a machine, of ours.
pub(crate) struct Sidecar {
    directory: PathBuf,
    process: ProcessId,
    /// If we have started it, so that it can be waited for.
    child: Option<Child>,
    limit: Duration,
}

#[derive(Serialize)]
struct NbdServerStart {
    addr: Value,
}

impl Command for NbdServerStart {
    const NAME: &'static str = "nbd-server-start";
    type Answer = Value;
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct BlockExportAdd<'a> {
    r#type: &'static str,
    id: &'a str,
    node_name: &'a str,
    name: &'a str,
    writable: bool,
}

impl Command for BlockExportAdd<'_> {
    const NAME: &'static str = "block-export-add";
    type Answer = Value;
}

#[derive(Serialize)]
struct BlockExportDel<'a> {
    id: &'a str,
    /// `hard`: whoever uses it is cut off.
    mode: &'static str,
}

impl Command for BlockExportDel<'_> {
    const NAME: &'static str = "block-export-del";
    type Answer = Value;
}

#[derive(Serialize)]
struct QueryBlockExports {}

impl Command for QueryBlockExports {
    const NAME: &'static str = "query-block-exports";
    type Answer = Vec<Export>;
}

#[derive(Deserialize)]
struct Export {
    id: String,
}

/// Starts or ends the replication of everything in the process.
#[derive(Serialize)]
struct XenSetReplication {
    enable: bool,
    primary: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    failover: Option<bool>,
}

impl Command for XenSetReplication {
    const NAME: &'static str = "xen-set-replication";
    type Answer = Value;
}

#[derive(Serialize)]
struct XenColoDoCheckpoint {}

impl Command for XenColoDoCheckpoint {
    const NAME: &'static str = "xen-colo-do-checkpoint";
    type Answer = Value;
}

#[derive(Serialize)]
struct QueryXenReplicationStatus {}

impl Command for QueryXenReplicationStatus {
    const NAME: &'static str = "query-xen-replication-status";
    type Answer = ReplicationStatus;
}

#[derive(Deserialize)]
struct ReplicationStatus {
    error: bool,
    desc: Option<String>,
}

impl Sidecar {
    /// Starts one in a directory of its own, which is made private. It has no disks yet.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] if there is one already; else if it does not start. The limit is that for each of its answers.
    pub(crate) fn start(directory: &Path, limit: Duration) -> Result<Self> {
        let what = format!("start the secondary's QEMU in {}", directory.display());
        private_directory(directory).map_err(|error| error.while_doing(&what))?;
        if let Some(other) = Self::left_in(directory)? {
            let pid = other.pid;
            return Err(Error::new(ErrorKind::DomainState, &what)
                .because(format!("there is one already (process {pid})"))
                .hint("stop its replication, or let it fail over, first"));
        }
        let socket = directory.join(SOCKET);
        absent_is_fine(std::fs::remove_file(&socket)).map_err(|error| Error::io(&what, error))?;
        let mut command = std::process::Command::new(PROGRAM);
        command.args(["-machine", "none", "-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-S", "-chardev"]);
        // In an option a comma ends a value, unless it is doubled.
        let path = as_text(&socket)?.replace(',', ",,");
        command.arg(format!("socket,id=qmp,server=on,wait=off,path={path}"));
        command.args(["-mon", "chardev=qmp,mode=control"]);
        let log = new_log(&directory.join(LOG)).map_err(|error| error.while_doing(&what))?;
        let child = subprocess::leave(command, log, &what)
            .map_err(|error| error.hint(format!("{PROGRAM} is in the package {PACKAGE}")))?;
        let mut started = Self {
            directory: directory.into(),
            process: ProcessId { pid: 0, started: 0 },
            child: Some(child),
            limit,
        };
        started.wait_for_socket(&socket).map_err(|error| {
            started.kill();
            started.with_complaint(error.while_doing(&what))
        })?;
        Ok(started)
    }

    fn wait_for_socket(&mut self, socket: &Path) -> Result<()> {
        let child = self.child.as_ref().map_or(0, Child::id);
        let found = i32::try_from(child).ok().and_then(proc::stat);
        let Some((_, process)) = found else {
            return Err(Error::new(ErrorKind::Toolstack, "it ended at once"));
        };
        self.process = process;
        let identity = serde_json::to_vec(&process)
            .map_err(|error| Error::new(ErrorKind::Io, "write JSON").because(error))?;
        atomic::replace(&self.directory.join(IDENTITY), &identity)?;
        let deadline = Instant::now() + START_LIMIT;
        while let Err(error) = std::os::unix::net::UnixStream::connect(socket) {
            if !self.is_alive() || Instant::now() >= deadline {
                return Err(
                    Error::new(ErrorKind::Toolstack, "its monitor does not answer").because(error),
                );
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// The process of a sidecar that runs in a directory, if one does.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if what is written down of it cannot be read.
    pub(crate) fn left_in(directory: &Path) -> Result<Option<ProcessId>> {
        let path = directory.join(IDENTITY);
        let Some(text) = atomic::read_own(&path)? else {
            return Ok(None);
        };
        let process: ProcessId = serde_json::from_slice(&text).map_err(|error| {
            let what = format!("read {}", path.display());
            Error::new(ErrorKind::Corrupt, what).because(error)
        })?;
        Ok(proc::is_alive(process).then_some(process))
    }

    /// One that runs in a directory, if one does.
    ///
    /// # Errors
    /// As [`Sidecar::left_in`].
    pub(crate) fn find(directory: &Path, limit: Duration) -> Result<Option<Self>> {
        let process = Self::left_in(directory)?;
        Ok(process.map(|process| Self {
            directory: directory.into(),
            process,
            child: None,
            limit,
        }))
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        // One that was killed can be waited for only when its last thread is gone, and answers nobody before.
        let is_left = proc::is_alive(self.process);
        match &mut self.child {
            Some(child) => is_left && matches!(child.try_wait(), Ok(None)),
            None => is_left,
        }
    }

    fn run<C: Command>(&mut self, command: &C) -> Result<C::Answer> {
        let mut qemu = self.connect()?;
        let answer = qemu.monitor.run(command);
        drop(qemu);
        answer.map_err(|error| self.with_complaint(error))
    }

    fn connect(&mut self) -> Result<Locked> {
        if !self.is_alive() {
            let pid = self.process.pid;
            let what = format!("the secondary's QEMU (process {pid}) has ended");
            return Err(self.with_complaint(Error::new(ErrorKind::Toolstack, what)));
        }
        let terms = Terms {
            limit: self.limit,
            out_of_band: false,
        };
        Locked::connect_to(&Worker::Daemon(self.directory.clone()), terms)
    }

    /// Adds what it said itself, if it said anything.
    fn with_complaint(&self, error: Error) -> Error {
        let mut text = Vec::new();
        let path = self.directory.join(LOG);
        if let Ok(log) = atomic::open_own(&path) {
            // What cannot be read of it is not worth another error.
            let _ = log.take(COMPLAINT_MAX).read_to_end(&mut text);
        }
        let said = String::from_utf8_lossy(&text);
        if said.trim().is_empty() {
            return error;
        }
        let said = said.trim().replace('\n', "; ");
        error.hint(format!("it said: {said}"))
    }

    /// Opens a graph of nodes.
    ///
    /// # Errors
    /// If QEMU does not take one; those before it stay.
    pub(crate) fn open(&mut self, nodes: &[Value]) -> Result<()> {
        for node in nodes {
            self.run(&BlockdevAdd(node))?;
        }
        Ok(())
    }

    /// Begins to listen. There is nothing to be had until something is exported.
    ///
    /// # Errors
    /// If the address is taken.
    pub(crate) fn listen(&mut self, address: &NbdAddress) -> Result<()> {
        let addr = match address {
            NbdAddress::Unix(path) => json!({ "type": "unix", "data": { "path": as_text(path)? } }),
            NbdAddress::Loopback(port) => json!({
                "type": "inet",
                "data": { "host": "127.0.0.1", "port": port.to_string(), "ipv4": true, "ipv6": false },
            }),
        };
        self.run(&NbdServerStart { addr }).map(drop)
    }

    /// Lets others write to a node, under a name that is the export's id too.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub(crate) fn export(&mut self, node_name: &str, name: &str) -> Result<()> {
        self.run(&BlockExportAdd {
            r#type: "nbd",
            id: name,
            node_name,
            name,
            writable: true,
        })
        .map(drop)
    }

    /// Takes an export away, also from whoever writes to it now, and waits until nobody can any more. One that is gone
    /// already is no error.
    ///
    /// # Errors
    /// If QEMU cannot be reached, or does not do it within the limit.
    pub(crate) fn fence(&mut self, name: &str) -> Result<()> {
        let removal = BlockExportDel {
            id: name,
            mode: "hard",
        };
        match self.run(&removal) {
            Err(error) if !is_refusal(&error) => return Err(error),
            _ => {}
        }
        let deadline = Instant::now() + self.limit;
        loop {
            let exports = self.run(&QueryBlockExports {})?;
            if exports.iter().all(|export| export.id != name) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::new(
                    ErrorKind::Toolstack,
                    format!("the primary cannot be cut off from disk {name}"),
                ));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// From now on keeps what the primary overwrites.
    ///
    /// # Errors
    /// If QEMU refuses; some of several disks may have begun then.
    pub(crate) fn keep(&mut self) -> Result<()> {
        self.run(&XenSetReplication {
            enable: true,
            primary: false,
            failover: None,
        })
        .map(drop)
    }

    /// Forgets what the primary has overwritten: the present is what is kept from now on. Nothing may be on its way from
    /// the primary, or QEMU 7.2 aborts ("First cluster in emptied image is in use").
    ///
    /// # Errors
    /// If QEMU refuses.
    pub(crate) fn checkpoint(&mut self) -> Result<()> {
        self.run(&XenColoDoCheckpoint {}).map(drop)
    }

    /// Begins to put back what the primary has overwritten since the last checkpoint. It goes on by itself.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub(crate) fn begin_to_merge(&mut self) -> Result<()> {
        self.run(&XenSetReplication {
            enable: false,
            primary: false,
            failover: Some(true),
        })
        .map(drop)
    }

    /// Writes what it holds of a node, its tables too.
    ///
    /// # Errors
    /// If it could not.
    pub(crate) fn flush(&mut self, node_name: &str) -> Result<()> {
        let command_line = format!("qemu-io {node_name} flush");
        let said = self.run(&HumanMonitorCommand { command_line })?;
        if said.trim().is_empty() {
            return Ok(());
        }
        let what = format!("flush the secondary's disk {node_name}");
        Err(Error::new(ErrorKind::Toolstack, what).because(said))
    }

    /// Lets it go on without us: it is waited for, so that it does not stay in the list of processes when it ends.
    pub(crate) fn leave(mut self) {
        if let Some(mut child) = self.child.take() {
            std::thread::spawn(move || child.wait());
        }
    }

    /// What QEMU says is wrong with the replication, if anything is.
    ///
    /// # Errors
    /// If QEMU cannot be reached.
    pub(crate) fn trouble(&mut self) -> Result<Option<String>> {
        let status = self.run(&QueryXenReplicationStatus {})?;
        let unknown = || String::from("an error that it does not name");
        Ok(status.error.then(|| status.desc.unwrap_or_else(unknown)))
    }

    /// Lets it write what it holds, close everything and end. What it was given to keep is as it is.
    ///
    /// # Errors
    /// If it has ended otherwise, or does not end within the limit: it is killed then.
    pub(crate) fn end(&mut self) -> Result<()> {
        let what = "end the secondary's QEMU";
        let said = self.run(&Quit {});
        let deadline = Instant::now() + self.limit;
        while said.is_ok() && self.is_alive() && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY);
        }
        let is_late = self.is_alive();
        self.kill();
        said.map_err(|error| error.while_doing(what))?;
        if is_late {
            let error = Error::new(ErrorKind::Toolstack, what);
            return Err(error.because("it took too long and was killed"));
        }
        let status = self.child.as_mut().map(Child::wait).transpose();
        match status.map_err(|error| Error::io(what, error))? {
            Some(status) if !status.success() => {
                let error = Error::new(ErrorKind::Toolstack, what).because(status.to_string());
                Err(self.with_complaint(error))
            }
            _ => Ok(()),
        }
    }

    /// Ends it at once, whatever it holds.
    pub(crate) fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        } else if let Err(error) = proc::signal(self.process, Signal::KILL) {
            tracing::warn!("kill process {}: {error}", self.process.pid);
        }
        for name in [SOCKET, IDENTITY] {
            let _ = std::fs::remove_file(self.directory.join(name));
        }
    }
}

/// A file of ours for its complaints, without those of one before it.
fn new_log(path: &Path) -> Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::APPEND;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let opened = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR);
    let opened = opened.map_err(|error| Error::io(format!("open {}", path.display()), error))?;
    Ok(opened.into())
}
