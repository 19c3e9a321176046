//! Planning the saved state that a domain goes on from when it is started, whoever starts it.
//!
//! Its life is one: the domain is destroyed before the image is recorded, and the image is void from the instant in
//! which the journal says that the restored guest is let run. Before that everything leads back to the image, after
//! it to the guest, or, if the host went down in that instant, to neither.

use super::claims::require_unclaimed;
use super::create::{guest_state, let_suspend, require_room};
use super::disks::target;
use super::replicate::require_not_replicated;
use super::{Cost, Fresh, Memory, Operation, Plan, Step, StoreChange};
use crate::error::{Error, ErrorKind, Result};
use crate::memory;
use crate::model::disk::{DeviceDisk, DiskKind, DiskTarget};
use crate::model::domain::GuestState;
use crate::model::record::{DiskProof, ManagedImage, MemoryFormat, MemoryProof};
use crate::observe::Inventory;
use std::ops::Not as _;
use std::path::Path;

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct ManagedSaveRequest {
    /// How the guest goes on one day; as it is now, if not said.
    pub state: Option<GuestState>,
    /// Whether it goes on by itself when the host boots.
    pub at_boot: bool,
    /// In which form its memory is kept.
    pub format: MemoryFormat,
}

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct ManagedStartRequest {
    /// How the guest goes on; as it was to when it was saved, if not said.
    pub state: Option<GuestState>,
}

/// What can be done about a saved state that is of no use any more.
pub(crate) const WAY_OUT: &str = "`xl-ext start --fresh FILE.cfg` drops what was saved and starts the domain afresh; \
                                  `xl-ext managed-save-remove` only drops it";

/// Plans a save of a domain that runs or is paused.
///
/// # Errors
/// [`ErrorKind::DomainState`] if it is off or cannot be saved; [`ErrorKind::NoSpace`].
pub(super) fn save(
    inventory: &Inventory,
    request: ManagedSaveRequest,
    fresh: &Fresh,
) -> Result<Plan> {
    require_unclaimed(inventory)?;
    require_not_replicated(inventory)?;
    let domain = &inventory.domain;
    let live = inventory.live.as_ref().ok_or_else(|| {
        let error = Error::new(
            ErrorKind::DomainState,
            format!("domain '{domain}' is not running"),
        );
        match inventory.record.managed {
            Some(_) => error.hint("it was saved already; `xl-ext start` lets it go on"),
            None => error,
        }
    })?;
    let guest = guest_state(domain, live)?;
    let packed = request.format == MemoryFormat::Packed;
    let estimate = memory::at_most(live.memory_bytes, packed);
    require_room(inventory, estimate)?;
    let mut plan = Plan::new(inventory, Operation::ManagedSave, fresh, "");
    plan.cost = Cost {
        memory_written: estimate,
        room_needed: estimate,
        room_last: packed.then(|| inventory.room_last()).flatten(),
        ..plan.cost
    };
    let (id, life) = (fresh.snapshot, live.life);
    let writable = || live.disks.iter().filter(|disk| disk.is_writable());
    let disks: Vec<DiskTarget> = writable().filter_map(|disk| target(disk).ok()).collect();
    let is_device = |target: &DiskTarget| {
        let facts = inventory.images.get(&*target.image);
        facts
            .and_then(Option::as_ref)
            .is_some_and(|facts| facts.is_device)
    };
    for disk in writable().filter(|disk| target(disk).is_ok_and(|it| !is_device(&it)).not()) {
        plan.notes.push(format!(
            "{} is no image file: nobody will know whether it was written to while the domain is off",
            disk.vdev()
        ));
    }
    let image = ManagedImage {
        id,
        guest: request.state.unwrap_or(guest),
        guest_type: live.guest_type,
        domain_uuid: life.uuid,
        saved_at: fresh.now,
        at_boot: request.at_boot,
        memory: None,
        disks: disks.iter().map(unstamped).collect(),
        seen_running: None,
    };
    plan.steps.push(Step::CreateDirectory { id });
    let_suspend(&mut plan, live, guest);
    plan.steps.extend([
        Step::SaveMemory {
            life,
            id,
            guest,
            estimate,
            live: false,
            file: None,
            packed,
        },
        Step::Seal { id, file: None },
        Step::Destroy {
            life,
            has_qemu: live.has_qemu(),
            memory: Memory::Kept {
                id,
                guest,
                disks: Vec::new(),
                others: writable().filter_map(image_path).collect(),
            },
        },
    ]);
    plan.steps
        .extend(live.monitor.map(|process| Step::ReleaseMonitor { process }));
    plan.steps.extend([
        Step::StampImages { disks },
        Step::Commit {
            change: StoreChange::KeepManaged {
                image: Box::new(image),
            },
        },
    ]);
    if let Some(stale) = &inventory.record.managed {
        plan.notes.push(
            "it was started by other means than `xl-ext start` after it had been saved: that state is dropped".into(),
        );
        plan.steps
            .extend([Step::RemoveDirectory { id: stale.id }, Step::CollectPacks]);
    }
    Ok(plan)
}

/// Plans the way back into life.
///
/// # Errors
/// [`ErrorKind::DomainState`] if the domain runs; [`ErrorKind::NoSuchSnapshot`] if it was not saved;
/// [`ErrorKind::Corrupt`] if the image or a disk is not what it was.
pub(super) fn start(
    inventory: &Inventory,
    request: ManagedStartRequest,
    fresh: &Fresh,
) -> Result<Plan> {
    let image = usable(inventory)?;
    let mut plan = Plan::new(inventory, Operation::ManagedStart, fresh, "");
    let (id, uuid) = (image.id, image.domain_uuid);
    plan.cost.memory_read = image.memory.as_ref().map_or(0, |memory| memory.bytes);
    plan.cost.room_released = inventory.room_released(&[image.id]);
    plan.steps.extend([
        Step::Prove {
            id,
            disks: image.disks.clone(),
        },
        Step::RequireOff,
        Step::Restore {
            id,
            uuid,
            switches: Vec::new(),
        },
        Step::Start {
            uuid,
            guest: request.state.unwrap_or(image.guest),
        },
        Step::Commit {
            change: StoreChange::DropManaged { id },
        },
        Step::RemoveDirectory { id },
        Step::CollectPacks,
    ]);
    // In xenstore the restored domain is a new one.
    let current = inventory.record.current.map(|_| Step::Announce);
    plan.steps.extend(current);
    Ok(plan)
}

/// Plans the end of a saved state, whatever is the matter with it.
///
/// # Errors
/// [`ErrorKind::NoSuchSnapshot`] if there is none.
pub(super) fn remove(inventory: &Inventory, fresh: &Fresh) -> Result<Plan> {
    let image = kept(inventory)?;
    let mut plan = Plan::new(inventory, Operation::ManagedSaveRemove, fresh, "");
    plan.cost.room_released = inventory.room_released(&[image.id]);
    let id = image.id;
    plan.steps.extend([
        Step::Commit {
            change: StoreChange::DropManaged { id },
        },
        Step::RemoveDirectory { id },
        Step::CollectPacks,
    ]);
    Ok(plan)
}

/// What was saved, if the domain can go on from it, as far as that can be told without reading the memory.
///
/// # Errors
/// [`ErrorKind::DomainState`] if the domain runs; [`ErrorKind::NoSuchSnapshot`] if it was not saved;
/// [`ErrorKind::Corrupt`] if the image or a disk is not what it was.
pub(crate) fn usable(inventory: &Inventory) -> Result<&ManagedImage> {
    let image = kept(inventory)?;
    require_unclaimed(inventory)?;
    require_off(inventory)?;
    require_as_saved(inventory, image)?;
    Ok(image)
}

/// Why the domain cannot go on from what was saved, as far as that can be told without reading the memory.
pub(crate) fn stale(inventory: &Inventory) -> Option<Error> {
    let image = inventory.record.managed.as_ref()?;
    let possible = require_off(inventory).and_then(|()| require_as_saved(inventory, image));
    possible.err()
}

/// Refuses what would change the disks that a saved state belongs to.
///
/// # Errors
/// [`ErrorKind::DomainState`] with the ways out.
pub(super) fn require_none_saved(inventory: &Inventory) -> Result<()> {
    if inventory.live.is_some() || inventory.record.managed.is_none() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::DomainState,
        format!(
            "domain '{}' was saved, and its memory belongs to the disks as they are",
            inventory.domain
        ),
    )
    .hint(
        "let it go on by `xl-ext start`, or give up what was saved by `xl-ext managed-save-remove`",
    ))
}

fn kept(inventory: &Inventory) -> Result<&ManagedImage> {
    let domain = &inventory.domain;
    inventory.record.managed.as_ref().ok_or_else(|| {
        let error = Error::new(
            ErrorKind::NoSuchSnapshot,
            format!("domain '{domain}' was not saved"),
        );
        match &inventory.live {
            Some(live) => error.hint(format!("it is {} (domid {})", live.state, live.life.domid)),
            None => error,
        }
    })
}

/// A domain that runs was started by other means: the disks are not those that were saved any more. It may also have
/// been given another name.
fn require_off(inventory: &Inventory) -> Result<()> {
    let Some(live) = &inventory.live else {
        let saved = inventory.record.managed.as_ref();
        let elsewhere = saved.and_then(|image| inventory.elsewhere.get(&image.domain_uuid));
        return match elsewhere {
            None => Ok(()),
            Some(domid) => Err(Error::new(
                ErrorKind::DomainState,
                format!(
                    "domain {domid} has the UUID of '{}', which was saved, and another name",
                    inventory.domain
                ),
            )
            .hint(
                "it was started by other means after it had been saved, and renamed; \
                 `xl-ext managed-save-remove` drops what was saved",
            )),
        };
    };
    Err(Error::new(
        ErrorKind::DomainState,
        format!(
            "domain '{}' is {} already (domid {})",
            inventory.domain, live.state, live.life.domid
        ),
    )
    .hint(
        "it was started by other means after it had been saved; `xl-ext managed-save-remove` drops what was saved",
    ))
}

/// What can be told without reading the memory.
fn require_as_saved(inventory: &Inventory, image: &ManagedImage) -> Result<()> {
    let stale = |what: String| {
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "domain '{}' cannot go on from what was saved: {what}",
                inventory.domain
            ),
        )
        .hint(WAY_OUT)
    };
    if image.seen_running.is_some() {
        return Err(stale("it ran after that, started by other means".into()));
    }
    let expected = image.memory.as_ref().map(MemoryProof::image_bytes);
    match inventory.memory.get(&image.id) {
        None => return Err(stale("the memory image is missing".into())),
        Some(bytes) if expected != Some(*bytes) => {
            return Err(stale(format!("the memory image has {bytes} bytes now")));
        }
        Some(_) => {}
    }
    for DiskProof { target, stamp, .. } in &image.disks {
        let (path, vdev) = (target.image.display(), &target.vdev);
        let seen = |image: &Path| inventory.images.get(image).and_then(Option::as_ref);
        let Some(facts) = seen(&target.image) else {
            let why = inventory.unreadable.get(&*target.image);
            let what = why.map_or_else(
                || "is missing".into(),
                |why| format!("cannot be read: {why}"),
            );
            let error = stale(format!("{path} ({vdev}) {what}"));
            return Err(error.hint(format!(
                "is its file system mounted? If not, mount it; {WAY_OUT}"
            )));
        };
        if stamp.is_some_and(|stamp| stamp != facts.written) {
            return Err(stale(format!("{path} ({vdev}) was written to since")));
        }
        // The disk may be a layer, and the configuration file name what it stands on.
        inventory
            .record
            .require_chain(target, seen)
            .map_err(|error| stale(format!("{vdev} is not what it was")).because(error))?;
    }
    Ok(())
}

fn unstamped(target: &DiskTarget) -> DiskProof {
    DiskProof {
        target: target.clone(),
        kind: DiskKind::External,
        stamp: None,
    }
}

fn image_path(disk: &DeviceDisk) -> Option<Box<Path>> {
    let path = disk.pdev_path.as_deref().map(Path::new)?;
    path.is_absolute().then(|| path.into())
}
