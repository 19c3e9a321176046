//! A host made of data: domains, images and a store in a temporary directory. Any call to a port can be
//! made to fail, or to be the last one of the process, before or after it took effect.

use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::exec::tests::jobs::FakeJob;
use crate::memory::{self, Kept, PAGE};
use crate::model::configuration::redirect;
use crate::model::disk::{DiskTarget, ImageFacts, ImageFormat, InternalSnapshot, Stamp};
use crate::model::domain::{DomainLife, DomainState, GuestType, Keeper};
use crate::model::layer::{Backing, Into, Layer};
use crate::model::process::ProcessId;
use crate::plan::{Merge, Switch};
use crate::port::{
    BlockLayer, BlockNode, Configuration, DiskContent, DomainView, Hypervisor, Images, Monitors,
    NoticeBoard, Ports, Restorer, Toolstack,
};
use crate::snapshot::Host;
use crate::store::Store;
use serde_json::json;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// A stream with the memory of a guest: a page that says which it is, one that no other memory has, one that all have,
/// one of zeros.
fn stream_with(memory: &str) -> Vec<u8> {
    let mut told = format!("{MARK}{memory}").into_bytes();
    told.resize(PAGE, 0);
    let own = memory.bytes().cycle().take(PAGE).collect();
    let pages = [told, own, vec![7; PAGE], vec![0; PAGE]];
    let pages = (1..).zip(pages.map(Some)).collect();
    memory::stream_of(&[pages])
}

/// What the memory says that is in a memory image.
pub(super) fn memory_in(kept: &Kept) -> Result<String> {
    let mut bytes = Vec::new();
    kept.open()?
        .read_to_end(&mut bytes)
        .map_err(|error| Error::io("read a memory image", error))?;
    let at = bytes
        .windows(MARK.len())
        .position(|window| window == MARK.as_bytes());
    let told = &bytes[at.expect("the page is there") + MARK.len()..];
    let end = told.iter().position(|byte| *byte == 0).unwrap();
    Ok(String::from_utf8(told[..end].to_vec()).unwrap())
}

const MARK: &str = "the memory of the guest: ";

pub(super) const NAME: &str = "g1";
pub(super) const IMAGES: [&str; 2] = ["/images/a.qcow2", "/images/b.qcow2"];
/// The disk of another domain of the name.
pub(super) const OTHER: &str = "/images/other.qcow2";

/// The time before anything went wrong, as against that of this host's clock, in seconds.
const HOURS_AGO: i64 = -7200;

fn since_epoch() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

/// How a call goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It reports a failure and has done nothing.
    Fails,
    /// The process is killed before the call took effect.
    KilledBefore,
    /// The process is killed after it.
    KilledAfter,
}

/// What a kill unwinds with.
pub(super) struct Killed;

#[derive(Clone, Debug, PartialEq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "what a domain is in is no one state"
)]
pub(super) struct Domain {
    pub(super) uuid: Uuid,
    /// Running or suspended.
    pub(super) suspended: bool,
    /// Its QEMU has ended, as in the middle of a destruction.
    pub(super) gutted: bool,
    /// Its name, until that is gone too.
    pub(super) name: Option<String>,
    /// xl's process.
    pub(super) monitor: ProcessId,
    /// Whether that is stopped.
    pub(super) monitor_held: bool,
    /// How often it was paused.
    pub(super) pauses: u32,
    pub(super) has_run: bool,
    pub(super) memory: String,
    /// The disks that it has.
    pub(super) images: Vec<PathBuf>,
    /// The disks that libxl believes it to have.
    pub(super) told: Vec<PathBuf>,
    /// How often its QEMU has each of them open.
    pub(super) openings: usize,
    /// Layers of which QEMU writes everything to the image below too.
    pub(super) in_step: BTreeSet<PathBuf>,
}

impl Domain {
    pub(super) fn state(&self) -> DomainState {
        match (self.suspended, self.pauses) {
            (true, _) => DomainState::Suspended,
            (false, 0) => DomainState::Running,
            (false, _) => DomainState::Paused,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Image {
    /// What is in the image itself; a layer holds nothing until something is written to it.
    pub(super) content: String,
    pub(super) snapshots: BTreeMap<String, (String, i64)>,
    /// The image below.
    pub(super) backing: Option<PathBuf>,
    /// Of which format it says that this is, if somebody changed that.
    pub(super) says: Option<&'static str>,
    /// When it was last written to, in seconds since the epoch; no two writes are at the same time.
    pub(super) written: i64,
    /// Bytes that it takes.
    pub(super) allocated: u64,
    /// Whether its file was emptied.
    pub(super) retired: bool,
}

/// A reboot: xl reads on which images the domain goes on, destroys it, and starts it anew some calls later. What is
/// stopped does none of that.
#[derive(Debug)]
struct Reboot {
    process: ProcessId,
    held: bool,
    /// The call before which it begins, and how many calls later it ends.
    begins_at: usize,
    takes: usize,
    /// When it has begun: on which images it will go on.
    into: Option<Vec<PathBuf>>,
}

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) domains: BTreeMap<u32, Domain>,
    pub(super) images: BTreeMap<PathBuf, Image>,
    /// Who was to keep the domains that were restored, in their order.
    pub(super) restored_for: Vec<Keeper>,
    /// How much memory domains have.
    pub(super) memory_bytes: u64,
    /// The store, which says what the disks of a domain that is started are.
    pub(super) root: PathBuf,
    /// Before the call of this number somebody starts the domain.
    start_at: Option<usize>,
    /// How often it is still looked before a restored guest has its disks again.
    connects_in: u32,
    /// Domains that have ended by themselves and are still there.
    pub(super) ended: BTreeSet<u32>,
    /// What xl does about the end of one.
    reboot: Option<Reboot>,
    /// Jobs that pull, by the domain whose QEMU has them, or none for the storage daemon, and the image.
    pub(super) jobs: BTreeMap<(Option<u32>, PathBuf), FakeJob>,
    /// What a storage daemon has open.
    pub(super) served: Vec<PathBuf>,
    /// What stops the jobs half-way.
    pub(super) jobs_fail: Option<&'static str>,
    next_domid: u32,
    clock: i64,
    /// The time at which images are written to, in seconds since the epoch.
    pub(super) now: i64,
    calls: usize,
    fault: Option<(usize, Fault)>,
}

impl World {
    /// The call of the given number, counted from now, goes wrong.
    pub(super) fn inject(&mut self, at: usize, fault: Fault) {
        self.calls = 0;
        self.fault = Some((at, fault));
    }

    /// Somebody starts the domain before the call of the given number, counted from now, and it writes at once.
    pub(super) fn start_at(&mut self, at: usize) {
        self.calls = 0;
        self.start_at = Some(at);
    }

    /// Whether there was such a call.
    pub(super) fn came_to(&self, at: usize) -> bool {
        self.calls > at
    }

    /// The images of the domain, if it were started as by `xl-ext` under the name xl.
    pub(super) fn disks_to_start(&self) -> Vec<PathBuf> {
        let record = Store::new(&self.root).domain(NAME).load().unwrap();
        let disk = |base: &str| match record.active_layer(Path::new(base)) {
            Some(layer) => layer.image.to_path_buf(),
            None => base.into(),
        };
        IMAGES.map(disk).into()
    }

    fn write(&mut self, what: &str) {
        for domain in self.domains.values_mut() {
            domain.memory = format!("memory {what}");
            for path in &domain.images {
                let image = self.images.get_mut(path).unwrap();
                image.content = format!("disk {what}");
                image.touch(self.now);
            }
        }
    }

    fn start(&mut self) {
        self.start_on(self.disks_to_start());
    }

    /// The domain has shut down to be rebooted; xl notices before the call of the given number, counted from now.
    pub(super) fn reboots(&mut self, begins_at: usize, takes: usize) {
        self.calls = 0;
        self.ended = self.domains.keys().copied().collect();
        self.reboot = self.the_domain().map(|domain| Reboot {
            process: domain.monitor,
            held: domain.monitor_held,
            begins_at,
            takes,
            into: None,
        });
    }

    /// The same, if there is nothing more that it waits for.
    pub(super) fn end_reboot(&mut self) {
        self.reboot_goes_on(usize::MAX);
        self.reboot_goes_on(usize::MAX);
    }

    fn reboot_goes_on(&mut self, at: usize) {
        let Some(mut reboot) = self.reboot.take_if(|reboot| !reboot.held) else {
            return;
        };
        match reboot.into.take() {
            Some(images) if at >= reboot.begins_at.saturating_add(reboot.takes) => {
                self.start_on(images);
                return;
            }
            None if at >= reboot.begins_at => match self.ended.pop_first() {
                // Somebody else destroyed it: there is nothing to do.
                None => return,
                Some(domid) => {
                    let domain = self.domains.remove(&domid);
                    reboot.into = domain.map(|domain| domain.told);
                }
            },
            into => reboot.into = into,
        }
        self.reboot = Some(reboot);
    }

    /// QEMU does not start on an empty file, and not without one.
    fn start_on(&mut self, images: Vec<PathBuf>) {
        let is_image = |path: &PathBuf| self.images.get(path).is_some_and(|image| !image.retired);
        if !images.iter().all(is_image) {
            return;
        }
        self.insert(Domain {
            uuid: Uuid::from_u128(7),
            suspended: false,
            gutted: false,
            name: Some(NAME.into()),
            monitor: ProcessId { pid: 0, started: 0 },
            monitor_held: false,
            pauses: 0,
            has_run: true,
            memory: "memory of a fresh boot".into(),
            told: images.clone(),
            images,
            openings: 1,
            in_step: BTreeSet::new(),
        });
    }

    /// Nothing goes wrong any more. Returns whether something had.
    pub(super) fn heal(&mut self) -> bool {
        self.fault.take().is_none_or(|(at, _)| self.calls > at)
    }

    /// What a guest reads of an image.
    pub(super) fn content(&self, path: &Path) -> String {
        let image = &self.images[path];
        match &image.backing {
            Some(below) if image.content.is_empty() => self.content(below),
            _ => image.content.clone(),
        }
    }

    /// The image of the disk and those below it, which QEMU has open too.
    fn chain(&self, path: &Path) -> Vec<PathBuf> {
        let mut chain = vec![path.to_path_buf()];
        while let Some(below) = chain
            .last()
            .and_then(|path| self.images.get(path)?.backing.clone())
        {
            chain.push(below);
        }
        chain
    }

    pub(super) fn the_domain(&self) -> Option<&Domain> {
        self.domains.values().next()
    }
}

#[derive(Clone)]
pub(super) struct Shared(pub(super) Rc<RefCell<World>>);

impl Shared {
    /// A running domain with two disks.
    pub(super) fn new() -> Self {
        let domain = Domain {
            uuid: Uuid::from_u128(7),
            suspended: false,
            gutted: false,
            name: Some(NAME.into()),
            monitor: ProcessId { pid: 1, started: 0 },
            monitor_held: false,
            pauses: 0,
            has_run: true,
            memory: "memory 0".into(),
            images: IMAGES.map(PathBuf::from).into(),
            told: IMAGES.map(PathBuf::from).into(),
            openings: 1,
            in_step: BTreeSet::new(),
        };
        let image = Image {
            content: "disk 0".into(),
            ..Image::default()
        };
        Self(Rc::new(RefCell::new(World {
            domains: [(1, domain)].into(),
            images: IMAGES.map(|path| (path.into(), image.clone())).into(),
            memory_bytes: 4096,
            next_domid: 2,
            clock: 1000,
            now: HOURS_AGO + since_epoch(),
            ..World::default()
        })))
    }

    pub(super) fn host(&self, root: &Path) -> Host {
        Host::new(self.ports(), Store::new(root))
    }

    pub(super) fn ports(&self) -> Ports {
        Ports {
            hypervisor: Box::new(self.clone()),
            toolstack: Box::new(self.clone()),
            block: Box::new(self.clone()),
            pulls: Box::new(self.clone()),
            images: Box::new(self.clone()),
            monitors: Box::new(self.clone()),
            restorer: Box::new(self.clone()),
            board: Box::new(self.clone()),
        }
    }

    /// The same with images that are files, and no domain that has them.
    pub(super) fn host_with_files(&self, root: &Path) -> Host {
        let ports = Ports {
            hypervisor: Box::new(self.clone()),
            toolstack: Box::new(self.clone()),
            block: Box::new(self.clone()),
            pulls: Box::new(self.clone()),
            images: Box::new(crate::port::qemu_img::QemuImg),
            monitors: Box::new(self.clone()),
            restorer: Box::new(self.clone()),
            board: Box::new(self.clone()),
        };
        Host::new(ports, Store::new(root))
    }

    /// The guest goes on: memory and disks change.
    pub(super) fn live_on(&self, to: &str) {
        self.0.borrow_mut().write(to);
    }

    /// Hours pass after a kill: whatever is done from now on is late, by the journal and by the images.
    pub(super) fn hours_pass(&self, root: &Path) {
        let mut world = self.0.borrow_mut();
        let killed_at = UNIX_EPOCH + Duration::from_secs(u64::try_from(world.now).unwrap());
        world.now = since_epoch();
        let journal = Store::new(root).domain(NAME).journal_path();
        if let Ok(journal) = std::fs::File::options().append(true).open(journal) {
            journal.set_modified(killed_at).unwrap();
        }
    }

    /// The domain, which was off, is started.
    pub(super) fn start(&self) {
        self.0.borrow_mut().start();
    }

    /// Somebody ended the domain, and started another one of the name with a disk of its own.
    pub(super) fn replace_domain(&self) {
        let mut world = self.0.borrow_mut();
        let (_, mut domain) = world.domains.pop_first().unwrap();
        domain.uuid = Uuid::from_u128(8);
        domain.memory = "memory other".into();
        domain.images = vec![OTHER.into()];
        domain.told = vec![OTHER.into()];
        let image = Image {
            content: "disk other".into(),
            ..Image::default()
        };
        world.images.insert(OTHER.into(), image);
        world.insert(domain);
    }

    /// The other domain's disk is at another path.
    pub(super) fn move_other_image(&self, to: &Path) {
        let world = &mut *self.0.borrow_mut();
        let image = world.images.remove(Path::new(OTHER)).unwrap();
        world.images.insert(to.into(), image);
        for domain in world.domains.values_mut() {
            domain.images = vec![to.into()];
            domain.told = vec![to.into()];
        }
    }

    pub(super) fn call<T>(&self, act: impl FnOnce(&mut World) -> Result<T>) -> Result<T> {
        let mut world = self.0.borrow_mut();
        let at = world.calls;
        world.calls += 1;
        world.reboot_goes_on(at);
        if world.start_at == Some(at) {
            world.start();
            world.write("9");
        }
        let fault = world
            .fault
            .filter(|(wanted, _)| *wanted == at)
            .map(|(_, fault)| fault);
        match fault {
            Some(Fault::Fails) => return Err(Error::new(ErrorKind::Toolstack, "injected")),
            Some(Fault::KilledBefore) => {
                drop(world);
                std::panic::resume_unwind(Box::new(Killed));
            }
            Some(Fault::KilledAfter) | None => {}
        }
        let result = act(&mut world);
        if fault.is_some() {
            drop(world);
            std::panic::resume_unwind(Box::new(Killed));
        }
        result
    }
}

/// By the name of the image.
fn format_of(path: &Path) -> &'static str {
    match path.extension() {
        Some(raw) if raw == "raw" => "raw",
        _ => "qcow2",
    }
}

pub(super) fn impossible(what: &str) -> Error {
    Error::new(ErrorKind::Toolstack, what)
}

impl World {
    pub(super) fn domain(&mut self, domid: u32) -> Result<&mut Domain> {
        self.domains
            .get_mut(&domid)
            .ok_or_else(|| impossible("no such domain"))
    }

    /// Adds a domain with a new domid and a new monitor.
    fn insert(&mut self, mut domain: Domain) {
        let domid = self.next_domid;
        self.next_domid += 1;
        domain.monitor = ProcessId {
            pid: i32::try_from(domid).unwrap(),
            started: 0,
        };
        self.domains.insert(domid, domain);
    }

    /// The image as the domain's QEMU has it open.
    fn open_image(&mut self, domid: u32, path: &Path) -> Result<&mut Image> {
        let domain = self.domain(domid)?;
        if domain.gutted || !domain.images.iter().any(|image| image == path) {
            return Err(impossible("no QEMU has the image open"));
        }
        self.image(path)
    }

    pub(super) fn image(&mut self, path: &Path) -> Result<&mut Image> {
        self.images
            .get_mut(path)
            .ok_or_else(|| impossible("no such image"))
    }

    /// What the real port makes sure of before it writes.
    pub(super) fn closed_image(&mut self, path: &Path) -> Result<&mut Image> {
        let open = self.domains.values().filter(|domain| !domain.gutted);
        let mut open = open
            .flat_map(|domain| domain.images.iter().flat_map(|image| self.chain(image)))
            .chain(self.served.iter().cloned());
        if open.any(|image| image == path) {
            Err(impossible("the image is in use"))
        } else {
            self.image(path)
        }
    }

    /// The domain's QEMU goes on in another image.
    fn replace_disk(&mut self, domid: u32, from: &Path, to: &Path) -> Result<()> {
        let mut disks = self.domain(domid)?.images.iter_mut();
        let disk = disks.find(|disk| &***disk == from);
        *disk.ok_or_else(|| impossible("no such disk"))? = to.into();
        Ok(())
    }

    /// Puts an image onto another one; `copy` what it lacks then.
    fn rebase(&mut self, path: &Path, onto: Option<&Backing>, copy: bool) -> Result<()> {
        let content = self.content(path);
        let now = self.now;
        let image = self.image(path)?;
        image.backing = onto.map(|onto| onto.image.to_path_buf());
        image.touch(now);
        if copy {
            image.content = content;
        }
        Ok(())
    }

    /// Writes what a layer holds to the image below.
    fn merge(&mut self, layer: &Layer) -> Result<()> {
        let content = self.image(&layer.image)?.content.clone();
        if !content.is_empty() {
            let now = self.now;
            let below = self.image(&layer.backing.as_ref().unwrap().image)?;
            below.content = content;
            below.touch(now);
        }
        Ok(())
    }

    fn monitor(&mut self, process: ProcessId, held: bool) {
        if let Some(reboot) = &mut self.reboot
            && reboot.process == process
        {
            reboot.held = held;
        }
        let domain = self
            .domains
            .values_mut()
            .find(|domain| domain.monitor == process);
        if let Some(domain) = domain {
            assert!(
                held || !domain.suspended,
                "the monitor sees the suspend and exits"
            );
            domain.monitor_held = held;
        }
    }

    fn state_of(&self, domid: u32, domain: &Domain) -> DomainState {
        if self.ended.contains(&domid) {
            DomainState::Shutdown
        } else {
            domain.state()
        }
    }

    fn view(&self, domid: u32) -> Option<DomainView> {
        self.domains.get(&domid).map(|domain| DomainView {
            life: DomainLife {
                domid,
                uuid: domain.uuid,
            },
            state: self.state_of(domid, domain),
            paused: domain.pauses > 0,
            memory_bytes: self.memory_bytes,
            has_run: domain.has_run,
        })
    }
}

impl Image {
    pub(super) fn touch(&mut self, now: i64) {
        self.written = now.max(self.written + 1);
    }

    fn backing_format(&self) -> Option<String> {
        let own = self.backing.as_deref().map(format_of);
        self.says.or(own).map(str::to_owned)
    }

    fn facts(&self) -> ImageFacts {
        let snapshots = self
            .snapshots
            .iter()
            .map(|(tag, (_, seconds))| InternalSnapshot {
                tag: tag.clone(),
                stamp: Stamp {
                    seconds: *seconds,
                    nanoseconds: 0,
                },
            });
        ImageFacts {
            virtual_size: 1 << 20,
            allocated: self.allocated,
            written: Stamp {
                seconds: self.written,
                nanoseconds: 0,
            },
            is_device: false,
            retired: self.retired,
            backing: self.backing.clone(),
            backing_format: self.backing_format(),
            snapshots: snapshots.collect(),
        }
    }
}

impl Hypervisor for Shared {
    fn look(&self, domid: u32) -> Result<Option<DomainView>> {
        self.call(|world| Ok(world.view(domid)))
    }

    fn all(&self) -> Result<Vec<DomainView>> {
        self.call(|world| {
            let domids = world.domains.keys();
            Ok(domids.filter_map(|domid| world.view(*domid)).collect())
        })
    }

    fn find(&self, uuid: Uuid) -> Result<Option<DomainView>> {
        self.call(|world| {
            let found = world.domains.iter().find(|(_, domain)| domain.uuid == uuid);
            Ok(found.and_then(|(domid, _)| world.view(*domid)))
        })
    }
}

impl Toolstack for Shared {
    fn domid_of(&self, name: &str) -> Result<Option<u32>> {
        self.call(|world| {
            let mut domains = world.domains.iter();
            let named = domains.find(|(_, domain)| domain.name.as_deref() == Some(name));
            Ok(named.map(|(domid, _)| *domid))
        })
    }

    fn name_of(&self, domid: u32) -> Result<Option<String>> {
        let world = self.0.borrow();
        let domain = world.domains.get(&domid);
        Ok(domain.and_then(|domain| domain.name.clone()))
    }

    fn has_shadow_paging(&self) -> Result<bool> {
        Ok(true)
    }

    fn disks_are_connected(&self, domid: u32) -> Result<bool> {
        self.call(|world| {
            // It connects them while it runs.
            if world.domain(domid)?.state() == DomainState::Running {
                world.connects_in = world.connects_in.saturating_sub(1);
            }
            Ok(world.connects_in == 0)
        })
    }

    fn configuration(&self, domid: u32) -> Result<Configuration> {
        self.call(|world| {
            let domain = world.domain(domid)?;
            let uuid = domain.uuid;
            let disks: Vec<_> = domain
                .told
                .iter()
                .zip(["xvda", "xvdb"])
                .map(|(path, vdev)| {
                    json!({ "pdev_path": path, "vdev": vdev, "backend": "qdisk",
                            "format": format_of(path), "readwrite": 1 })
                })
                .collect();
            let value = json!({ "c_info": { "uuid": uuid, "type": "pv" }, "disks": disks });
            Ok(Configuration {
                json: value.to_string(),
                value,
                guest_type: GuestType::Pv,
            })
        })
    }

    fn suspend_to(
        &self,
        domid: u32,
        sink: BorrowedFd<'_>,
        _live: bool,
        _observer: &dyn Observer,
    ) -> Result<Option<Instant>> {
        self.call(|world| {
            if world.connects_in > 0 {
                return Err(Error::new(
                    ErrorKind::GuestTimeout,
                    "a guest that waits for its disks does not suspend",
                ));
            }
            let domain = world.domain(domid)?;
            assert_eq!(
                domain.state(),
                DomainState::Running,
                "a guest has to run to suspend"
            );
            assert!(
                domain.monitor_held,
                "the monitor sees the suspend and exits"
            );
            domain.suspended = true;
            let mut sink = std::fs::File::from(sink.as_fd().try_clone_to_owned().unwrap());
            sink.write_all(&stream_with(&domain.memory))
                .map(|()| None)
                .map_err(|error| Error::io("sink", error))
        })
    }

    fn resume(&self, domid: u32) -> Result<()> {
        self.call(|world| {
            let domain = world.domain(domid)?;
            assert!(domain.suspended, "resumed without a suspend");
            assert!(!domain.gutted, "resumed without its QEMU");
            domain.suspended = false;
            Ok(())
        })
    }

    fn pause(&self, domid: u32) -> Result<()> {
        self.call(|world| {
            world.domain(domid)?.pauses += 1;
            Ok(())
        })
    }

    fn unpause(&self, domid: u32) -> Result<()> {
        self.call(|world| {
            let domain = world.domain(domid)?;
            domain.pauses = domain.pauses.saturating_sub(1);
            domain.has_run |= domain.pauses == 0;
            Ok(())
        })
    }

    fn point_disks(&self, domid: u32, switches: &[Switch]) -> Result<()> {
        self.call(|world| {
            let domain = world.domain(domid)?;
            for switch in switches {
                let at = usize::from(switch.from.vdev == "xvdb");
                domain.told[at] = switch.to.image.to_path_buf();
            }
            Ok(())
        })
    }

    fn destroy(&self, domid: u32) -> Result<()> {
        // As libxl does it: pause, end QEMU, take the name, and only then the domain.
        self.call(|world| {
            world.domain(domid)?.pauses += 1;
            Ok(())
        })?;
        self.call(|world| {
            world.domain(domid)?.gutted = true;
            Ok(())
        })?;
        self.call(|world| {
            world.domain(domid)?.name = None;
            Ok(())
        })?;
        self.call(|world| {
            world.domains.remove(&domid);
            world.ended.remove(&domid);
            Ok(())
        })
    }
}

impl BlockLayer for Shared {
    fn nodes(&self, life: DomainLife) -> Result<Vec<BlockNode>> {
        self.call(|world| {
            let domain = world.domain(life.domid)?.clone();
            if domain.images.is_empty() || domain.gutted {
                return Err(impossible("there is no QEMU"));
            }
            let times = domain.openings;
            let paths: Vec<_> = domain
                .images
                .iter()
                .flat_map(|path| world.chain(path))
                .collect();
            let paths = paths.iter().cycle().take(paths.len() * times);
            let nodes = paths.map(|path| BlockNode {
                node_name: path.display().to_string(),
                driver: format_of(path).into(),
                facts: world.images[path].facts(),
                image: path.as_path().into(),
            });
            Ok(nodes.collect())
        })
    }

    fn snapshot(
        &self,
        life: DomainLife,
        tag: &str,
        disks: &[DiskTarget],
        layers: &[Layer],
    ) -> Result<()> {
        self.call(|world| {
            world.clock += 1;
            let clock = world.clock;
            assert_eq!(world.domain(life.domid)?.openings, 1, "open twice");
            if world
                .jobs
                .keys()
                .any(|(domid, _)| *domid == Some(life.domid))
            {
                return Err(impossible("the node is busy: a job uses it"));
            }
            for disk in disks {
                let content = world.content(&disk.image);
                let image = world.open_image(life.domid, &disk.image)?;
                image.snapshots.insert(tag.to_owned(), (content, clock));
            }
            for layer in layers {
                assert_eq!(world.image(&layer.image)?.content, "", "it is new");
                let below = layer.backing.as_ref().unwrap();
                world.replace_disk(life.domid, &below.image, &layer.image)?;
            }
            Ok(())
        })
    }

    fn merge(&self, life: DomainLife, merge: &Merge) -> Result<()> {
        self.call(|world| Self::merge_live(world, life, merge))
    }

    fn bring_in_step(&self, life: DomainLife, layer: &Layer) -> Result<()> {
        self.call(|world| {
            world.merge(layer)?;
            let domain = world.domain(life.domid)?;
            domain.in_step.insert(layer.image.to_path_buf());
            Ok(())
        })
    }

    fn leave_layer(&self, life: DomainLife, layer: &Layer) -> Result<bool> {
        self.call(|world| {
            let below = layer.backing.as_ref().unwrap();
            let domain = world.domain(life.domid)?;
            assert_ne!(
                domain.state(),
                DomainState::Running,
                "it may write to either image"
            );
            if !domain.in_step.remove(&*layer.image) {
                return Ok(false);
            }
            world.merge(layer)?;
            world.replace_disk(life.domid, &layer.image, &below.image)?;
            Ok(true)
        })
    }

    fn delete_snapshot(&self, life: DomainLife, tag: &str, disk: &DiskTarget) -> Result<()> {
        self.call(|world| {
            let domain = world.domain(life.domid)?;
            assert!(
                domain.openings == 1 || domain.state() != DomainState::Running,
                "an image that the guest may write to by two nodes is changed"
            );
            let now = world.now;
            let image = world.open_image(life.domid, &disk.image)?;
            image.snapshots.remove(tag);
            image.touch(now);
            Ok(())
        })
    }
}

impl Shared {
    fn merge_live(world: &mut World, life: DomainLife, merge: &Merge) -> Result<()> {
        let layer = &merge.layer;
        let disks = world.domain(life.domid)?.images.clone();
        let open: Vec<_> = disks.iter().flat_map(|disk| world.chain(disk)).collect();
        if !open.iter().any(|path| **path == *layer.image) {
            return Ok(());
        }
        match merge.into {
            Into::Layer => world.rebase(&layer.image, merge.onto.as_ref(), true),
            Into::Below => {
                world.merge(layer)?;
                if disks.contains(&layer.image.to_path_buf()) {
                    let domain = world.domain(life.domid)?;
                    domain.in_step.insert(layer.image.to_path_buf());
                    return Ok(());
                }
                // As QEMU does it for those that it has open, and for no others.
                for path in open {
                    if world.images[&path].backing.as_deref() == Some(&*layer.image) {
                        world.rebase(&path, layer.backing.as_ref(), false)?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl Monitors for Shared {
    fn find(&self, _domain: &str, _domid: Option<u32>) -> Result<Option<ProcessId>> {
        let world = self.0.borrow();
        let begun = world.reboot.as_ref().filter(|it| it.into.is_some());
        let begun = begun.map(|reboot| reboot.process);
        Ok(world.the_domain().map(|domain| domain.monitor).or(begun))
    }

    fn hold(&self, process: ProcessId) -> Result<()> {
        self.call(|world| {
            world.monitor(process, true);
            Ok(())
        })
    }

    fn release(&self, process: ProcessId) -> Result<()> {
        self.call(|world| {
            world.monitor(process, false);
            Ok(())
        })
    }
}

impl Images for Shared {
    fn facts(&self, path: &Path, _format: ImageFormat) -> Result<Option<ImageFacts>> {
        self.call(|world| Ok(world.images.get(path).map(Image::facts)))
    }

    fn create_snapshot(&self, disk: &DiskTarget, tag: &str) -> Result<()> {
        self.call(|world| {
            let image = world.closed_image(&disk.image)?;
            image
                .snapshots
                .insert(tag.to_owned(), (image.content.clone(), 1));
            Ok(())
        })
    }

    fn apply_snapshot(&self, disk: &DiskTarget, tag: &str) -> Result<()> {
        self.call(|world| {
            let now = world.now;
            let image = world.closed_image(&disk.image)?;
            let (content, _) = image
                .snapshots
                .get(tag)
                .ok_or_else(|| impossible("no such snapshot"))?;
            image.content = content.clone();
            image.touch(now);
            Ok(())
        })
    }

    fn require_absent(&self, image: &Path) -> Result<()> {
        self.call(|world| match world.images.get(image) {
            None => Ok(()),
            Some(_) => Err(impossible("there is such an image")),
        })
    }

    fn require_closed(&self, image: &Path) -> Result<()> {
        self.call(|world| world.closed_image(image).map(drop))
    }

    fn create_layer(&self, layer: &Layer) -> Result<()> {
        self.call(|world| {
            let image = Image {
                backing: layer
                    .backing
                    .as_ref()
                    .map(|below| below.image.to_path_buf()),
                ..Image::default()
            };
            let old = world.images.insert(layer.image.to_path_buf(), image);
            assert!(old.is_none(), "{layer} overwrites an image");
            Ok(())
        })
    }

    fn extract(&self, from: &DiskTarget, tag: &str, layer: &Layer) -> Result<()> {
        self.call(|world| {
            let (content, _) = world.images[&*from.image].snapshots[tag].clone();
            let below = layer.backing.as_ref();
            let image = Image {
                content,
                backing: below.map(|below| below.image.to_path_buf()),
                ..Image::default()
            };
            world.images.insert(layer.image.to_path_buf(), image);
            Ok(())
        })
    }

    fn commit_layer(&self, layer: &Layer) -> Result<()> {
        self.call(|world| {
            world.closed_image(&layer.image)?;
            world.closed_image(&layer.backing.as_ref().unwrap().image)?;
            world.merge(layer)
        })
    }

    fn rebase_layer(&self, layer: &Layer, onto: Option<&Backing>, copy: bool) -> Result<()> {
        self.call(|world| {
            let onto_image = onto.map(|onto| onto.image.to_path_buf());
            if world.image(&layer.image)?.backing == onto_image {
                return Ok(());
            }
            world.closed_image(&layer.image)?;
            world.rebase(&layer.image, onto, copy)
        })
    }

    fn retire_layer(&self, layer: &Layer) -> Result<()> {
        self.call(|world| {
            let image = world.closed_image(&layer.image)?;
            *image = Image {
                retired: true,
                ..Image::default()
            };
            Ok(())
        })
    }

    fn remove_layer(&self, layer: &Layer) -> Result<()> {
        self.call(|world| {
            if world.images.contains_key(&*layer.image) {
                world.closed_image(&layer.image)?;
                world.images.remove(&*layer.image);
            }
            Ok(())
        })
    }

    fn content(&self, chain: &[Backing], tag: Option<&str>) -> Result<Box<dyn DiskContent>> {
        self.call(|world| {
            let image = &chain[0].image;
            let text = match tag {
                Some(tag) => world.image(image)?.snapshots[tag].0.clone(),
                None => world.content(image),
            };
            Ok(Box::new(Text(text.into_bytes())) as Box<dyn DiskContent>)
        })
    }

    fn last_write(&self, image: &Path) -> Option<SystemTime> {
        let world = self.0.borrow();
        let written = world.images.get(image)?.written;
        Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(written).unwrap()))
    }

    fn make_durable(&self, _image: &Path) -> Result<()> {
        self.call(|_| Ok(()))
    }

    fn release_leaks(&self, disk: &DiskTarget) -> Result<()> {
        self.call(|world| world.closed_image(&disk.image).map(drop))
    }

    fn delete_snapshot(&self, disk: &DiskTarget, tag: &str) -> Result<()> {
        self.call(|world| {
            let now = world.now;
            let image = world.closed_image(&disk.image)?;
            if image.snapshots.remove(tag).is_some() {
                image.touch(now);
            }
            Ok(())
        })
    }
}

/// What a guest would read.
struct Text(Vec<u8>);

impl DiskContent for Text {
    fn length(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let offset = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.0[offset..offset + buffer.len()]);
        Ok(())
    }
}

impl Restorer for Shared {
    fn restore_paused(&self, kept: &Kept, keeper: Keeper, switches: &[Switch]) -> Result<()> {
        let config = kept.configuration()?;
        let memory = memory_in(kept)?;
        self.call(|world| {
            assert!(world.domains.is_empty(), "restored beside another domain");
            world.restored_for.push(keeper);
            world.connects_in = 2;
            let config: serde_json::Value =
                serde_json::from_str(&redirect(&config, switches)?).unwrap();
            let disks = config["disks"].as_array().unwrap();
            let paths = disks.iter().map(|disk| disk["pdev_path"].as_str().unwrap());
            let images: Vec<_> = paths.map(PathBuf::from).collect();
            world.insert(Domain {
                uuid: serde_json::from_value(config["c_info"]["uuid"].clone()).unwrap(),
                suspended: false,
                gutted: false,
                name: Some(NAME.into()),
                monitor: ProcessId { pid: 0, started: 0 },
                monitor_held: false,
                pauses: 1,
                has_run: false,
                memory,
                told: images.clone(),
                images,
                openings: 1,
                in_step: BTreeSet::new(),
            });
            Ok(())
        })
    }
}

impl NoticeBoard for Shared {
    fn post(&self, _domid: u32, _node: &str, _value: &str) -> Result<()> {
        self.call(|_| Ok(()))
    }

    fn withdraw(&self, _domid: u32, _node: &str) -> Result<()> {
        self.call(|_| Ok(()))
    }
}
