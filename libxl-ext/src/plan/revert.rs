//! Planning the way back: disks and memory as they were, or everything as it is now.
//!
//! The present state is saved first, memory and disks, and dropped only when the restored domain is
//! there. Until then every failure leads back to it. Only where the user gave the present state up, and it
//! cannot be saved, the memory is not; the disks are, once the domain is gone.

use super::claims::require_unclaimed;
use super::create::{guest_state, require_room};
use super::managed_save::require_none_saved;
use super::pull::require_none_pulled;
use super::replicate::require_not_replicated;
use super::ways_back::{WaysBack, same_base};
use super::{Cost, Fresh, Memory, Operation, Plan, Step, StoreChange};
use crate::error::{Error, ErrorKind, Result};
use crate::memory;
use crate::model::disk::{DiskKind, DiskTarget};
use crate::model::domain::{DomainState, GuestState};
use crate::model::last_write::{Accepted, ChainFault};
use crate::model::name::SnapshotId;
use crate::model::record::{DiskProof, DomainRecord, RecordState, SnapshotRecord};
use crate::observe::{Inventory, LiveDomain};
use std::collections::BTreeSet;
use std::path::Path;

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct RevertRequest {
    /// Name of the snapshot.
    pub name: String,
    /// How the guest shall be afterwards; as it was in the snapshot if not said.
    pub state: Option<GuestState>,
    /// Revert even though the present state of the guest is lost by it: where it cannot be saved, and
    /// where the running domain is none of the snapshot's. Images that were written to since are taken as they
    /// are. (V6: `LIBXL_DOMAIN_SNAPSHOT_REVERT_FORCE`.)
    pub force: bool,
}

/// Plans a revert of a domain, whether it runs or not.
///
/// # Errors
/// A refusal that names what stands in the way: [`ErrorKind::NoSuchSnapshot`], [`ErrorKind::Corrupt`],
/// [`ErrorKind::DomainState`], [`ErrorKind::NoSpace`].
pub fn revert(inventory: &Inventory, request: &RevertRequest, fresh: &Fresh) -> Result<Plan> {
    require_unclaimed(inventory)?;
    require_none_saved(inventory)?;
    require_none_pulled(inventory)?;
    require_not_replicated(inventory)?;
    let record = inventory.record.find(&request.name)?;
    let Changed {
        images: changed,
        accepted,
    } = require_restorable(inventory, record, request.force)?;
    if record.is_disk_only() && request.state.is_some() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "snapshot '{}' is of a domain that was off: there is no memory from which it could go on",
                record.name()
            ),
        )
        .hint("revert without --running and --paused, then start it by `xl create`"));
    }
    require_nowhere_else(inventory, record)?;
    let mut plan = Plan::new(inventory, Operation::SnapshotRevert, fresh, record.name());
    let (id, safety) = (record.id, fresh.snapshot);
    let ways = WaysBack::of(inventory, record, safety);
    plan.cost.memory_read = record.memory.as_ref().map_or(0, |memory| memory.bytes);
    plan.cost.disk_copied = ways.copied(inventory);
    plan.steps.push(Step::Prove {
        id,
        disks: without_stamps(&record.disks, &changed),
    });
    for image in changed {
        plan.notes.push(format!(
            "{} was written to since: the disk may not be what the snapshot was taken of",
            image.display()
        ));
    }

    let applied = ways.applied.clone();
    let (attached, detached): (Vec<_>, Vec<_>) = applied.iter().cloned().partition(|disk| {
        inventory
            .live
            .as_ref()
            .is_some_and(|live| is_attached(live, disk))
    });
    let another = inventory
        .live
        .as_ref()
        .filter(|live| is_another_domain(inventory, live, record));
    if let Some(live) = another {
        accept_another_domain(live, record, request.force, &mut plan.notes)?;
    }
    plan.steps.extend(ways.preparation(id));
    let memory = match &inventory.live {
        Some(live) => {
            let aside = SetAside {
                live,
                attached: &attached,
                safety,
                force: request.force,
                stays_off: record.is_disk_only(),
            };
            Some(aside.plan(inventory, &mut plan)?)
        }
        None => None,
    };
    if inventory.live.is_none() {
        plan.steps.push(Step::RequireOff);
    }
    plan.steps.extend(snapshot_images(safety, detached));
    let saved_memory = matches!(memory, Some(Memory::Kept { .. }));
    if let (Some(live), Some(memory)) = (&inventory.live, memory) {
        let lost = matches!(memory, Memory::GivenUp { .. });
        plan.steps.push(Step::Destroy {
            life: live.life,
            has_qemu: live.has_qemu(),
            memory,
        });
        let holds = |step: &Step| matches!(step, Step::HoldMonitor { .. });
        if plan.steps.iter().any(holds) {
            plan.steps
                .extend(live.monitor.map(|process| Step::ReleaseMonitor { process }));
        }
        if !saved_memory {
            // It may have begun to act on the end of the domain before it was held.
            plan.steps.push(Step::RequireOff);
        }
        if lost {
            plan.steps.extend(snapshot_images(safety, attached));
        }
        if another.is_none() {
            note_other_disks(inventory, live, record, &mut plan.notes);
        }
    }
    if !applied.is_empty() {
        plan.steps.push(Step::ApplyImages {
            id,
            instead_of: safety,
            disks: applied.clone(),
        });
    }
    let uuid = record.domain_uuid;
    let commit = Step::Commit {
        change: StoreChange::SetCurrent {
            id,
            layers: ways.layers(),
            disks: ways.disks(),
            accepted,
        },
    };
    if record.is_disk_only() {
        note_off(inventory, &ways, &mut plan.notes);
        plan.steps.push(commit);
    } else {
        plan.steps.extend([
            Step::Restore {
                id,
                uuid,
                switches: ways.switches.clone(),
            },
            commit,
            Step::Start {
                uuid,
                guest: request.state.unwrap_or(record.guest),
            },
        ]);
    }
    if !applied.is_empty() {
        plan.steps.push(Step::DeleteTags {
            id: safety,
            disks: applied,
        });
    }
    if saved_memory {
        plan.steps
            .extend([Step::RemoveDirectory { id: safety }, Step::CollectPacks]);
    }
    let mut after = inventory.record.clone();
    ways.record(&mut after);
    plan.steps.extend(collect_garbage(&after));
    plan.steps.push(Step::Announce);
    Ok(plan)
}

/// Refuses to make a domain of which there would be two, on the same disks.
fn require_nowhere_else(inventory: &Inventory, record: &SnapshotRecord) -> Result<()> {
    let Some(domid) = inventory.elsewhere.get(&record.domain_uuid) else {
        return Ok(());
    };
    let domain = &inventory.domain;
    Err(Error::new(
        ErrorKind::DomainState,
        format!(
            "domain {domid} has the UUID of snapshot '{}' and is not called '{domain}'",
            record.name()
        ),
    )
    .hint("was it renamed? `xl rename` gives it its name back, `xl destroy` ends it"))
}

/// Says how the domain is to be started afterwards.
fn note_off(inventory: &Inventory, ways: &WaysBack, notes: &mut Vec<String>) {
    let mut after = inventory.record.clone();
    ways.record(&mut after);
    notes.push(if after.layers.iter().any(|layer| layer.active) {
        "the domain is off afterwards; `xl-ext` under the name xl starts it with the right images"
            .into()
    } else {
        "the domain is off afterwards; `xl create` starts it".into()
    });
}

/// How the running domain is set aside.
struct SetAside<'a> {
    live: &'a LiveDomain,
    /// Those of the snapshot's disks that it has.
    attached: &'a [DiskTarget],
    /// The snapshot that is to hold it.
    safety: SnapshotId,
    /// Whether it may be lost.
    force: bool,
    /// Whether no domain takes its place.
    stays_off: bool,
}

impl SetAside<'_> {
    /// Plans it. Returns what becomes of the domain's memory; where that is given up, the disks are not
    /// set aside yet: a guest that goes on would write to them.
    fn plan(&self, inventory: &Inventory, plan: &mut Plan) -> Result<Memory> {
        let Self {
            live,
            attached,
            safety,
            force,
            ..
        } = *self;
        let life = live.life;
        if matches!(live.state, DomainState::Crashed | DomainState::Shutdown) {
            plan.notes.push(format!(
                "the domain is {}: there is no running state to keep",
                live.state
            ));
            plan.steps
                .extend(live.monitor.map(|process| Step::HoldMonitor { process }));
            if !attached.is_empty() {
                plan.steps.push(Step::SnapshotDisks {
                    life,
                    id: safety,
                    disks: attached.to_vec(),
                    layers: Vec::new(),
                });
            }
            return Ok(Memory::Ended);
        }
        let estimate = memory::at_most(live.memory_bytes, true);
        let guest = match savable(inventory, live, estimate) {
            Ok(guest) => guest,
            Err(why) if force => {
                plan.notes.push(format!(
                    "{why}, so its memory is not saved: if the revert fails once the domain is destroyed, \
                     only its disks are as before"
                ));
                let guest = guest_state(&inventory.domain, live).ok();
                // One that is suspended its monitor has seen, or will see, whoever it is held by.
                if guest.is_some() {
                    plan.steps
                        .extend(live.monitor.map(|process| Step::HoldMonitor { process }));
                }
                return Ok(Memory::GivenUp { guest });
            }
            Err(why) => return Err(why),
        };
        plan.cost = Cost {
            memory_written: estimate,
            room_needed: estimate,
            room_last: inventory.room_last(),
            ..plan.cost
        };
        plan.notes.push(if self.stays_off {
            "the present state is saved first and dropped when the disks are set back".into()
        } else {
            "the present state is saved first and dropped when the restored domain is there".into()
        });
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
            live: false,
            file: None,
            packed: true,
        });
        if !attached.is_empty() {
            plan.steps.push(Step::SnapshotDisks {
                life,
                id: safety,
                disks: attached.to_vec(),
                layers: Vec::new(),
            });
        }
        plan.steps.push(Step::Seal {
            id: safety,
            file: None,
        });
        Ok(Memory::Kept {
            id: safety,
            guest,
            disks: attached.to_vec(),
            others: other_images(live, attached),
        })
    }
}

/// How the guest is, if its memory can be saved.
fn savable(inventory: &Inventory, live: &LiveDomain, estimate: u64) -> Result<GuestState> {
    let guest = guest_state(&inventory.domain, live)
        .map_err(|error| error.hint("--force reverts without saving the present state"))?;
    require_room(inventory, estimate).map_err(|error| {
        error.hint("free some room, or revert without saving the present state by --force")
    })?;
    Ok(guest)
}

/// Removes the layers that nothing needs any more.
pub(super) fn collect_garbage(after: &DomainRecord) -> Vec<Step> {
    let layers = after.garbage();
    if layers.is_empty() {
        return Vec::new();
    }
    let images = layers.iter().map(|layer| layer.image.clone()).collect();
    vec![
        Step::RemoveLayers { layers },
        Step::Commit {
            change: StoreChange::ForgetLayers { images },
        },
    ]
}

fn snapshot_images(id: SnapshotId, disks: Vec<DiskTarget>) -> Option<Step> {
    (!disks.is_empty()).then_some(Step::SnapshotImages { id, disks })
}

/// Whether a domain of the name is none of the snapshot's: it was reinstalled, or replaced.
fn is_another_domain(inventory: &Inventory, live: &LiveDomain, record: &SnapshotRecord) -> bool {
    let is_ours = |proof: &DiskProof| {
        let mut disks = live.disks.iter().filter(|disk| disk.is_writable());
        disks.any(|disk| same_base(inventory, disk, proof))
    };
    live.life.uuid != record.domain_uuid
        && !record.disks.is_empty()
        && !record.disks.iter().any(is_ours)
}

fn accept_another_domain(
    live: &LiveDomain,
    record: &SnapshotRecord,
    force: bool,
    notes: &mut Vec<String>,
) -> Result<()> {
    let what = format!(
        "the running domain (domid {}) has another UUID than snapshot '{}' and none of its disks",
        live.life.domid,
        record.name()
    );
    if force {
        notes.push(format!(
            "{what}: it is replaced, and its own disks are left as they are"
        ));
        return Ok(());
    }
    Err(Error::new(ErrorKind::DomainState, what)
        .hint("if it really is to be replaced, destroy it first, or give --force"))
}

/// Images of the domain that are not among those that are set back.
fn other_images(live: &LiveDomain, disks: &[DiskTarget]) -> Vec<Box<Path>> {
    live.disks
        .iter()
        .filter(|disk| disk.is_writable())
        .filter_map(|disk| disk.pdev_path.as_deref().map(Path::new))
        .filter(|path| path.is_absolute() && disks.iter().all(|disk| &*disk.image != *path))
        .map(Into::into)
        .collect()
}

fn is_attached(live: &LiveDomain, target: &DiskTarget) -> bool {
    live.disks.iter().any(|disk| {
        disk.is_writable() && disk.pdev_path.as_deref().map(Path::new) == Some(&target.image)
    })
}

fn note_other_disks(
    inventory: &Inventory,
    live: &LiveDomain,
    record: &SnapshotRecord,
    notes: &mut Vec<String>,
) {
    for disk in live.disks.iter().filter(|disk| disk.is_writable()) {
        let path = disk.pdev_path.as_deref().unwrap_or_default();
        let mut disks = record.disks.iter();
        if !disks.any(|proof| same_base(inventory, disk, proof)) {
            notes.push(format!(
                "{} ({path}) was attached since: it is left as it is, and no longer attached",
                disk.vdev()
            ));
        }
    }
}

/// What somebody else wrote to, and the user takes as it is.
#[derive(Default)]
struct Changed<'a> {
    /// The images.
    images: BTreeSet<&'a Path>,
    /// The layers that stand on them.
    accepted: Vec<Accepted>,
}

/// What can be told without reading the memory image: that all parts are there.
///
/// Returns what was written to since; without `force` that is nothing.
fn require_restorable<'a>(
    inventory: &'a Inventory,
    record: &'a SnapshotRecord,
    force: bool,
) -> Result<Changed<'a>> {
    let mut changed = Changed::default();
    let changed_since = |what: String| {
        Error::new(
            ErrorKind::Corrupt,
            format!("snapshot '{}' cannot be restored: {what}", record.name()),
        )
        .hint(
            "was the domain started from its configuration file, without the layers? --force reverts all the same, \
             to what is there now",
        )
    };
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
    if !record.is_disk_only() {
        let proof = record
            .memory
            .as_ref()
            .ok_or_else(|| broken("it has no memory image".into()))?;
        match inventory.memory.get(&record.id) {
            None => return Err(broken("its memory image is missing".into())),
            Some(bytes) if *bytes != proof.image_bytes() => {
                return Err(broken(format!(
                    "its memory image has {bytes} bytes instead of {}",
                    proof.image_bytes()
                )));
            }
            Some(_) => {}
        }
    }
    let tag = record.id.tag();
    for below in inventory.record.below(record) {
        let facts = inventory
            .images
            .get(&*below.target.image)
            .and_then(Option::as_ref);
        let Some(facts) = facts else {
            return Err(broken(format!(
                "{}, which it stands on, is gone",
                below.target
            )));
        };
        if below.stamp.is_some_and(|stamp| stamp != facts.written) {
            if !force {
                return Err(changed_since(format!(
                    "{}, which it stands on, was written to since",
                    below.target
                )));
            }
            changed.images.insert(&*below.target.image);
        }
    }
    let facts = |image: &Path| inventory.images.get(image).and_then(Option::as_ref);
    let faults = record.disks.iter().flat_map(|proof| {
        let chain = inventory.record.chain_faults(&proof.target.image, facts);
        chain.into_iter().map(|fault| (&proof.target.image, fault))
    });
    for (disk, fault) in faults {
        match fault {
            // The disk itself is looked at below.
            ChainFault::Layer(layer) if layer.image == *disk => {}
            ChainFault::Written(layer) if force => {
                let below = layer.backing.as_ref().map(|below| &*below.image);
                changed.images.extend(below);
                let written = below.and_then(facts).map(|facts| facts.written);
                changed
                    .accepted
                    .extend(written.map(|below_written| Accepted {
                        image: layer.image.clone(),
                        below_written,
                    }));
            }
            ChainFault::Written(_) => return Err(changed_since(fault.to_string())),
            _ => return Err(broken(fault.to_string())),
        }
    }
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
        match proof.kind {
            DiskKind::Internal => {
                let held = facts.snapshot(&tag).ok_or_else(|| {
                    broken(format!("the image {image} of {vdev} no longer holds {tag}"))
                })?;
                if proof.stamp.is_some_and(|stamp| stamp != held.stamp) {
                    return Err(broken(format!(
                        "{tag} in {image} of {vdev} was made at another time"
                    )));
                }
            }
            DiskKind::External => {
                if proof.stamp.is_some_and(|stamp| stamp != facts.written) {
                    if !force {
                        return Err(changed_since(format!(
                            "the image {image} of {vdev} was written to since"
                        )));
                    }
                    changed.images.insert(&*proof.target.image);
                }
            }
        }
    }
    Ok(changed)
}

/// What a snapshot's disks are known by, but for images of which it was accepted that they changed.
fn without_stamps(disks: &[DiskProof], changed: &BTreeSet<&Path>) -> Vec<DiskProof> {
    let mut disks = disks.to_vec();
    for proof in &mut disks {
        if changed.contains(&*proof.target.image) {
            proof.stamp = None;
        }
    }
    disks
}
