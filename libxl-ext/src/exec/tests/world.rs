//! A host made of data: domains, images and a store in a temporary directory. Any call to a port can be
//! made to fail, or to be the last one of the process, before or after it took effect.

use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::model::disk::{DiskTarget, ImageFacts, ImageFormat, InternalSnapshot, Stamp};
use crate::model::domain::{DomainLife, DomainState, GuestType, Keeper};
use crate::model::process::ProcessId;
use crate::port::{
    BlockLayer, BlockNode, Configuration, DomainView, Hypervisor, Images, Monitors, NoticeBoard,
    Ports, Restorer, Toolstack,
};
use crate::snapshot::Host;
use crate::store::Store;
use serde_json::json;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use uuid::Uuid;

pub(super) const NAME: &str = "g1";
pub(super) const IMAGES: [&str; 2] = ["/images/a.qcow2", "/images/b.qcow2"];
/// The disk of another domain of the name.
pub(super) const OTHER: &str = "/images/other.qcow2";

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
    pub(super) memory: String,
    /// The disks that it has.
    pub(super) images: Vec<PathBuf>,
    /// How often its QEMU has each of them open.
    pub(super) openings: usize,
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
    pub(super) content: String,
    pub(super) snapshots: BTreeMap<String, (String, i64)>,
}

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) domains: BTreeMap<u32, Domain>,
    pub(super) images: BTreeMap<PathBuf, Image>,
    /// Who was to keep the domains that were restored, in their order.
    pub(super) restored_for: Vec<Keeper>,
    /// How much memory domains have.
    pub(super) memory_bytes: u64,
    next_domid: u32,
    clock: i64,
    calls: usize,
    fault: Option<(usize, Fault)>,
}

impl World {
    /// The call of the given number, counted from now, goes wrong.
    pub(super) fn inject(&mut self, at: usize, fault: Fault) {
        self.calls = 0;
        self.fault = Some((at, fault));
    }

    /// Nothing goes wrong any more. Returns whether something had.
    pub(super) fn heal(&mut self) -> bool {
        self.fault.take().is_none_or(|(at, _)| self.calls > at)
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
            memory: "memory 0".into(),
            images: IMAGES.map(PathBuf::from).into(),
            openings: 1,
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
            ..World::default()
        })))
    }

    pub(super) fn host(&self, root: &Path) -> Host {
        let ports = Ports {
            hypervisor: Box::new(self.clone()),
            toolstack: Box::new(self.clone()),
            block: Box::new(self.clone()),
            images: Box::new(self.clone()),
            monitors: Box::new(self.clone()),
            restorer: Box::new(self.clone()),
            board: Box::new(self.clone()),
        };
        Host::new(ports, Store::new(root))
    }

    /// The guest goes on: memory and disks change.
    pub(super) fn live_on(&self, to: &str) {
        let world = &mut *self.0.borrow_mut();
        for domain in world.domains.values_mut() {
            domain.memory = format!("memory {to}");
            for path in &domain.images {
                world.images.get_mut(path).unwrap().content = format!("disk {to}");
            }
        }
    }

    /// Somebody ended the domain, and started another one of the name with a disk of its own.
    pub(super) fn replace_domain(&self) {
        let mut world = self.0.borrow_mut();
        let (_, mut domain) = world.domains.pop_first().unwrap();
        domain.uuid = Uuid::from_u128(8);
        domain.memory = "memory other".into();
        domain.images = vec![OTHER.into()];
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
        }
    }

    fn call<T>(&self, act: impl FnOnce(&mut World) -> Result<T>) -> Result<T> {
        let mut world = self.0.borrow_mut();
        let at = world.calls;
        world.calls += 1;
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

fn impossible(what: &str) -> Error {
    Error::new(ErrorKind::Toolstack, what)
}

impl World {
    fn domain(&mut self, domid: u32) -> Result<&mut Domain> {
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

    fn image(&mut self, path: &Path) -> Result<&mut Image> {
        self.images
            .get_mut(path)
            .ok_or_else(|| impossible("no such image"))
    }

    /// What the real port makes sure of before it writes.
    fn closed_image(&mut self, path: &Path) -> Result<&mut Image> {
        let mut open = self.domains.values().filter(|domain| !domain.gutted);
        if open.any(|domain| domain.images.iter().any(|image| image == path)) {
            Err(impossible("the image is in use"))
        } else {
            self.image(path)
        }
    }

    fn monitor(&mut self, process: ProcessId, held: bool) {
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

    fn view(&self, domid: u32) -> Option<DomainView> {
        self.domains.get(&domid).map(|domain| DomainView {
            life: DomainLife {
                domid,
                uuid: domain.uuid,
            },
            state: domain.state(),
            paused: domain.pauses > 0,
            memory_bytes: self.memory_bytes,
        })
    }
}

impl Image {
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
            snapshots: snapshots.collect(),
        }
    }
}

impl Hypervisor for Shared {
    fn look(&self, domid: u32) -> Result<Option<DomainView>> {
        self.call(|world| Ok(world.view(domid)))
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

    fn configuration(&self, domid: u32) -> Result<Configuration> {
        self.call(|world| {
            let domain = world.domain(domid)?;
            let uuid = domain.uuid;
            let disks: Vec<_> = domain
                .images
                .iter()
                .zip(["xvda", "xvdb"])
                .map(|(path, vdev)| {
                    json!({ "pdev_path": path, "vdev": vdev, "backend": "qdisk",
                            "format": "qcow2", "readwrite": 1 })
                })
                .collect();
            let value = json!({ "c_info": { "uuid": uuid }, "disks": disks });
            Ok(Configuration {
                json: value.to_string(),
                value,
                guest_type: GuestType::Pv,
            })
        })
    }

    fn suspend_to(&self, domid: u32, sink: BorrowedFd<'_>, _observer: &dyn Observer) -> Result<()> {
        self.call(|world| {
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
            sink.write_all(domain.memory.as_bytes())
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
            Ok(())
        })
    }
}

impl BlockLayer for Shared {
    fn nodes(&self, life: DomainLife) -> Result<Vec<BlockNode>> {
        self.call(|world| {
            let paths = world.domain(life.domid)?.images.clone();
            if paths.is_empty() {
                return Err(impossible("there is no QEMU"));
            }
            let times = world.domain(life.domid)?.openings;
            let nodes = paths.iter().cycle().take(paths.len() * times).map(|path| {
                Ok(BlockNode {
                    node_name: path.display().to_string(),
                    driver: "qcow2".into(),
                    image: path.as_path().into(),
                    facts: world.open_image(life.domid, path)?.facts(),
                })
            });
            nodes.collect()
        })
    }

    fn snapshot(&self, life: DomainLife, tag: &str, disks: &[DiskTarget]) -> Result<()> {
        self.call(|world| {
            world.clock += 1;
            let clock = world.clock;
            assert_eq!(world.domain(life.domid)?.openings, 1, "open twice");
            for disk in disks {
                let image = world.open_image(life.domid, &disk.image)?;
                image
                    .snapshots
                    .insert(tag.to_owned(), (image.content.clone(), clock));
            }
            Ok(())
        })
    }

    fn delete_snapshot(&self, life: DomainLife, tag: &str, disk: &DiskTarget) -> Result<()> {
        self.call(|world| {
            let domain = world.domain(life.domid)?;
            assert!(
                domain.openings == 1 || domain.state() != DomainState::Running,
                "an image that the guest may write to by two nodes is changed"
            );
            let image = world.open_image(life.domid, &disk.image)?;
            image.snapshots.remove(tag);
            Ok(())
        })
    }
}

impl Monitors for Shared {
    fn find(&self, _domain: &str) -> Result<Option<ProcessId>> {
        Ok(self.0.borrow().the_domain().map(|domain| domain.monitor))
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
            let image = world.closed_image(&disk.image)?;
            let (content, _) = image
                .snapshots
                .get(tag)
                .ok_or_else(|| impossible("no such snapshot"))?;
            image.content = content.clone();
            Ok(())
        })
    }

    fn delete_snapshot(&self, disk: &DiskTarget, tag: &str) -> Result<()> {
        self.call(|world| {
            world.closed_image(&disk.image)?.snapshots.remove(tag);
            Ok(())
        })
    }
}

impl Restorer for Shared {
    fn restore_paused(&self, image: &Path, keeper: Keeper) -> Result<()> {
        let bytes = std::fs::read(image).map_err(|error| Error::io("restore", error))?;
        self.call(|world| {
            assert!(world.domains.is_empty(), "restored beside another domain");
            world.restored_for.push(keeper);
            // Header of 48 bytes, length, configuration, NUL, memory.
            let end = bytes[52..].iter().position(|byte| *byte == 0).unwrap() + 52;
            let config: serde_json::Value = serde_json::from_slice(&bytes[52..end]).unwrap();
            let disks = config["disks"].as_array().unwrap();
            let paths = disks.iter().map(|disk| disk["pdev_path"].as_str().unwrap());
            world.insert(Domain {
                uuid: serde_json::from_value(config["c_info"]["uuid"].clone()).unwrap(),
                suspended: false,
                gutted: false,
                name: Some(NAME.into()),
                monitor: ProcessId { pid: 0, started: 0 },
                monitor_held: false,
                pauses: 1,
                memory: String::from_utf8(bytes[end + 1..].to_vec()).unwrap(),
                images: paths.map(PathBuf::from).collect(),
                openings: 1,
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
