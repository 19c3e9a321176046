//! The ports: what the rest of the crate asks of the host, as traits, and the real things behind them.
//!
//! | trait | behind it | why not another |
//! |---|---|---|
//! | [`Hypervisor`] | `xenctrl` | says what a domain's state really is, also while xenstored is slow |
//! | [`Toolstack`] | libxl, by bindgen on the installed headers | the only one who may suspend and destroy |
//! | [`BlockLayer`] | QMP of the domain's QEMU | all disks of a running guest in one transaction |
//! | [`Pulls`] | QMP of the domain's QEMU, or of one without a machine | jobs go on by themselves, and others find them |
//! | [`Images`] | `qemu-img`, `qemu-nbd` | images that no QEMU has open |
//! | [`Monitors`] | `/proc` and signals | xl has no other way to be told |
//! | [`Restorer`] | `xl restore`; libxl for the C library | xl's leaves its own monitor behind, so reboot and poweroff act as `on_*` says |
//! | [`NoticeBoard`] | `xenstore-rs` | tells other tools what goes on; never believed |

mod domain_disks;
mod feed;
mod job;
pub mod libxl;
mod libxl_log;
#[doc(hidden)]
pub mod libxl_sys;
mod mirror;
pub mod monitor;
mod nbd;
mod nbd_peer;
mod proc;
mod pull;
pub mod qemu_img;
pub mod qmp;
mod qmp_wire;
pub mod restore;
mod sidecar;
mod socket_lock;
mod storage_daemon;
mod subprocess;
mod unused_node;
pub mod xenctrl;
pub mod xenstore;
mod xl;

pub(crate) use mirror::{Mirror, MirrorState};
pub use nbd::DiskContent;
pub(crate) use nbd_peer::{ExportFacts, ask_export, feel_pulse};
pub(crate) use proc::{is_alive, own_process, wait_until_closed};
pub(crate) use sidecar::Sidecar;

#[cfg(fuzzing)]
pub(crate) use qmp_wire::converse as qmp_converse;

use crate::error::Result;
use crate::event::Observer;
use crate::memory::Kept;
use crate::model::disk::{DiskTarget, ImageFacts, ImageFormat, Stamp};
use crate::model::domain::{DomainLife, DomainState, GuestType, Keeper};
use crate::model::layer::{Backing, Layer};
use crate::model::process::ProcessId;
use crate::model::pull::{Extent, Pull};
use crate::plan::{Merge, Switch};
use serde_json::Value;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;
use uuid::Uuid;

/// A domain as the hypervisor sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainView {
    /// Which life of which domain.
    pub life: DomainLife,
    /// What it is doing.
    pub state: DomainState,
    /// Whether the toolstack has paused it, which it can be in any state.
    pub paused: bool,
    /// Memory that it has now, in bytes.
    pub memory_bytes: u64,
    /// Whether one of its virtual CPUs has ever run.
    pub has_run: bool,
}

/// The hypervisor.
pub trait Hypervisor {
    /// The domain of the given number, or `None`.
    ///
    /// # Errors
    /// If the hypervisor cannot be asked.
    fn look(&self, domid: u32) -> Result<Option<DomainView>>;

    /// All domains, in the order of their numbers.
    ///
    /// # Errors
    /// If the hypervisor cannot be asked.
    fn all(&self) -> Result<Vec<DomainView>>;

    /// The domain of the given UUID, or `None`; a dying one is not counted.
    ///
    /// # Errors
    /// If the hypervisor cannot be asked.
    fn find(&self, uuid: Uuid) -> Result<Option<DomainView>>;
}

/// libxl.
pub trait Toolstack {
    /// The domid of the domain of the given name, or `None`.
    ///
    /// # Errors
    /// If libxl fails.
    fn domid_of(&self, name: &str) -> Result<Option<u32>>;

    /// The name of a domain, or `None`.
    ///
    /// # Errors
    /// If libxl fails.
    fn name_of(&self, domid: u32) -> Result<Option<String>>;

    /// The configuration of a domain as `xl list -l` prints it and `xl save` writes it.
    ///
    /// # Errors
    /// If libxl fails.
    fn configuration(&self, domid: u32) -> Result<Configuration>;

    /// Whether the hypervisor can tell which of its pages a PV guest writes to, which a live save has to know:
    /// whether it is built with shadow paging (libxl's `cap_shadow`, `shadow` in `xl info`'s virt_caps).
    ///
    /// # Errors
    /// If libxl fails.
    fn has_shadow_paging(&self) -> Result<bool>;

    /// Whether the guest says, and the backends too, that it has connected to all of its disks, but for CD-ROM drives,
    /// which an HVM guest never does.
    ///
    /// # Errors
    /// If xenstored fails.
    fn disks_are_connected(&self, domid: u32) -> Result<bool>;

    /// Suspends the domain and writes libxl's stream of its memory to `sink`, which is left open. With `live`
    /// the guest runs while most of it is written, and what it changes meanwhile is written again. On success
    /// the domain stays suspended, since the instant that is returned if libxl told; after a failure it may
    /// be suspended or not.
    ///
    /// # Errors
    /// If the guest does not answer, the sink fails, or libxl fails.
    fn suspend_to(
        &self,
        domid: u32,
        sink: BorrowedFd<'_>,
        live: bool,
        observer: &dyn Observer,
    ) -> Result<Option<Instant>>;

    /// Lets a suspended domain go on.
    ///
    /// # Errors
    /// If libxl fails.
    fn resume(&self, domid: u32) -> Result<()>;

    /// Stops the domain's virtual CPUs.
    ///
    /// # Errors
    /// If libxl fails.
    fn pause(&self, domid: u32) -> Result<()>;

    /// Lets the domain's virtual CPUs run.
    ///
    /// # Errors
    /// If libxl fails.
    fn unpause(&self, domid: u32) -> Result<()>;

    /// Tells everybody who asks that the domain's disks are other images: libxl's stored configuration and
    /// xenstore. The disks themselves are not touched.
    ///
    /// # Errors
    /// If libxl or xenstored fails; some may have been told then.
    fn point_disks(&self, domid: u32, switches: &[Switch]) -> Result<()>;

    /// Ends the domain and waits until it is gone.
    ///
    /// # Errors
    /// If libxl fails.
    fn destroy(&self, domid: u32) -> Result<()>;
}

/// A domain's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    /// libxl's JSON text, to the byte as libxl wrote it.
    pub json: String,
    /// The same, parsed.
    pub value: Value,
    /// The type of the guest.
    pub guest_type: GuestType,
}

/// A qcow2 or raw image that a domain's QEMU has open.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockNode {
    /// QEMU's name for it.
    pub node_name: String,
    /// QEMU's block driver.
    pub driver: String,
    /// The image file.
    pub image: Box<Path>,
    /// What is in it.
    pub facts: ImageFacts,
}

/// Whether QEMU has an image open by more than one node. An HVM guest's QEMU opens each of the first four disks twice,
/// for an emulated disk and for the PV one, until the guest's PV drivers have the emulated ones unplugged. What one
/// node changes, the other does not notice.
pub fn is_open_twice(nodes: &[BlockNode], image: &Path) -> bool {
    // Beside each of them there is one for the file itself.
    let of_image =
        |node: &&BlockNode| ImageFormat::of(&node.driver).is_some() && &*node.image == image;
    nodes.iter().filter(of_image).count() > 1
}

/// The block layer of a domain's own QEMU.
pub trait BlockLayer {
    /// Every image that the domain's QEMU has open.
    ///
    /// # Errors
    /// If QEMU cannot be reached or answers with an error.
    fn nodes(&self, life: DomainLife) -> Result<Vec<BlockNode>>;

    /// In one transaction, all or nothing: makes an internal snapshot of `disks`, and puts `layers`, which are
    /// there and empty, on top of the images below them. Each image must be open
    /// once.
    ///
    /// # Errors
    /// If QEMU refuses; nothing has changed then.
    fn snapshot(
        &self,
        life: DomainLife,
        tag: &str,
        disks: &[DiskTarget],
        layers: &[Layer],
    ) -> Result<()>;

    /// Copies what a layer that is a disk holds to the image below it, with the guest running, until what the
    /// guest writes goes to both. A layer that QEMU does not have open is no error.
    ///
    /// # Errors
    /// If QEMU refuses, or the copying fails: the layer is the disk still.
    fn bring_in_step(&self, life: DomainLife, layer: &Layer) -> Result<()>;

    /// Makes the image below a layer the disk instead of the layer, if the two are in step, and closes the layer.
    /// Returns whether the image below is the disk: if not, the copying had ended, and nothing has changed.
    ///
    /// # Errors
    /// If QEMU refuses: either may be the disk.
    fn leave_layer(&self, life: DomainLife, layer: &Layer) -> Result<bool>;

    /// Makes one image's content of two, with the guest running. Where the layer is the disk itself and goes
    /// down, it is [`BlockLayer::bring_in_step`], and [`BlockLayer::leave_layer`] completes it. A layer that QEMU does not have
    /// open is no error.
    ///
    /// # Errors
    /// If QEMU refuses, or the job fails; the chain is as before then.
    fn merge(&self, life: DomainLife, merge: &Merge) -> Result<()>;

    /// Deletes an internal snapshot of one disk; its absence is no error. If the image is open twice, the guest
    /// must stand still.
    ///
    /// # Errors
    /// If QEMU refuses.
    fn delete_snapshot(&self, life: DomainLife, tag: &str, disk: &DiskTarget) -> Result<()>;
}

/// Whose QEMU works on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Worker {
    /// A domain's own QEMU.
    Qemu(DomainLife),
    /// One without a machine, by the directory of its monitor.
    Daemon(PathBuf),
}

/// A job that pulls, as QEMU tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullJob {
    /// What it is doing.
    pub state: PullJobState,
    /// Bytes of the disk that it has dealt with.
    pub done: u64,
    /// Bytes of the disk.
    pub total: u64,
    /// Most bytes per second that it copies; 0 for as many as can be.
    pub speed: u64,
    /// What stands in its way, or why it ended.
    pub error: Option<String>,
}

/// What a job that pulls is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullJobState {
    /// It copies.
    Running,
    /// It stands still because it was told to.
    Held,
    /// It stands still because of an error.
    Stalled,
    /// Everything is copied; the image still says that it stands on the others.
    Copied,
    /// It was told to end.
    Cancelled,
    /// It has ended, by itself; without an error it has done its work.
    Ended,
}

/// A word to a job that pulls. To one that has ended already, or is there no more, nothing is said, and it is no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Go on.
    GoOn,
    /// Stand still; it does when the call returns.
    Hold,
    /// The same, and whatever QEMU holds of the image is in the file then.
    Rest,
    /// End; it has when the call returns.
    Cancel,
    /// Copy no more than so many bytes per second; 0 for as many as can be.
    Speed(u64),
    /// It has ended, and need not be told of any more.
    Dismiss,
}

/// Jobs that pull what a disk lacks from the images below it.
pub trait Pulls {
    /// Starts one. There must be none for the image.
    ///
    /// # Errors
    /// If QEMU refuses, or has the image open twice.
    fn start(&self, by: &Worker, pull: &Pull) -> Result<()>;

    /// The job of an image, if there is one.
    ///
    /// # Errors
    /// If QEMU cannot be reached.
    fn look(&self, by: &Worker, image: &Path) -> Result<Option<PullJob>>;

    /// Says something to the job of an image.
    ///
    /// # Errors
    /// If QEMU cannot be reached, or refuses.
    fn tell(&self, by: &Worker, image: &Path, word: Word) -> Result<()>;

    /// Lets a job that has copied everything do its last act, and closes the images that the disk does not need any more.
    /// Between QEMU's flush and that act, `is_all_there` has to find everything on the disk. Doing it again is no error.
    ///
    /// # Errors
    /// Those of `is_all_there`; if QEMU cannot be reached, or the image says something else afterwards.
    fn complete(
        &self,
        life: DomainLife,
        pull: &Pull,
        is_all_there: &dyn Fn() -> Result<()>,
    ) -> Result<()>;

    /// Opens a chain of images that nobody has open, the one that is written to first, for a worker of the directory.
    ///
    /// # Errors
    /// If somebody has them open, or the daemon does not start.
    fn serve(&self, directory: &Path, chain: &[Backing]) -> Result<Box<dyn StorageServer>>;

    /// The directory of the daemon for a domain, by that domain's directory in the store.
    fn directory(&self, of_domain: &Path) -> PathBuf;
}

/// A storage daemon. Without a word it ends too, whatever it is doing.
pub trait StorageServer {
    /// Writes everything back and ends.
    ///
    /// # Errors
    /// If not all may have been written.
    fn end(self: Box<Self>) -> Result<()>;
}

/// Images that nobody has open. Whoever changes one makes sure of that first.
pub trait Images {
    /// What is in an image; `None` where there is no file.
    ///
    /// # Errors
    /// If it is not an image of the format.
    fn facts(&self, image: &Path, format: ImageFormat) -> Result<Option<ImageFacts>>;

    /// Makes an internal snapshot.
    ///
    /// # Errors
    /// If the image is in use, full or damaged.
    fn create_snapshot(&self, disk: &DiskTarget, tag: &str) -> Result<()>;

    /// Makes an image's content that of an internal snapshot.
    ///
    /// # Errors
    /// If the image is in use or damaged, or has no such snapshot.
    fn apply_snapshot(&self, disk: &DiskTarget, tag: &str) -> Result<()>;

    /// Deletes an internal snapshot; its absence is no error.
    ///
    /// # Errors
    /// If the image is in use or damaged.
    fn delete_snapshot(&self, disk: &DiskTarget, tag: &str) -> Result<()>;

    /// Gives back what a power cut in the middle of making or deleting an internal snapshot left counted for nothing.
    /// Nothing else is repaired.
    ///
    /// # Errors
    /// If the image is in use, or damaged in another way.
    fn release_leaks(&self, disk: &DiskTarget) -> Result<()>;

    /// Makes sure that there is no file of the name.
    ///
    /// # Errors
    /// If there is one.
    fn require_absent(&self, image: &Path) -> Result<()>;

    /// Makes sure that no process has an image open; waits for a while for one that has.
    ///
    /// # Errors
    /// If one has.
    fn require_closed(&self, image: &Path) -> Result<()>;

    /// Makes a new, empty layer, readable by root alone.
    ///
    /// # Errors
    /// If there is a file of its name, or no room.
    fn create_layer(&self, layer: &Layer) -> Result<()>;

    /// Makes a layer that holds what an internal snapshot of another image does. That may be in use, as long
    /// as nobody writes to it.
    ///
    /// # Errors
    /// If there is a file of its name, no room, or no such snapshot.
    fn extract(&self, from: &DiskTarget, tag: &str, layer: &Layer) -> Result<()>;

    /// Writes what a layer holds to the image below it.
    ///
    /// # Errors
    /// If either is in use, full or damaged.
    fn commit_layer(&self, layer: &Layer) -> Result<()>;

    /// Puts a layer onto another image, or onto none. Its content stays the same: with `copy`, by copying
    /// what it lacks then; without, because the other image holds the same as the one that it stands on. A
    /// layer that stands there already is no error.
    ///
    /// # Errors
    /// If it is in use, full or damaged.
    fn rebase_layer(&self, layer: &Layer, onto: Option<&Backing>, copy: bool) -> Result<()>;

    /// Empties the file of a layer whose content the image below it holds, to say so to whoever comes after a
    /// crash ([`ImageFacts::retired`]).
    ///
    /// # Errors
    /// If it is in use, or cannot be emptied.
    fn retire_layer(&self, layer: &Layer) -> Result<()>;

    /// Removes the file of a layer; its absence is no error.
    ///
    /// # Errors
    /// If it is in use, or cannot be removed.
    fn remove_layer(&self, layer: &Layer) -> Result<()>;

    /// What a guest would read of a chain of images, the one that it would write to first, or of an internal snapshot
    /// in that. What the images say of those below them does not count. They may be in use.
    ///
    /// # Errors
    /// If one is missing or damaged, or there is no such snapshot.
    fn content(&self, chain: &[Backing], tag: Option<&str>) -> Result<Box<dyn DiskContent>>;

    /// When an image was last written to; none where there is no file, or a device, whose time is that of its name.
    fn last_write(&self, image: &Path) -> Option<Stamp>;

    /// Which image of a chain each part of a disk is read from, from its beginning to its end. They may be in use.
    ///
    /// # Errors
    /// If one is missing or damaged.
    fn extents(&self, chain: &[Backing]) -> Result<Vec<Extent>>;

    /// Opens an image, so that what others fail to write from then on does not go unheard.
    ///
    /// # Errors
    /// If it cannot be opened.
    fn open_to_sync(&self, image: &Path) -> Result<Box<dyn Durable>>;

    /// Waits until what was written to an image is on the disk, with the time of its last write.
    ///
    /// # Errors
    /// If it did not get there.
    fn make_durable(&self, image: &Path) -> Result<()>;
}

/// An image that others write to.
pub trait Durable {
    /// Waits until what they wrote is on the disk.
    ///
    /// # Errors
    /// If something did not get there since it was opened.
    fn sync(&self) -> Result<()>;
}

/// The processes that act on what the guests do.
pub trait Monitors {
    /// The monitor of the domain of the given name and number, or, without a number, of one of the name that is gone
    /// and about to be started anew; none where the domain was started without.
    ///
    /// # Errors
    /// If the processes cannot be listed.
    fn find(&self, domain: &str, domid: Option<u32>) -> Result<Option<ProcessId>>;

    /// Stops a monitor, so that it takes no notice of a suspend. One that is gone is no error.
    ///
    /// # Errors
    /// If it does not stop.
    fn hold(&self, process: ProcessId) -> Result<()>;

    /// Lets a monitor go on. One that is gone is no error.
    ///
    /// # Errors
    /// If it cannot be signalled.
    fn release(&self, process: ProcessId) -> Result<()>;
}

/// Whoever makes a domain out of a memory image.
pub trait Restorer {
    /// A restore is to come: what it begins with, and needs no image for, may be done from now on, beside what is
    /// looked at first. It changes nothing, and what becomes of it [`Restorer::restore_paused`] says.
    fn make_ready(&self, _keeper: Keeper) {}

    /// No restore is to come any more.
    fn stand_down(&self) {}

    /// Restores the domain and leaves it paused: it has not run yet. `keeper` acts on what it does later.
    /// Its disks are as the image says, but for `switches`. `observer` hears how much of the image has been taken,
    /// unless it is a plain file that whoever restores opens itself.
    ///
    /// # Errors
    /// If the restore fails; a half-built domain may be left.
    fn restore_paused(
        &self,
        memory: &Kept,
        keeper: Keeper,
        switches: &[Switch],
        observer: &dyn Observer,
    ) -> Result<()>;
}

/// The runtime state that other tools can watch, below `/libxl/<domid>/ext`.
pub trait NoticeBoard {
    /// Sets a node.
    ///
    /// # Errors
    /// If xenstored refuses.
    fn post(&self, domid: u32, node: &str, value: &str) -> Result<()>;

    /// Removes a node.
    ///
    /// # Errors
    /// If xenstored refuses; absence is no error.
    fn withdraw(&self, domid: u32, node: &str) -> Result<()>;
}

/// Everything that the host offers.
pub struct Ports {
    /// The hypervisor.
    pub hypervisor: Box<dyn Hypervisor>,
    /// libxl.
    pub toolstack: Box<dyn Toolstack>,
    /// QEMU.
    pub block: Box<dyn BlockLayer>,
    /// QEMU's jobs that outlive our commands.
    pub pulls: Box<dyn Pulls>,
    /// `qemu-img`.
    pub images: Box<dyn Images>,
    /// xl's monitors.
    pub monitors: Box<dyn Monitors>,
    /// `xl restore`, or libxl.
    pub restorer: Box<dyn Restorer>,
    /// xenstore.
    pub board: Box<dyn NoticeBoard>,
}

impl Ports {
    /// Connects to the host that we run on.
    ///
    /// # Errors
    /// If this is not domain 0 of a Xen host, or the caller is not root.
    pub fn connect() -> Result<Self> {
        Self::connect_with(restore::Restore::default())
    }

    /// As [`Ports::connect`], for a domain that is about to be restored: what that begins with goes on meanwhile
    /// ([`Restorer::make_ready`]).
    ///
    /// # Errors
    /// As [`Ports::connect`].
    pub fn connect_to_restore(keeper: Keeper) -> Result<Self> {
        let restorer = restore::Restore::default();
        restorer.make_ready(keeper);
        Self::connect_with(restorer)
    }

    fn connect_with(restorer: restore::Restore) -> Result<Self> {
        Ok(Self {
            hypervisor: Box::new(xenctrl::XenCtl::open()?),
            toolstack: Box::new(libxl::Libxl::open()?),
            block: Box::new(qmp::QemuMonitors),
            pulls: Box::new(qmp::QemuMonitors),
            images: Box::new(qemu_img::QemuImg),
            monitors: Box::new(monitor::XlMonitors),
            restorer: Box::new(restorer),
            board: Box::new(xenstore::Xenstore),
        })
    }
}

/// When QEMU says that an internal snapshot was made.
fn stamp(seconds: i64, nanoseconds: i64) -> Stamp {
    Stamp {
        seconds,
        nanoseconds,
    }
}
