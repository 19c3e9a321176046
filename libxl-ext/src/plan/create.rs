//! Planning a snapshot: memory and all writable disks at one instant.

use super::{Cost, Fresh, Operation, Plan, Step, StoreChange};
use crate::error::{Error, ErrorKind, Result};
use crate::memory;
use crate::model::disk::{DeviceDisk, DiskTarget, ImageFormat};
use crate::model::domain::{DomainState, GuestState};
use crate::model::name::SnapshotName;
use crate::model::record::{DiskProof, RecordState, SnapshotRecord};
use crate::observe::{Inventory, LiveDomain};
use crate::types::{DiskSnapshot, DomainSnapshot};
use std::path::Path;

/// What the user asks for.
#[derive(Clone, Debug, Default)]
pub struct CreateRequest {
    /// The name; the time in seconds since the epoch if there is none.
    pub name: Option<SnapshotName>,
    /// Words of the user's own.
    pub description: Option<String>,
}

/// Plans a snapshot of a domain that runs or is paused.
///
/// # Errors
/// A refusal that names what stands in the way: [`ErrorKind::DomainState`],
/// [`ErrorKind::SnapshotExists`], [`ErrorKind::Unsupported`], [`ErrorKind::NoSpace`].
pub fn create(inventory: &Inventory, request: &CreateRequest, fresh: &Fresh) -> Result<Plan> {
    let domain = &inventory.domain;
    let name = match &request.name {
        Some(name) => name.clone(),
        None => SnapshotName::new(fresh.now.to_string())?,
    };
    if inventory.record.find(name.as_str()).is_ok() {
        return Err(Error::new(
            ErrorKind::SnapshotExists,
            format!("domain '{domain}' already has a snapshot '{name}'"),
        )
        .hint("choose another name with -n, or delete the old one"));
    }
    let live = inventory.live.as_ref().ok_or_else(|| {
        Error::new(
            ErrorKind::DomainState,
            format!("domain '{domain}' is not running"),
        )
        .hint("only a running domain can be snapshotted so far")
    })?;
    let guest = guest_state(domain, live)?;

    let mut plan = Plan::new(inventory, Operation::SnapshotCreate, fresh, name.as_str());
    let (disks, snapshots) = choose_disks(inventory, live, &name, &mut plan.notes)?;
    let estimate = memory::estimate(live.memory_bytes);
    plan.cost = Cost {
        memory_written: estimate,
        room_needed: estimate,
        ..plan.cost
    };
    require_room(inventory, estimate)?;
    let (id, life) = (fresh.snapshot, live.life);
    let record = SnapshotRecord {
        id,
        parent: inventory.record.current,
        state: RecordState::Complete,
        guest,
        guest_type: live.guest_type,
        domain_uuid: life.uuid,
        snapshot: DomainSnapshot {
            name: Some(name.into()),
            description: request.description.clone(),
            creation_time: fresh.now,
            memory: true,
            memory_file: None,
            disks: snapshots,
        },
        memory: None,
        disks: disks
            .iter()
            .map(|target| DiskProof {
                target: target.clone(),
                stamp: None,
            })
            .collect(),
    };

    plan.steps.push(Step::CreateDirectory { id });
    plan.steps
        .extend(live.monitor.map(|process| Step::HoldMonitor { process }));
    if guest == GuestState::Paused {
        plan.steps.push(Step::Wake { life });
        plan.notes
            .push("the domain is paused: it runs for an instant in order to suspend".into());
    }
    plan.steps.push(Step::SaveMemory {
        life,
        id,
        guest,
        estimate,
    });
    if !disks.is_empty() {
        plan.steps.push(Step::SnapshotDisks { life, id, disks });
    }
    plan.steps.push(Step::Resume { life, guest });
    plan.steps
        .extend(live.monitor.map(|process| Step::ReleaseMonitor { process }));
    plan.steps.extend([
        Step::Seal { id },
        Step::Commit {
            change: StoreChange::Add {
                record: Box::new(record),
            },
        },
        Step::Announce,
    ]);
    Ok(plan)
}

/// The state to which the guest returns, if it is in one from which its memory can be saved.
pub(super) fn guest_state(domain: &str, live: &LiveDomain) -> Result<GuestState> {
    match live.state {
        DomainState::Running => Ok(GuestState::Running),
        DomainState::Paused => Ok(GuestState::Paused),
        state => Err(Error::new(
            ErrorKind::DomainState,
            format!("domain '{domain}' (domid {}) is {state}", live.life.domid),
        )
        .hint("only a running or paused domain can save its memory")),
    }
}

pub(super) fn require_room(inventory: &Inventory, bytes: u64) -> Result<()> {
    if inventory.free_bytes >= bytes {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::NoSpace,
        format!(
            "the memory of domain '{}' needs up to {bytes} bytes, and {} are free",
            inventory.domain, inventory.free_bytes
        ),
    )
    .hint("free some room, or name another directory with --store"))
}

fn choose_disks(
    inventory: &Inventory,
    live: &LiveDomain,
    name: &SnapshotName,
    notes: &mut Vec<String>,
) -> Result<(Vec<DiskTarget>, Vec<DiskSnapshot>)> {
    let mut targets: Vec<DiskTarget> = Vec::new();
    let mut snapshots = Vec::new();
    for disk in &live.disks {
        if !disk.is_writable() {
            notes.push(format!("{} is read-only and is left out", disk.vdev()));
            continue;
        }
        let target = internal_target(disk)?;
        if !matches!(inventory.images.get(&*target.image), Some(Some(_))) {
            return Err(Error::new(
                ErrorKind::Toolstack,
                format!(
                    "QEMU does not have {} open for {}",
                    target.image.display(),
                    target.vdev
                ),
            ));
        }
        if let Some(other) = targets.iter().find(|other| other.image == target.image) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} and {} are the same image", other.vdev, target.vdev),
            ));
        }
        targets.push(target);
        snapshots.push(DiskSnapshot {
            disk: disk.clone(),
            name: Some(name.as_str().to_owned()),
            ..DiskSnapshot::default()
        });
    }
    Ok((targets, snapshots))
}

/// The disk as one that can hold an internal snapshot.
fn internal_target(disk: &DeviceDisk) -> Result<DiskTarget> {
    let vdev = disk.vdev();
    let refuse = |why: String| Error::new(ErrorKind::Unsupported, format!("disk {vdev} {why}"));
    let backend = disk.backend.as_deref().unwrap_or("unknown");
    if backend != "qdisk" {
        return Err(refuse(format!(
            "is on the {backend} backend, which has no snapshots"
        ))
        .hint("put backendtype=qdisk into the disk's configuration"));
    }
    let path = disk.pdev_path.as_deref().unwrap_or_default();
    match disk.format.as_deref().unwrap_or("unknown") {
        "qcow2" => {}
        format => {
            return Err(refuse(format!("({path}) is {format}, and only qcow2 holds snapshots"))
                .hint(format!(
                    "`qemu-img convert -f {format} -O qcow2` makes a qcow2 image of it while the domain is off"
                )));
        }
    }
    if !Path::new(path).is_absolute() {
        return Err(refuse(format!(
            "has the target '{path}', which is no absolute path"
        )));
    }
    Ok(DiskTarget {
        vdev: vdev.to_owned(),
        image: Path::new(path).into(),
        format: ImageFormat::Qcow2,
    })
}
