//! A host made of data: domains, images and a store in a temporary directory. Any call to a port can be
//! made to fail, or to be the last one of the process, before or after it took effect.

mod block;
mod board;
mod hypervisor;
mod images;
mod memory;
mod monitors;
mod restorer;
mod toolstack;

pub(super) use memory::memory_in;

use crate::error::{Error, ErrorKind, Result};
use crate::exec::tests::jobs::FakeJob;
use crate::model::domain::{DomainState, Keeper};
use crate::model::process::ProcessId;
use crate::port::Ports;
use crate::snapshot::Host;
use crate::store::Store;
use monitors::Reboot;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

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

impl Image {
    pub(super) fn touch(&mut self, now: i64) {
        self.written = now.max(self.written + 1);
    }
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
    /// Up to which byte the images that are pulled into have what was below them.
    pub(super) pulled: BTreeMap<PathBuf, u64>,
    /// What a storage daemon has open.
    pub(super) served: Vec<PathBuf>,
    /// What stops the jobs half-way.
    pub(super) jobs_fail: Option<&'static str>,
    /// What jobs copy never gets to the disk, and nobody says so.
    pub(super) flushes_fail: bool,
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

    pub(super) fn image(&mut self, path: &Path) -> Result<&mut Image> {
        self.images
            .get_mut(path)
            .ok_or_else(|| impossible("no such image"))
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

pub(super) fn impossible(what: &str) -> Error {
    Error::new(ErrorKind::Toolstack, what)
}
