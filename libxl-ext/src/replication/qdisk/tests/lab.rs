//! What the tests stand on: images, a primary, a secondary. All processes end with the test.

use crate::error::Result;
use crate::model::disk::{DiskTarget, ImageFormat};
use crate::model::process::ProcessId;
use crate::port::{Sidecar, Worker};
use crate::replication::qdisk::{
    Guest, Limits, NbdAddress, Pulse, Secondary, checkpoint, end_left_over, register,
};
use crate::replication::{Mode, Phase, Registry, StateId};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

pub(super) const MIB: usize = 1 << 20;

/// Where programs come from that have to be there: without them nothing is shown, so it is no success.
const PACKAGES: [(&str, &str); 3] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
];

/// For tests that wait for nothing in vain.
pub(super) const PATIENT: Limits = Limits {
    answer: Duration::from_secs(60),
    pulse: Duration::from_secs(60),
    stall: Duration::from_secs(60),
    merge: Duration::from_secs(60),
};

pub(super) struct Lab {
    // Dropped in this order: the processes, then their files.
    primary: Ended,
    left: LeftOver,
    _host: Shared,
    pub(super) directory: tempfile::TempDir,
    pub(super) disks: Vec<DiskTarget>,
    pub(super) secondary_disks: Vec<DiskTarget>,
    pub(super) primary_set: Registry,
    pub(super) secondary_set: Registry,
    pub(super) limits: Limits,
    pub(super) secondary_id: Option<StateId>,
}

/// A process that is killed when it is not needed any more.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A sidecar, if the test leaves one.
struct LeftOver(PathBuf);

impl Drop for LeftOver {
    fn drop(&mut self) {
        if let Err(error) = end_left_over(&self.0, PATIENT) {
            eprintln!("{}", error.report());
        }
    }
}

/// One lab at a time: two QEMUs each are enough for a small machine.
struct Shared(#[allow(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

static HOST: Mutex<()> = Mutex::new(());

/// Some bytes, other ones for each seed.
pub(super) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(&mut next)
        .take(length.div_ceil(8))
        .flatten()
        .collect();
    bytes.truncate(length);
    bytes
}

impl Lab {
    /// A primary of disks of these lengths in bytes, and images of the same for the secondary.
    pub(super) fn new(lengths: &[usize]) -> Self {
        Self::with(lengths, lengths, PATIENT)
    }

    pub(super) fn with(lengths: &[usize], secondary: &[usize], limits: Limits) -> Self {
        for (program, package) in PACKAGES {
            let found = Command::new(program).arg("--version").output();
            assert!(
                found.is_ok(),
                "{program} is missing: install the package {package}"
            );
        }
        let host = HOST
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let directory = tempfile::tempdir().unwrap();
        let disk = |side: &str, at: usize| DiskTarget {
            vdev: format!("xvd{}", char::from(b'a' + u8::try_from(at).unwrap())),
            image: directory.path().join(format!("{side}{at}")).into(),
            format: ImageFormat::Raw,
        };
        let make = |side: &str, lengths: &[usize], seed: u64| -> Vec<DiskTarget> {
            let disks = lengths.iter().enumerate().map(|(at, length)| {
                let disk = disk(side, at);
                let content = noise(seed + at as u64, *length);
                std::fs::write(&disk.image, content).unwrap();
                disk
            });
            disks.collect()
        };
        let disks = make("primary", lengths, 1);
        let secondary_disks = make("secondary", secondary, 101);
        let primary = start_primary(directory.path(), &disks);
        let left = LeftOver(directory.path().join("sidecar"));
        Self {
            primary: Ended(primary),
            left,
            _host: Shared(host),
            directory,
            disks,
            secondary_disks,
            primary_set: Registry::new(),
            secondary_set: Registry::new(),
            limits,
            secondary_id: None,
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn address(&self) -> NbdAddress {
        NbdAddress::Unix(self.path("nbd"))
    }

    pub(super) fn qemu(&self) -> Worker {
        Worker::Daemon(self.path("primary"))
    }

    pub(super) fn secondary(&self) -> Result<Secondary> {
        Secondary::new(
            self.secondary_disks.clone(),
            self.address(),
            self.left.0.clone(),
            self.path("buffers"),
            self.limits,
        )
    }

    pub(super) fn start_secondary(&mut self) {
        let secondary = self.secondary().unwrap();
        let id = self
            .secondary_set
            .new_state("g1", Box::new(secondary))
            .unwrap();
        self.secondary_set.start_all(Mode::Secondary).unwrap();
        self.secondary_id = Some(id);
    }

    pub(super) fn register(&self) -> Result<Vec<StateId>> {
        let (qemu, address) = (self.qemu(), self.address());
        let pulse = Pulse::FeltWhenAsked;
        register(
            &self.primary_set,
            &qemu,
            &self.disks,
            &address,
            self.limits,
            pulse,
        )
    }

    pub(super) fn start(&mut self) -> Vec<StateId> {
        self.start_secondary();
        let ids = self.register().unwrap();
        self.primary_set.start_all(Mode::Primary).unwrap();
        ids
    }

    /// Both sides started, and a first checkpoint made.
    pub(super) fn replicating(lengths: &[usize]) -> Self {
        let mut lab = Self::new(lengths);
        lab.start();
        lab.checkpoint().unwrap();
        lab
    }

    pub(super) fn checkpoint(&self) -> Result<()> {
        checkpoint(&Quiet, &self.primary_set, &self.secondary_set, || ())
    }

    /// What the disks of the primary hold.
    pub(super) fn content(&self) -> Vec<Vec<u8>> {
        read(&self.disks)
    }

    pub(super) fn secondary_content(&self) -> Vec<Vec<u8>> {
        read(&self.secondary_disks)
    }

    /// Writes bytes of one kind to a disk of the primary, as its guest would.
    pub(super) fn write(&self, at: usize, offset: usize, length: usize, byte: u8) {
        let output = self.writer(at).write(offset, length, byte);
        assert!(output.status.success(), "{output:?}");
    }

    pub(super) fn writer(&self, at: usize) -> Writer {
        Writer {
            socket: self.path("guest"),
            vdev: self.disks[at].vdev.clone(),
        }
    }

    pub(super) fn sidecar(&self) -> ProcessId {
        Sidecar::left_in(&self.left.0)
            .unwrap()
            .expect("a sidecar runs")
    }

    pub(super) fn has_sidecar(&self) -> bool {
        Sidecar::left_in(&self.left.0).unwrap().is_some()
    }

    pub(super) fn signal_sidecar(&self, signal: Signal) {
        let pid = Pid::from_raw(self.sidecar().pid).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub(super) fn is_primary_alive(&mut self) -> bool {
        matches!(self.primary.0.try_wait(), Ok(None))
    }

    /// Makes a node of a name in the primary's QEMU.
    pub(super) fn claim_node(&self, name: &str) -> String {
        let mut qemu = converse(&self.path("primary/qmp"));
        qemu.ask(&format!(
            r#"{{"execute":"blockdev-add","arguments":{{"driver":"null-co","node-name":"{name}"}}}}"#
        ));
        name.into()
    }

    pub(super) fn release_node(&self, name: &str) {
        let mut qemu = converse(&self.path("primary/qmp"));
        qemu.ask(&format!(
            r#"{{"execute":"blockdev-del","arguments":{{"node-name":"{name}"}}}}"#
        ));
    }

    /// The nodes that mirrors have, or have left, in the primary's QEMU.
    pub(super) fn nodes_of_mirrors(&self) -> Vec<String> {
        let mut qemu = converse(&self.path("primary/qmp"));
        let ask = r#"{"execute":"query-named-block-nodes","arguments":{"flat":true}}"#;
        let answer: serde_json::Value = serde_json::from_str(&qemu.ask(ask)).unwrap();
        let nodes = answer["return"].as_array().unwrap();
        let names = nodes.iter().filter_map(|node| node["node-name"].as_str());
        let ours = names.filter(|name| name.starts_with("xl-repl-"));
        ours.map(String::from).collect()
    }

    /// Bytes that the secondary does not have yet.
    pub(super) fn bytes_under_way(&self) -> u64 {
        let mut qemu = converse(&self.path("primary/qmp"));
        let answer: serde_json::Value =
            serde_json::from_str(&qemu.ask(r#"{"execute":"query-jobs"}"#)).unwrap();
        let jobs = answer["return"].as_array().unwrap().iter();
        let number = |job: &serde_json::Value, name: &str| job[name].as_u64().unwrap();
        jobs.map(|job| number(job, "total-progress") - number(job, "current-progress"))
            .sum()
    }

    pub(super) fn fail_over(&self) {
        self.secondary_set.stop_all(true).unwrap();
        let id = self.secondary_id.unwrap();
        assert_eq!(self.secondary_set.phase(id).unwrap(), Phase::FailedOver);
    }
}

fn read(disks: &[DiskTarget]) -> Vec<Vec<u8>> {
    let read = |disk: &DiskTarget| std::fs::read(&disk.image).unwrap();
    disks.iter().map(read).collect()
}

/// A QEMU without a machine that has the disks, and exports to write to them.
fn start_primary(directory: &Path, disks: &[DiskTarget]) -> Child {
    let own = directory.join("primary");
    std::fs::create_dir(&own).unwrap();
    let monitor = own.join("qmp");
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-machine",
        "none",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-S",
    ]);
    command.arg("-chardev").arg(format!(
        "socket,id=qmp,server=on,wait=off,path={}",
        monitor.display()
    ));
    command.args(["-mon", "chardev=qmp,mode=control"]);
    for disk in disks {
        command.arg("-blockdev").arg(format!(
            "driver=raw,node-name=disk-{},file.driver=file,file.filename={}",
            disk.vdev,
            disk.image.display()
        ));
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = converse(&monitor);
    let path = directory.join("guest");
    said.ask(&format!(
        r#"{{"execute":"nbd-server-start","arguments":{{"addr":{{"type":"unix","data":{{"path":"{}"}}}}}}}}"#,
        path.display()
    ));
    for disk in disks {
        let vdev = &disk.vdev;
        said.ask(&format!(
            r#"{{"execute":"block-export-add","arguments":{{"type":"nbd","id":"{vdev}","node-name":"disk-{vdev}","name":"{vdev}","writable":true}}}}"#
        ));
    }
    child
}

/// QMP by hand: the product's own is what is tested.
struct Conversation(std::io::BufReader<std::os::unix::net::UnixStream>);

fn converse(socket: &Path) -> Conversation {
    let stream = loop {
        match std::os::unix::net::UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let mut conversation = Conversation(std::io::BufReader::new(stream));
    conversation.answer();
    conversation.ask(r#"{"execute":"qmp_capabilities"}"#);
    conversation
}

impl Conversation {
    fn ask(&mut self, command: &str) -> String {
        use std::io::Write;
        writeln!(self.0.get_mut(), "{command}").unwrap();
        loop {
            let answer = self.answer();
            if !answer.contains("\"event\"") {
                assert!(answer.contains("\"return\""), "{command}: {answer}");
                return answer;
            }
        }
    }

    fn answer(&mut self) -> String {
        use std::io::BufRead;
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }
}

/// A guest that does not write while it is asked to make a checkpoint.
pub(super) struct Quiet;

impl Guest for Quiet {
    fn pause(&self) -> Result<bool> {
        Ok(true)
    }

    fn resume(&self) -> Result<()> {
        Ok(())
    }
}

/// Writes to a disk through the primary's export.
pub(super) struct Writer {
    socket: PathBuf,
    vdev: String,
}

impl Writer {
    fn command(&self, offset: usize, length: usize, byte: u8) -> Command {
        let Self { socket, vdev } = self;
        let mut command = Command::new("qemu-io");
        command.args([
            "-f",
            "raw",
            "-c",
            &format!("write -P {byte} {offset} {length}"),
        ]);
        command.arg(format!("nbd+unix:///{vdev}?socket={}", socket.display()));
        command
    }

    pub(super) fn write(&self, offset: usize, length: usize, byte: u8) -> Output {
        self.command(offset, length, byte).output().unwrap()
    }

    /// A write that may take as long as it likes.
    pub(super) fn begin(&self, offset: usize, length: usize, byte: u8) -> Child {
        let mut command = self.command(offset, length, byte);
        command.stdout(Stdio::null()).spawn().unwrap()
    }

    /// So many small writes, one right after the other.
    pub(super) fn begin_many(&self, count: usize, within: usize, byte: u8) -> Child {
        let mut command = self.command(0, 512, byte);
        for number in 0..count {
            let offset = number * 7919 * 512 % within;
            command.args(["-c", &format!("write -P {byte} {offset} 512")]);
        }
        command.stdout(Stdio::null()).spawn().unwrap()
    }
}
