//! The primary's side of a replicated disk, in the domain's own QEMU: a `blockdev-mirror` that never completes. A write of the
//! guest is over when the secondary has it too (`write-blocking`), and no driver of replication is needed, which the
//! QEMU of Debian's Xen lacks.
//!
//! A peer that is silent, but there, holds QEMU up in whatever waits for the disk: its writes, and each command that drains
//! it. So each such command has `yank` as its way out, which QEMU hears meanwhile. It cuts the connection for good.

use super::job::{self, OnIoError, Status};
use super::qmp::{HumanMonitorCommand, Locked, node_of, require_open_once};
use super::qmp_wire::{Command, Terms, is_refusal, took_way_out};
use super::unused_node::{BlockdevAdd, BlockdevDel};
use super::{BlockNode, Worker};
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::DiskTarget;
use crate::model::replication::{NbdAddress, as_text};
use serde::Serialize;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Between two looks at a job that is to end.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A disk, and where it is mirrored to.
pub(crate) struct Mirror {
    qemu: Worker,
    disk: DiskTarget,
    job: job::Id,
    /// The node that stands for the secondary's disk.
    peer: String,
    limit: Duration,
}

/// How a mirror is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MirrorState {
    /// The first copy is under way.
    Copying {
        /// Bytes that the secondary has.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The secondary has whatever was written.
    InStep {
        /// Bytes that went there, those of the first copy too.
        total: u64,
    },
    /// The first copy was made, and something that was written since is on its way, or was lost, which shows soon.
    Behind,
    /// It has ended, for this reason; the secondary lacks something.
    Failed(String),
    /// There is none.
    Gone,
}

/// Cuts a node off from whatever it is connected to.
#[derive(Serialize)]
struct Yank<'a> {
    instances: [YankInstance<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct YankInstance<'a> {
    r#type: &'static str,
    node_name: &'a str,
}

impl Command for Yank<'_> {
    const NAME: &'static str = "yank";
    type Answer = Value;
}

impl Mirror {
    pub(crate) fn new(qemu: Worker, disk: DiskTarget, limit: Duration) -> Self {
        Self {
            job: job::Id::of_mirror(&disk.vdev),
            peer: format!("xl-repl-{}", disk.vdev),
            qemu,
            disk,
            limit,
        }
    }

    fn connect(&self) -> Result<Locked> {
        let terms = Terms {
            limit: self.limit,
            out_of_band: true,
        };
        Locked::connect_to(&self.qemu, terms)
    }

    fn yank(&self) -> Yank<'_> {
        Yank {
            instances: [YankInstance {
                r#type: "block-node",
                node_name: &self.peer,
            }],
        }
    }

    /// Runs what may wait for the peer.
    fn run<C: Command>(&self, qemu: &mut Locked, command: &C) -> Result<C::Answer> {
        let ran = qemu.monitor.run_within(command, self.limit, &self.yank());
        ran.map_err(|error| {
            let was_cut = took_way_out(&error);
            let error = error.while_doing(format!("replicate {}", self.disk));
            if was_cut {
                error.hint("the secondary was silent and is cut off; the guest goes on alone")
            } else {
                error
            }
        })
    }

    fn source(&self, nodes: &[BlockNode]) -> Result<BlockNode> {
        require_open_once(nodes, &self.disk.image)?;
        node_of(nodes, &self.disk).cloned()
    }

    /// Length of the disk, in bytes.
    ///
    /// # Errors
    /// If QEMU does not have it open, or twice.
    pub(crate) fn length(&self) -> Result<u64> {
        let nodes = self.connect()?.nodes()?;
        Ok(self.source(&nodes)?.facts.virtual_size)
    }

    /// Begins to copy the disk to an export, and from then on what is written to it.
    ///
    /// # Errors
    /// If QEMU cannot connect, or refuses; nothing of it is left then.
    pub(crate) fn begin(&self, address: &NbdAddress, export: &str) -> Result<()> {
        let mut qemu = self.connect()?;
        let nodes = qemu.nodes()?;
        let source = self.source(&nodes)?;
        let server = match address {
            NbdAddress::Unix(path) => json!({ "type": "unix", "path": as_text(path)? }),
            NbdAddress::Loopback(port) => {
                json!({ "type": "inet", "host": "127.0.0.1", "port": port.to_string() })
            }
        };
        // A connection that is lost is not made anew, since what was written meanwhile would be lacking.
        let client = json!({
            "driver": "nbd",
            "node-name": self.peer,
            "server": server,
            "export": export,
            "reconnect-delay": 0,
        });
        // If it is refused, a node of the name is somebody else's.
        self.run(&mut qemu, &BlockdevAdd(&client))?;
        let mirror = job::BlockdevMirror {
            job_id: &self.job,
            device: &source.node_name,
            target: &self.peer,
            sync: "full",
            copy_mode: "write-blocking",
            on_source_error: OnIoError::Report,
            on_target_error: OnIoError::Report,
            auto_finalize: true,
            auto_dismiss: false,
        };
        let begun = self.run(&mut qemu, &mirror);
        drop(qemu);
        begun.map(drop).map_err(|error| self.undone(error))
    }

    /// An error, after which whatever there is of the mirror is taken away.
    pub(crate) fn undone(&self, error: Error) -> Error {
        match self.cut() {
            Ok(()) => error,
            Err(left) => error.hint(format!("what was begun is left: {}", left.report())),
        }
    }

    /// How it is. Nothing that this asks waits for the peer.
    ///
    /// # Errors
    /// If QEMU cannot be reached.
    pub(crate) fn look(&self) -> Result<MirrorState> {
        let mut qemu = self.connect()?;
        self.state(&mut qemu)
    }

    fn state(&self, qemu: &mut Locked) -> Result<MirrorState> {
        let job = self.job.look(&mut qemu.monitor)?;
        Ok(job.map_or(MirrorState::Gone, |job| of_job(&job)))
    }

    /// Waits until whatever the guest has written so far is on both sides, and tells how the mirror is then. If the peer is
    /// silent for longer than the limit, it is cut off.
    ///
    /// # Errors
    /// If QEMU cannot be reached, or the peer was cut off.
    pub(crate) fn drain(&self) -> Result<MirrorState> {
        let mut qemu = self.connect()?;
        let before = self.state(&mut qemu)?;
        if !matches!(before, MirrorState::InStep { .. } | MirrorState::Behind) {
            return Ok(before);
        }
        // By the disk's own node: a write that has not gone to the peer yet counts too.
        let nodes = qemu.nodes()?;
        let source = self.source(&nodes)?.node_name;
        let command_line = format!("qemu-io {source} length");
        self.run(&mut qemu, &HumanMonitorCommand { command_line })?;
        self.state(&mut qemu)
    }

    /// Cuts the connection, so that the guest's writes wait for nobody.
    ///
    /// # Errors
    /// If QEMU cannot be reached.
    pub(crate) fn yank_peer(&self) -> Result<()> {
        self.yank_within(&mut self.connect()?)
    }

    fn yank_within(&self, qemu: &mut Locked) -> Result<()> {
        match qemu.monitor.run_out_of_band(&self.yank()) {
            // There is no such node any more.
            Err(error) if is_refusal(&error) => Ok(()),
            yanked => yanked.map(drop),
        }
    }

    /// Takes the mirror away, whatever of it is there, and leaves the disk as it was. The peer is cut off first: a node
    /// that waits for one that is silent could not be removed.
    ///
    /// # Errors
    /// If QEMU cannot be reached, or the job does not end.
    pub(crate) fn cut(&self) -> Result<()> {
        let mut qemu = self.connect()?;
        self.yank_within(&mut qemu)?;
        let deadline = Instant::now() + self.limit;
        let mut told = false;
        while let Some(job) = self.job.look(&mut qemu.monitor)? {
            if job.status == Status::Concluded {
                self.job.dismiss(&mut qemu.monitor)?;
                break;
            }
            if !told {
                // It may have ended by itself, because of the cut.
                match qemu.monitor.run(&job::JobCancel { id: &self.job }) {
                    Err(error) if !is_refusal(&error) => return Err(error),
                    _ => told = true,
                }
            }
            if Instant::now() >= deadline {
                let what = format!("QEMU does not stop mirroring {}", self.disk);
                return Err(Error::new(ErrorKind::Toolstack, what));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let removal = BlockdevDel {
            node_name: &self.peer,
        };
        match qemu.monitor.run(&removal) {
            Err(error) if is_refusal(&error) => {
                // It is gone already, or, which would be wrong, in use.
                let nodes = qemu.nodes()?;
                if nodes.iter().all(|node| node.node_name != self.peer) {
                    return Ok(());
                }
                Err(error)
            }
            removed => removed.map(drop),
        }
    }
}

/// What QEMU says of the job. One whose write has failed is still called ready, for up to 100 ms (QEMU 7.2), and so is one
/// whose write is under way: in both there is something that it has yet to do.
fn of_job(job: &job::JobInfo) -> MirrorState {
    let (done, total) = (job.done, job.total);
    match job.status {
        Status::Ready if done == total => MirrorState::InStep { total },
        Status::Ready => MirrorState::Behind,
        Status::Concluded => {
            let ended = || String::from("somebody ended it");
            MirrorState::Failed(job.error.clone().unwrap_or_else(ended))
        }
        Status::Busy | Status::Paused | Status::Pending => MirrorState::Copying { done, total },
    }
}
