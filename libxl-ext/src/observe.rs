//! Asks the ports once and returns plain data, from which everything is then decided.

mod off;
mod packs;

pub use off::OffDomain;
pub(crate) use off::configuration_of;
pub(crate) use off::{active_layer_of, is_named_by};
pub use packs::{MemoryRoom, PackUse, Packs};

use crate::error::{Error, ErrorKind, Result};
use crate::model::below::{DEPTH_MAX, below};
use crate::model::configuration::disks_of;
use crate::model::disk::{DeviceDisk, ImageFacts, ImageFormat};
use crate::model::domain::{DomainLife, DomainState, GuestType};
use crate::model::layer::Backing;
use crate::model::name::SnapshotId;
use crate::model::process::ProcessId;
use crate::model::record::DomainRecord;
use crate::port::{DomainView, Ports};
use crate::store::{DomainStore, Store, free_bytes};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// All that a plan is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// Name of the domain.
    pub domain: String,
    /// The running domain, if there is one.
    pub live: Option<LiveDomain>,
    /// The domain as it would be started, if it is not running and that is known.
    pub off: Option<OffDomain>,
    /// Why that is not known though something should tell.
    pub off_unknown: Option<String>,
    /// What the store keeps.
    pub record: DomainRecord,
    /// Every image that the running domain or a snapshot names; `None` where the file is missing.
    pub images: BTreeMap<PathBuf, Option<ImageFacts>>,
    /// Why an image that is there could not be read; it counts as missing in `images`.
    pub unreadable: BTreeMap<PathBuf, String>,
    /// Length in bytes of each memory image, of snapshots and of the saved state; none where the file is missing.
    pub memory: BTreeMap<SnapshotId, u64>,
    /// Where the pages of packed images are.
    pub packs: Packs,
    /// Images that other domains' snapshots need, with the domain.
    pub claimed: BTreeMap<PathBuf, String>,
    /// What this host is to the domain's replication, in words, as long as that is not stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicated: Option<String>,
    /// Domains that have the UUID of a snapshot's domain, or of one that was saved, and are not the one of the name, by
    /// that UUID.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub elsewhere: BTreeMap<Uuid, u32>,
    /// Bytes that can be written where memory images go.
    pub free_bytes: u64,
}

/// A domain that exists now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveDomain {
    /// Which life.
    pub life: DomainLife,
    /// What it is doing.
    pub state: DomainState,
    /// The guest's type.
    pub guest_type: GuestType,
    /// Its memory, in bytes.
    pub memory_bytes: u64,
    /// Whether the hypervisor can tell which pages the guest writes to.
    pub dirty_pages_known: bool,
    /// xl's process that acts on its reboot, poweroff and crash; none if it was started without.
    pub monitor: Option<ProcessId>,
    /// Its disks, in the order of its configuration.
    pub disks: Vec<DeviceDisk>,
}

impl LiveDomain {
    /// Whether it has a QEMU, for its disks or as its device model.
    pub fn has_qemu(&self) -> bool {
        let is_qdisk = |disk: &DeviceDisk| disk.backend.as_deref() == Some("qdisk");
        self.guest_type == GuestType::Hvm || self.disks.iter().any(is_qdisk)
    }
}

/// A domain that a user named.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// Its part of the store.
    pub store: DomainStore,
    /// What the hypervisor says, if it exists now.
    pub view: Option<DomainView>,
}

/// What a user may name a domain by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// As xl does it: digits are a domid, also where a domain is so named.
    DomidOrName,
    /// By its name, which may be digits.
    Name,
}

/// Finds the domain that `spec` means. A name may also be that of a domain that is not running, if
/// snapshots of it are kept.
///
/// # Errors
/// [`ErrorKind::NoSuchDomain`]; [`ErrorKind::DomainState`] for domain 0.
pub fn resolve(ports: &Ports, store: &Store, spec: &str, naming: Naming) -> Result<Target> {
    let unknown = || {
        Error::new(
            ErrorKind::NoSuchDomain,
            format!("there is no domain '{spec}'"),
        )
        .hint("`xl list` shows the domains that are running")
    };
    let number = spec
        .parse::<u32>()
        .ok()
        .filter(|_| naming == Naming::DomidOrName);
    let domid = match number {
        Some(domid) => Some(domid),
        None => ports.toolstack.domid_of(spec)?,
    };
    if domid == Some(0) {
        return Err(Error::new(
            ErrorKind::DomainState,
            "domain 0 is the host itself: it cannot be snapshotted",
        ));
    }
    let view = match domid {
        Some(domid) => ports.hypervisor.look(domid)?,
        None => None,
    };
    let name = match view {
        // A dying domain may have lost its name.
        Some(view) => ports
            .toolstack
            .name_of(view.life.domid)?
            .unwrap_or_else(|| spec.to_owned()),
        None => spec.to_owned(),
    };
    let target = Target {
        store: store.domain(&name),
        name,
        view,
    };
    if target.view.is_none() && !target.store.exists() {
        return Err(unknown());
    }
    Ok(target)
}

impl Target {
    /// The domain of the same name as it is now.
    ///
    /// # Errors
    /// If the host cannot be asked.
    pub fn look_again(self, ports: &Ports) -> Result<Self> {
        let view = match (ports.toolstack.domid_of(&self.name)?, self.view) {
            (Some(domid), _) => ports.hypervisor.look(domid)?,
            // A domain that is dying has lost its name.
            (None, Some(before)) => ports
                .hypervisor
                .look(before.life.domid)?
                .filter(|now| now.life == before.life),
            (None, None) => None,
        };
        Ok(Self { view, ..self })
    }
}

/// What is looked at for one request, beside what belongs to the domain in any case.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// What the domain is made of where it is off, in libxl's JSON, as the user says.
    pub configuration: Option<&'a Value>,
    /// Where the memory is to be written, if not to the store.
    pub memory_file: Option<&'a Path>,
    /// Whether all images count that the disks of a domain that is off stand on, and not only those of records.
    pub chains: bool,
}

/// The domain of a name of which nothing may be known yet.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] for a name that no domain has; what the ports report.
pub fn named(ports: &Ports, store: &Store, name: &str) -> Result<Target> {
    if name.is_empty() || name.contains('\0') {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "a domain has a name of at least one character",
        ));
    }
    let target = Target {
        store: store.domain(name),
        name: name.to_owned(),
        view: None,
    };
    target.look_again(ports)
}

/// A domain that was renamed, or another one that was made with the same UUID.
fn elsewhere(
    ports: &Ports,
    live: Option<&LiveDomain>,
    record: &DomainRecord,
) -> Result<BTreeMap<Uuid, u32>> {
    let snapshots = record.snapshots.iter();
    let managed = record.managed.iter().map(|managed| managed.domain_uuid);
    let uuids: BTreeSet<Uuid> = snapshots
        .map(|snapshot| snapshot.domain_uuid)
        .chain(managed)
        .collect();
    let mut found = BTreeMap::new();
    for uuid in uuids {
        let view = ports.hypervisor.find(uuid)?;
        let another = view.filter(|view| live.is_none_or(|live| live.life != view.life));
        found.extend(another.map(|view| (uuid, view.life.domid)));
    }
    Ok(found)
}

/// What the records of the other domains name.
pub(crate) fn claimed(own: &DomainStore) -> BTreeMap<PathBuf, String> {
    let others = own.others();
    let images = others.iter().flat_map(|record| {
        record
            .images()
            .map(|image| (image.to_path_buf(), record.domain.clone()))
    });
    images.collect()
}

/// Looks at everything that belongs to a domain.
///
/// # Errors
/// What the ports and the store report; [`ErrorKind::DomainState`] for a dying domain.
pub fn observe(ports: &Ports, target: &Target) -> Result<Inventory> {
    observe_for(ports, target, Asked::default())
}

/// As [`observe`], with an eye on a request.
///
/// # Errors
/// As [`observe`]; [`ErrorKind::InvalidRequest`] if the configuration that the user says cannot be read.
pub fn observe_for(ports: &Ports, target: &Target, asked: Asked<'_>) -> Result<Inventory> {
    observe_with(ports, target, asked, target.store.load()?)
}

/// The same, with a record that is not, or not yet, the store's.
///
/// # Errors
/// As [`observe_for`].
pub(crate) fn observe_with(
    ports: &Ports,
    target: &Target,
    asked: Asked<'_>,
    record: DomainRecord,
) -> Result<Inventory> {
    let live = target
        .view
        .map(|view| observe_live(ports, &target.name, view))
        .transpose()?;
    let mut images = BTreeMap::new();
    let mut unreadable = BTreeMap::new();
    // The domain's QEMU knows best what is in the images that it has open.
    if let Some(live) = live.as_ref().filter(|live| live.has_qemu()) {
        for node in ports.block.nodes(live.life)? {
            if ImageFormat::of(&node.driver).is_some() {
                images.insert(node.image.into_path_buf(), Some(node.facts));
            }
        }
    }
    let of_snapshots = record.snapshots.iter().flat_map(|snapshot| &snapshot.disks);
    let of_managed = record.managed.iter().flat_map(|managed| &managed.disks);
    let proofs = of_snapshots.chain(of_managed);
    let of_proofs = proofs.map(|proof| Backing::from(&proof.target));
    let of_layers = record.layers.iter().flat_map(|layer| {
        let own = Backing::from(&layer.target());
        layer.backing.clone().into_iter().chain([own])
    });
    let (mut off, mut off_unknown) = (None, None);
    if live.is_none() {
        match OffDomain::find(&target.store, &record, asked.configuration) {
            Ok(found) => off = found,
            Err(error) if asked.configuration.is_some() => return Err(error),
            Err(error) => off_unknown = Some(error.report()),
        }
    }
    let of_off = off
        .iter()
        .flat_map(|off| &off.disks)
        .filter(|disk| disk.is_writable())
        .filter_map(|disk| {
            Some(Backing {
                image: Path::new(disk.pdev_path.as_deref()?).into(),
                format: ImageFormat::of(disk.format.as_deref()?)?,
            })
        })
        .filter(|disk| disk.image.is_absolute());
    let of_off: Vec<_> = of_off.collect();
    let qcow2_disks = of_off.iter().filter(|it| it.format == ImageFormat::Qcow2);
    let qcow2_disks: Vec<_> = qcow2_disks.cloned().collect();
    for known in of_proofs.chain(of_layers).chain(of_off) {
        look(ports, &known, &mut images, &mut unreadable);
    }
    if asked.chains && live.is_none() {
        let pulled = record.pulls.iter().map(|pull| Backing::from(&pull.disk));
        for disk in qcow2_disks.into_iter().chain(pulled) {
            follow(ports, disk, &mut images, &mut unreadable);
        }
    }
    if let Some(off) = &mut off {
        off.settle_backends(|image| images.get(image)?.clone())?;
    }
    let store = &target.store;
    Ok(Inventory {
        memory: memory_images(store, &record),
        packs: Packs::look(store)?,
        domain: target.name.clone(),
        elsewhere: elsewhere(ports, live.as_ref(), &record)?,
        live,
        off,
        off_unknown,
        record,
        images,
        unreadable,
        claimed: claimed(&target.store),
        replicated: target
            .store
            .replication()?
            .and_then(|replication| replication.claim()),
        free_bytes: match asked.memory_file {
            Some(file) => free_bytes(file)?,
            None => target.store.free_bytes()?,
        },
    })
}

/// Looks at an image, unless it was seen before; an image that cannot be read counts as missing.
fn look<'seen>(
    ports: &Ports,
    known: &Backing,
    images: &'seen mut BTreeMap<PathBuf, Option<ImageFacts>>,
    unreadable: &mut BTreeMap<PathBuf, String>,
) -> Option<&'seen ImageFacts> {
    let facts = match images.entry(known.image.to_path_buf()) {
        Entry::Occupied(seen) => seen.into_mut(),
        Entry::Vacant(unseen) => {
            let facts = ports.images.facts(unseen.key(), known.format);
            let facts = facts.unwrap_or_else(|error| {
                unreadable.insert(unseen.key().clone(), error.report());
                None
            });
            unseen.insert(facts)
        }
    };
    facts.as_ref()
}

/// Looks at an image and those that it says that it stands on.
fn follow(
    ports: &Ports,
    disk: Backing,
    images: &mut BTreeMap<PathBuf, Option<ImageFacts>>,
    unreadable: &mut BTreeMap<PathBuf, String>,
) {
    let mut next = Some(disk);
    for _ in 0..DEPTH_MAX {
        let Some(at) = next else {
            return;
        };
        let is_qcow2 = at.format == ImageFormat::Qcow2;
        // What is no image file is told of when it is planned.
        next = look(ports, &at, images, unreadable)
            .filter(|_| is_qcow2)
            .and_then(|facts| below(&at.image, facts).ok()?);
    }
}

/// Length in bytes of each memory image that is there.
fn memory_images(store: &DomainStore, record: &DomainRecord) -> BTreeMap<SnapshotId, u64> {
    let of_snapshots = record
        .snapshots
        .iter()
        .map(|it| (it.id, store.memory_of(it)));
    let of_managed = record
        .managed
        .iter()
        .map(|it| (it.id, store.memory_path(it.id)));
    of_snapshots
        .chain(of_managed)
        .filter_map(|(id, path)| {
            let file = std::fs::symlink_metadata(path).ok()?;
            file.is_file().then_some((id, file.len()))
        })
        .collect()
}

/// The room that each memory image of a domain takes.
///
/// # Errors
/// [`ErrorKind::Io`] if the store cannot be listed.
pub(crate) fn memory_rooms(
    store: &DomainStore,
    record: &DomainRecord,
) -> Result<BTreeMap<SnapshotId, MemoryRoom>> {
    Ok(Packs::look(store)?.rooms(record, &memory_images(store, record)))
}

/// What the record alone says of a domain, whatever is the matter with its images, its QEMU or the domain itself.
pub(crate) fn of_record(target: &Target, record: DomainRecord) -> Inventory {
    Inventory {
        domain: target.name.clone(),
        live: None,
        elsewhere: BTreeMap::new(),
        off: None,
        off_unknown: None,
        record,
        images: BTreeMap::new(),
        unreadable: BTreeMap::new(),
        memory: BTreeMap::new(),
        packs: Packs::default(),
        claimed: BTreeMap::new(),
        replicated: None,
        free_bytes: 0,
    }
}

fn observe_live(ports: &Ports, name: &str, view: DomainView) -> Result<LiveDomain> {
    if view.state == DomainState::Dying {
        return Err(Error::new(
            ErrorKind::DomainState,
            format!("domain '{name}' (domid {}) is dying", view.life.domid),
        )
        .hint("wait until `xl list` no longer shows it"));
    }
    let configuration = ports.toolstack.configuration(view.life.domid)?;
    let disks = disks_of(&configuration.value).map_err(|error| {
        Error::new(
            ErrorKind::Toolstack,
            format!("read the disks of domain '{name}'"),
        )
        .because(error)
    })?;
    // The others use the processor's own paging, which tells.
    let dirty_pages_known =
        configuration.guest_type != GuestType::Pv || ports.toolstack.has_shadow_paging()?;
    Ok(LiveDomain {
        dirty_pages_known,
        life: view.life,
        state: view.state,
        guest_type: configuration.guest_type,
        memory_bytes: view.memory_bytes,
        monitor: ports.monitors.find(name, Some(view.life.domid))?,
        disks,
    })
}
