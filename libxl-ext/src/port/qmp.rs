//! The QEMU of a domain behind [`BlockLayer`], over libxl's own QMP socket.
//!
//! libxl takes a lock for as long as it is connected, since a socket has room for one client; so do we.

use super::job::Progress;
use super::qemu_img::{SnapshotInfo, is_device, last_write};
use super::qmp_wire::{Command, Monitor, Terms, USUAL};
use super::socket_lock::{LOCK_LIMIT, SocketLock};
use super::storage_daemon::SOCKET;
use super::{BlockLayer, BlockNode, Worker, is_open_twice, job, unused_node};
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::{DiskTarget, ImageFacts, ImageFormat};
use crate::model::domain::DomainLife;
use crate::model::layer::{Into, Layer};
use crate::plan::Merge;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where libxl puts QEMU's sockets (`XEN_RUN_DIR`).
pub(super) const RUN_DIRECTORY: &str = "/var/run/xen";

/// Between two looks at a job, at first; the guest stands still for the last part of a merge.
pub(super) const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

/// Between two looks at a job that takes its time.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The monitors of all domains. A connection lasts for one request.
pub struct QemuMonitors;

#[derive(Serialize)]
struct QueryNamedBlockNodes {
    flat: bool,
}

impl Command for QueryNamedBlockNodes {
    const NAME: &'static str = "query-named-block-nodes";
    type Answer = Vec<NodeInfo>;
}

/// What we read of QEMU's `BlockDeviceInfo`.
#[derive(Deserialize)]
struct NodeInfo {
    #[serde(rename = "node-name")]
    node_name: String,
    drv: String,
    file: PathBuf,
    image: ImageInfo,
}

#[derive(Deserialize)]
struct ImageInfo {
    #[serde(rename = "virtual-size")]
    virtual_size: u64,
    #[serde(rename = "actual-size", default)]
    actual_size: u64,
    #[serde(rename = "backing-filename")]
    backing: Option<PathBuf>,
    #[serde(rename = "backing-filename-format")]
    backing_format: Option<String>,
    #[serde(default)]
    snapshots: Vec<SnapshotInfo>,
}

#[derive(Serialize)]
struct Transaction<'a> {
    actions: Vec<Action<'a>>,
}

impl Command for Transaction<'_> {
    const NAME: &'static str = "transaction";
    type Answer = Value;
}

#[derive(Serialize)]
#[serde(
    tag = "type",
    content = "data",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case"
)]
enum Action<'a> {
    BlockdevSnapshotInternalSync {
        device: &'a str,
        name: &'a str,
    },
    BlockdevSnapshotSync {
        node_name: &'a str,
        snapshot_file: &'a Path,
        snapshot_node_name: String,
        format: &'a str,
        /// `existing`: we made the image, so that its header says what we say.
        mode: &'a str,
    },
}

#[derive(Serialize)]
struct BlockdevSnapshotDeleteInternalSync<'a> {
    device: &'a str,
    name: &'a str,
}

impl Command for BlockdevSnapshotDeleteInternalSync<'_> {
    const NAME: &'static str = "blockdev-snapshot-delete-internal-sync";
    type Answer = Value;
}

#[derive(Serialize)]
struct QueryStatus {}

impl Command for QueryStatus {
    const NAME: &'static str = "query-status";
    type Answer = RunState;
}

#[derive(Deserialize)]
struct RunState {
    running: bool,
}

#[derive(Serialize)]
struct Stop {}

impl Command for Stop {
    const NAME: &'static str = "stop";
    type Answer = Value;
}

#[derive(Serialize)]
struct Cont {}

impl Command for Cont {
    const NAME: &'static str = "cont";
    type Answer = Value;
}

#[derive(Serialize)]
struct XenSaveDevicesState<'a> {
    filename: &'a str,
    live: bool,
}

impl Command for XenSaveDevicesState<'_> {
    const NAME: &'static str = "xen-save-devices-state";
    type Answer = Value;
}

/// The only way to have QEMU flush an image, or drain a node: its `qemu-io` drains it after each command, of which `length`
/// does the least. `aio_flush`, which drains all nodes, holds the lock meanwhile that a Xen disk's thread needs to complete
/// a request: QEMU 7.2 hangs then for good.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct HumanMonitorCommand {
    pub(super) command_line: String,
}

impl Command for HumanMonitorCommand {
    const NAME: &'static str = "human-monitor-command";
    type Answer = String;
}

/// A monitor with a lock around it, which is libxl's if it is that of a domain.
pub(super) struct Locked {
    pub(super) monitor: Monitor,
    _lock: SocketLock,
}

impl Locked {
    pub(super) fn connect(life: DomainLife) -> Result<Self> {
        Self::connect_to(&Worker::Qemu(life), USUAL)
    }

    pub(super) fn connect_to(worker: &Worker, terms: Terms) -> Result<Self> {
        let (socket, lock) = match worker {
            Worker::Qemu(life) => {
                let socket = format!("qmp-libxl-{}", life.domid);
                let lock = SocketLock::take(*life)?;
                (Path::new(RUN_DIRECTORY).join(socket), lock)
            }
            Worker::Daemon(directory) => {
                let deadline = Instant::now() + LOCK_LIMIT;
                let lock = SocketLock::take_at(directory.join("lock"), deadline)?;
                (directory.join(SOCKET), lock)
            }
        };
        Ok(Self {
            monitor: Monitor::connect(&socket, terms)?,
            _lock: lock,
        })
    }

    pub(super) fn nodes(&mut self) -> Result<Vec<BlockNode>> {
        job::dismiss_failed(&mut self.monitor)?;
        let nodes = self.monitor.run(&QueryNamedBlockNodes { flat: true })?;
        Ok(nodes
            .into_iter()
            .map(|node| BlockNode {
                node_name: node.node_name,
                driver: node.drv,
                image: node.file.as_path().into(),
                facts: ImageFacts {
                    virtual_size: node.image.virtual_size,
                    allocated: node.image.actual_size,
                    backing: node.image.backing,
                    backing_format: node.image.backing_format,
                    written: last_write(&node.file),
                    is_device: is_device(&node.file),
                    retired: false,
                    snapshots: node.image.snapshots.into_iter().map(From::from).collect(),
                },
            })
            .collect())
    }

    /// Starts the job of a merge below the disk, or of one that goes up.
    fn start(&mut self, nodes: &[BlockNode], merge: &Merge, job: &job::Id) -> Result<()> {
        let layer = &merge.layer;
        let upper = node_of(nodes, &layer.target())?;
        match merge.into {
            Into::Below => {
                let commit = job::BlockCommit {
                    job_id: job,
                    device: &node_of(nodes, &merge.disk)?.node_name,
                    top_node: Some(&upper.node_name),
                    base_node: &node_of(nodes, &below(layer)?)?.node_name,
                    auto_dismiss: false,
                };
                self.monitor.run(&commit).map(drop)
            }
            Into::Layer => {
                let onto = merge.onto.as_ref().map(|onto| DiskTarget {
                    vdev: layer.vdev.clone(),
                    image: onto.image.clone(),
                    format: onto.format,
                });
                let onto = onto.map(|onto| node_of(nodes, &onto)).transpose()?;
                let stream = job::BlockStream {
                    job_id: job,
                    device: &upper.node_name,
                    base_node: onto.map(|node| &*node.node_name),
                    backing_file: None,
                    speed: 0,
                    on_error: job::OnIoError::Report,
                    auto_finalize: true,
                    auto_dismiss: false,
                };
                self.monitor.run(&stream).map(drop)
            }
        }
    }

    /// Closes a node unless something uses it. Returns whether it is closed.
    pub(super) fn close_unused(&mut self, node: &BlockNode) -> Result<bool> {
        unused_node::close(&mut self.monitor, &node.node_name)
    }

    /// Sees to it that an image that a job took out of its chain is not open any more.
    fn require_closed(&mut self, gone: &DiskTarget) -> Result<()> {
        let nodes = self.nodes()?;
        let Ok(node) = node_of(&nodes, gone) else {
            return Ok(());
        };
        if self.close_unused(node)? {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Toolstack,
            format!("QEMU still uses {gone} after it was merged"),
        ))
    }

    /// Lets QEMU write what it holds of the images that are left of a merge.
    fn flush(&mut self, nodes: &[BlockNode], merge: &Merge) -> Result<()> {
        for image in merge.images() {
            self.flush_image(nodes, image)?;
        }
        Ok(())
    }

    /// Lets QEMU write what it holds of an image, if it has that open.
    pub(super) fn flush_image(&mut self, nodes: &[BlockNode], image: &Path) -> Result<()> {
        let is_it =
            |node: &&BlockNode| &*node.image == image && ImageFormat::of(&node.driver).is_some();
        match nodes.iter().find(is_it) {
            Some(node) => self.flush_node(node),
            None => Ok(()),
        }
    }

    /// Lets QEMU write what it holds of one image.
    pub(super) fn flush_node(&mut self, node: &BlockNode) -> Result<()> {
        let command_line = format!("qemu-io {} flush", node.node_name);
        let said = self.monitor.run(&HumanMonitorCommand { command_line })?;
        if said.trim().is_empty() {
            return Ok(());
        }
        let what = format!("flush {}", node.image.display());
        Err(Error::new(ErrorKind::Toolstack, what).because(said))
    }

    /// Lets QEMU write what it holds back and read every image anew. The saving of the devices' state ends so
    /// when it is `live`: the images are given up for the other side of a migration to take, until `cont`.
    fn read_anew(&mut self) -> Result<()> {
        let was_running = self.monitor.run(&QueryStatus {})?.running;
        // An attempt that was killed may have left them given up, and QEMU dies if it is to do that again.
        self.monitor.run(&Cont {})?;
        self.monitor.run(&Stop {})?;
        let save = XenSaveDevicesState {
            filename: "/dev/null",
            live: true,
        };
        let given_up = self.monitor.run(&save);
        self.monitor.run(&Cont {})?;
        if !was_running {
            self.monitor.run(&Stop {})?;
        }
        given_up.map(drop)
    }
}

impl BlockLayer for QemuMonitors {
    fn nodes(&self, life: DomainLife) -> Result<Vec<BlockNode>> {
        Locked::connect(life)?.nodes()
    }

    fn snapshot(
        &self,
        life: DomainLife,
        tag: &str,
        disks: &[DiskTarget],
        layers: &[Layer],
    ) -> Result<()> {
        let mut qemu = Locked::connect(life)?;
        let nodes = qemu.nodes()?;
        let inside = disks.iter().map(|disk| {
            let device = &node_of(&nodes, disk)?.node_name;
            Ok(Action::BlockdevSnapshotInternalSync { device, name: tag })
        });
        let on_top = layers.iter().map(|layer| {
            Ok(Action::BlockdevSnapshotSync {
                node_name: &node_of(&nodes, &below(layer)?)?.node_name,
                snapshot_file: &layer.image,
                snapshot_node_name: node_name(&layer.image),
                format: ImageFormat::Qcow2.driver(),
                mode: "existing",
            })
        });
        let actions = inside.chain(on_top).collect::<Result<_>>()?;
        qemu.monitor.run(&Transaction { actions }).map(drop)
    }

    fn bring_in_step(&self, life: DomainLife, layer: &Layer) -> Result<()> {
        let mut qemu = Locked::connect(life)?;
        let nodes = qemu.nodes()?;
        let Ok(top) = node_of(&nodes, &layer.target()) else {
            return Ok(());
        };
        require_open_once(&nodes, &layer.image)?;
        let base = node_of(&nodes, &below(layer)?)?;
        let job = job::Id::of(&layer.image);
        if !job.is_there(&mut qemu.monitor)? {
            if qemu.close_unused(top)? {
                return Ok(());
            }
            qemu.monitor.run(&job::BlockCommit {
                job_id: &job,
                device: &top.node_name,
                top_node: None,
                base_node: &base.node_name,
                auto_dismiss: false,
            })?;
        }
        drop(qemu);
        wait_for(life, &job, Progress::InStep).map(drop)
    }

    fn leave_layer(&self, life: DomainLife, layer: &Layer) -> Result<bool> {
        let mut qemu = Locked::connect(life)?;
        let nodes = qemu.nodes()?;
        let Ok(top) = node_of(&nodes, &layer.target()) else {
            return Ok(true);
        };
        let job = job::Id::of(&layer.image);
        if !job.is_there(&mut qemu.monitor)? {
            // An attempt that was killed may have left it.
            return qemu.close_unused(top);
        }
        drop(qemu);
        wait_for(life, &job, Progress::Ended)?.require_closed(&layer.target())?;
        Ok(true)
    }

    fn merge(&self, life: DomainLife, merge: &Merge) -> Result<()> {
        let layer = &merge.layer;
        if merge.into == Into::Below && merge.disk.image == layer.image {
            return self.bring_in_step(life, layer);
        }
        let mut qemu = Locked::connect(life)?;
        let nodes = qemu.nodes()?;
        let Ok(upper) = node_of(&nodes, &layer.target()) else {
            return Ok(());
        };
        require_open_once(&nodes, &layer.image)?;
        let job = job::Id::of(&layer.image);
        if !job.is_there(&mut qemu.monitor)? {
            // Whether it is done: an attempt that was killed may have come so far.
            let is_done = match merge.into {
                Into::Below => qemu.close_unused(upper)?,
                Into::Layer => node_of(&nodes, &below(layer)?).is_err(),
            };
            if is_done {
                let nodes = qemu.nodes()?;
                return qemu.flush(&nodes, merge);
            }
            qemu.start(&nodes, merge, &job)?;
        }
        drop(qemu);
        let mut qemu = wait_for(life, &job, Progress::Ended)?;
        let gone = match merge.into {
            Into::Below => layer.target(),
            Into::Layer => below(layer)?,
        };
        qemu.require_closed(&gone)?;
        let nodes = qemu.nodes()?;
        qemu.flush(&nodes, merge)
    }

    fn delete_snapshot(&self, life: DomainLife, tag: &str, disk: &DiskTarget) -> Result<()> {
        let mut qemu = Locked::connect(life)?;
        let nodes = qemu.nodes()?;
        let node = node_of(&nodes, disk)?;
        let mut held = nodes.iter().filter(|node| node.image == disk.image);
        if held.all(|node| node.facts.snapshot(tag).is_none()) {
            return Ok(());
        }
        let command = BlockdevSnapshotDeleteInternalSync {
            device: &node.node_name,
            name: tag,
        };
        if !is_open_twice(&nodes, &disk.image) {
            return qemu.monitor.run(&command).map(drop);
        }
        // Afterwards too: the node that did not delete it has to learn what is free now.
        qemu.read_anew()?;
        qemu.monitor.run(&command)?;
        qemu.read_anew()
    }
}

/// Waits until a job has ended, or is in step. Others may talk to QEMU between two looks.
///
/// # Errors
/// What the job ended with.
fn wait_for(life: DomainLife, job: &job::Id, wanted: Progress) -> Result<Locked> {
    let mut pause = SHORTEST_PAUSE;
    let mut told = false;
    loop {
        let mut qemu = Locked::connect(life)?;
        match job.progress(&mut qemu.monitor)? {
            Progress::Ended => return Ok(qemu),
            progress if progress == wanted => return Ok(qemu),
            Progress::InStep if !told => {
                job.complete(&mut qemu.monitor)?;
                told = true;
            }
            Progress::InStep | Progress::Copying => {}
        }
        drop(qemu);
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The node of a disk, found by its image: node names are QEMU's, the image is in our records. Where there are two,
/// they have read the same when one is used: see [`Locked::read_anew`].
pub(super) fn node_of<'a>(nodes: &'a [BlockNode], disk: &DiskTarget) -> Result<&'a BlockNode> {
    nodes
        .iter()
        .find(|node| node.driver == disk.format.driver() && node.image == disk.image)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Stale,
                format!(
                    "the domain's QEMU does not have {} open for {}",
                    disk.image.display(),
                    disk.vdev
                ),
            )
        })
}

/// The disk that a layer stands on.
fn below(layer: &Layer) -> Result<DiskTarget> {
    layer.below().ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidRequest,
            format!("{} stands on nothing", layer.image.display()),
        )
    })
}

/// A job that changes the chain of a disk works on one of its chains: there must be no other.
pub(super) fn require_open_once(nodes: &[BlockNode], image: &Path) -> Result<()> {
    if is_open_twice(nodes, image) {
        return Err(Error::new(
            ErrorKind::DomainState,
            format!(
                "the domain's QEMU has {} open twice, as an emulated disk and as a PV disk",
                image.display()
            ),
        )
        .hint("wait until the guest's PV drivers have taken over"));
    }
    Ok(())
}

/// What we call a layer's node in QEMU. A name has at most 31 characters.
fn node_name(image: &Path) -> String {
    format!("xl-ext-{}", short(image))
}

/// A path in 16 digits, for names that may be neither long nor have a slash.
pub(super) fn short(path: &Path) -> String {
    let hash = xxhash_rust::xxh3::xxh3_64(path.as_os_str().as_encoded_bytes());
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transaction_is_written_as_qemu_reads_it() {
        let transaction = Transaction {
            actions: vec![
                Action::BlockdevSnapshotInternalSync {
                    device: "xvda-qcow2",
                    name: "t",
                },
                Action::BlockdevSnapshotSync {
                    node_name: "xvdb-raw",
                    snapshot_file: Path::new("/i/b"),
                    snapshot_node_name: "n".into(),
                    format: "qcow2",
                    mode: "existing",
                },
            ],
        };
        assert_eq!(
            serde_json::to_value(&transaction).unwrap(),
            serde_json::json!({ "actions": [
                { "type": "blockdev-snapshot-internal-sync",
                  "data": { "device": "xvda-qcow2", "name": "t" } },
                { "type": "blockdev-snapshot-sync",
                  "data": { "node-name": "xvdb-raw", "snapshot-file": "/i/b",
                            "snapshot-node-name": "n", "format": "qcow2", "mode": "existing" } },
            ] })
        );
    }

    #[test]
    fn the_name_of_a_node_fits_qemu_and_is_the_images_own() {
        let name = node_name(Path::new("/i/a.qcow2"));
        assert!(name.len() <= 31 && name.starts_with("xl-ext-"));
        assert_eq!(name, node_name(Path::new("/i/a.qcow2")));
        assert_ne!(name, node_name(Path::new("/i/b.qcow2")));
    }
}
