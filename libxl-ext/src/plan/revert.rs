//! Planning the way back: disks and memory as they were, or everything as it is now.
//!
//! The present state is saved first, memory and disks, and dropped only when the restored domain is
//! there. Until then every failure leads back to it.

use super::create::{guest_state, require_room};
use super::{Cost, Fresh, Operation, Plan, Step, StoreChange};
use crate::error::{Error, ErrorKind, Result};
use crate::memory;
use crate::model::disk::DiskTarget;
use crate::model::domain::{DomainState, GuestState};
use crate::model::name::SnapshotId;
use crate::model::record::{RecordState, SnapshotRecord};
use crate::observe::{Inventory, LiveDomain};

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct RevertRequest {
    /// Name of the snapshot.
    pub name: String,
    /// How the guest shall be afterwards; as it was in the snapshot if not said.
    pub state: Option<GuestState>,
}

/// Plans a revert of a domain, whether it runs or not.
///
/// # Errors
/// A refusal that names what stands in the way: [`ErrorKind::NoSuchSnapshot`], [`ErrorKind::Corrupt`],
/// [`ErrorKind::DomainState`], [`ErrorKind::NoSpace`].
pub fn revert(inventory: &Inventory, request: &RevertRequest, fresh: &Fresh) -> Result<Plan> {
    let record = inventory.record.find(&request.name)?;
    require_restorable(inventory, record)?;
    let mut plan = Plan::new(inventory, Operation::SnapshotRevert, fresh, record.name());
    let (id, safety) = (record.id, fresh.snapshot);
    let disks: Vec<DiskTarget> = record
        .disks
        .iter()
        .map(|proof| proof.target.clone())
        .collect();
    plan.cost.memory_read = record.memory.as_ref().map_or(0, |memory| memory.bytes);
    plan.steps.push(Step::Prove {
        id,
        disks: disks.clone(),
    });

    let (attached, detached): (Vec<_>, Vec<_>) = disks.iter().cloned().partition(|disk| {
        inventory
            .live
            .as_ref()
            .is_some_and(|live| is_attached(live, disk))
    });
    if let Some(live) = &inventory.live {
        refuse_another_domain(live, record, &attached)?;
    }
    let saved_memory = match &inventory.live {
        Some(live) => set_present_aside(inventory, live, safety, attached, &mut plan)?,
        None => false,
    };
    if !detached.is_empty() {
        plan.steps.push(Step::SnapshotImages {
            id: safety,
            disks: detached,
        });
    }
    if let Some(live) = &inventory.live {
        let fallback = saved_memory
            .then(|| guest_state(&inventory.domain, live).map(|guest| (safety, guest)))
            .transpose()?;
        plan.steps.push(Step::Destroy {
            life: live.life,
            fallback,
            disks: disks.clone(),
        });
        if saved_memory {
            plan.steps
                .extend(live.monitor.map(|process| Step::ReleaseMonitor { process }));
        }
        note_other_disks(live, &disks, &mut plan.notes);
    }
    if !disks.is_empty() {
        plan.steps.push(Step::ApplyImages {
            id,
            instead_of: safety,
            disks: disks.clone(),
        });
    }
    let uuid = record.domain_uuid;
    plan.steps.extend([
        Step::Restore { id, uuid },
        Step::Commit {
            change: StoreChange::SetCurrent { id },
        },
        Step::Start {
            uuid,
            guest: request.state.unwrap_or(record.guest),
        },
    ]);
    if !disks.is_empty() {
        plan.steps.push(Step::DeleteTags { id: safety, disks });
    }
    if saved_memory {
        plan.steps.push(Step::RemoveDirectory { id: safety });
    }
    plan.steps.push(Step::Announce);
    Ok(plan)
}

/// Plans to save what the domain is now. Returns whether that includes its memory.
fn set_present_aside(
    inventory: &Inventory,
    live: &LiveDomain,
    safety: SnapshotId,
    attached: Vec<DiskTarget>,
    plan: &mut Plan,
) -> Result<bool> {
    let life = live.life;
    if matches!(live.state, DomainState::Crashed | DomainState::Shutdown) {
        plan.notes.push(format!(
            "the domain is {}: there is no running state to keep",
            live.state
        ));
        if !attached.is_empty() {
            plan.steps.push(Step::SnapshotDisks {
                life,
                id: safety,
                disks: attached,
            });
        }
        return Ok(false);
    }
    let guest = guest_state(&inventory.domain, live)?;
    let estimate = memory::estimate(live.memory_bytes);
    require_room(inventory, estimate)?;
    plan.cost = Cost {
        memory_written: estimate,
        room_needed: estimate,
        ..plan.cost
    };
    plan.notes.push(
        "the present state is saved first and dropped when the restored domain is there".into(),
    );
    plan.steps.push(Step::CreateDirectory { id: safety });
    plan.steps
        .extend(live.monitor.map(|process| Step::HoldMonitor { process }));
    if guest == GuestState::Paused {
        plan.steps.push(Step::Wake { life });
    }
    plan.steps.push(Step::SaveMemory {
        life,
        id: safety,
        guest,
        estimate,
    });
    if !attached.is_empty() {
        plan.steps.push(Step::SnapshotDisks {
            life,
            id: safety,
            disks: attached,
        });
    }
    plan.steps.push(Step::Seal { id: safety });
    Ok(true)
}

/// A domain of the name that is none of the snapshot's: it was reinstalled, or replaced.
fn refuse_another_domain(
    live: &LiveDomain,
    record: &SnapshotRecord,
    attached: &[DiskTarget],
) -> Result<()> {
    if live.life.uuid == record.domain_uuid || !attached.is_empty() || record.disks.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::DomainState,
        format!(
            "the running domain (domid {}) has another UUID than snapshot '{}' and none of its disks",
            live.life.domid,
            record.name()
        ),
    )
    .hint("if it really is to be replaced, destroy it first"))
}

fn is_attached(live: &LiveDomain, target: &DiskTarget) -> bool {
    live.disks.iter().any(|disk| {
        disk.is_writable()
            && disk.pdev_path.as_deref().map(std::path::Path::new) == Some(&target.image)
    })
}

fn note_other_disks(live: &LiveDomain, disks: &[DiskTarget], notes: &mut Vec<String>) {
    for disk in live.disks.iter().filter(|disk| disk.is_writable()) {
        let path = disk.pdev_path.as_deref().unwrap_or_default();
        if disks
            .iter()
            .all(|target| &*target.image != std::path::Path::new(path))
        {
            notes.push(format!(
                "{} ({path}) was attached since: it is left as it is, and no longer attached",
                disk.vdev()
            ));
        }
    }
}

/// What can be told without reading the memory image: that all parts are there.
fn require_restorable(inventory: &Inventory, record: &SnapshotRecord) -> Result<()> {
    let broken = |what: String| {
        Error::new(
            ErrorKind::Corrupt,
            format!("snapshot '{}' cannot be restored: {what}", record.name()),
        )
    };
    if record.state == RecordState::Deleting {
        return Err(
            broken("its deletion has begun".into()).hint("`snapshot-delete` finishes the deletion")
        );
    }
    let proof = record
        .memory
        .as_ref()
        .ok_or_else(|| broken("it has no memory image".into()))?;
    match inventory.memory.get(&record.id) {
        None => return Err(broken("its memory image is missing".into())),
        Some(bytes) if *bytes != proof.bytes => {
            return Err(broken(format!(
                "its memory image has {bytes} bytes instead of {}",
                proof.bytes
            )));
        }
        Some(_) => {}
    }
    let tag = record.id.tag();
    for proof in &record.disks {
        let (vdev, image) = (&proof.target.vdev, proof.target.image.display());
        let facts = inventory
            .images
            .get(&*proof.target.image)
            .and_then(Option::as_ref)
            .ok_or_else(|| match inventory.unreadable.get(&*proof.target.image) {
                Some(why) => broken(format!("the image of {vdev} cannot be read: {why}")),
                None => broken(format!("the image {image} of {vdev} is missing")),
            })?;
        let held = facts
            .snapshot(&tag)
            .ok_or_else(|| broken(format!("the image {image} of {vdev} no longer holds {tag}")))?;
        if proof.stamp.is_some_and(|stamp| stamp != held.stamp) {
            return Err(broken(format!(
                "{tag} in {image} of {vdev} was made at another time"
            )));
        }
    }
    Ok(())
}
