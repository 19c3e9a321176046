//! Planning a snapshot: memory and all writable disks at one instant.

use super::disks::{Choice, DiskChoice};
use super::{Cost, Fresh, Operation, Plan, Step, StoreChange};
use crate::error::{Error, ErrorKind, Result};
use crate::memory;
use crate::model::disk::DiskKind;
use crate::model::domain::{DomainState, GuestState, GuestType};
use crate::model::name::SnapshotName;
use crate::model::record::{RecordState, SnapshotRecord};
use crate::observe::{Inventory, LiveDomain};
use crate::types::DomainSnapshot;

/// What the user asks for.
#[derive(Clone, Debug, Default)]
pub struct CreateRequest {
    /// The name; the time in seconds since the epoch if there is none.
    pub name: Option<SnapshotName>,
    /// Words of the user's own.
    pub description: Option<String>,
    /// Let the guest run while most of its memory is written. (V6:
    /// `LIBXL_DOMAIN_SNAPSHOT_CREATE_LIVE`.)
    pub live: bool,
    /// How disks are held of which nothing is said; what is sensible for each, if not said.
    pub kind: Option<DiskKind>,
    /// What is said of single disks.
    pub disks: Vec<DiskChoice>,
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
    let chosen = Choice {
        inventory,
        disks: &live.disks,
        wanted: &request.disks,
        default: request.kind,
        id: fresh.snapshot,
        name: &name,
    }
    .choose(&mut plan.notes)?;
    let layers = chosen.layers;
    let estimate = memory::estimate(live.memory_bytes);
    let live_save = live_save(domain, live, guest, request.live, &mut plan.notes)?;
    plan.cost = Cost {
        memory_written: if live_save { 0 } else { estimate },
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
            disks: chosen.snapshots,
        },
        memory: None,
        disks: chosen.proofs,
    };

    plan.steps.push(Step::CreateDirectory { id });
    if !layers.is_empty() {
        let images = layers.iter().map(|layer| layer.image.clone()).collect();
        plan.steps.extend([
            Step::RequireAbsent { images },
            Step::CreateLayers {
                layers: layers.clone(),
            },
        ]);
    }
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
        live: live_save,
    });
    if !record.disks.is_empty() {
        plan.steps.push(Step::SnapshotDisks {
            life,
            id,
            disks: chosen.internal,
            layers: layers.clone(),
        });
    }
    if !layers.is_empty() {
        let switches = chosen.switches;
        plan.steps.push(Step::PointDisks { life, switches });
    }
    plan.steps.push(Step::Resume { life, guest });
    plan.steps
        .extend(live.monitor.map(|process| Step::ReleaseMonitor { process }));
    plan.steps.extend([
        Step::Seal { id },
        Step::Commit {
            change: StoreChange::Add {
                record: Box::new(record),
                layers,
            },
        },
        Step::Announce,
    ]);
    Ok(plan)
}

/// Whether the guest can run while its memory is written, if it is to.
fn live_save(
    domain: &str,
    live: &LiveDomain,
    guest: GuestState,
    wanted: bool,
    notes: &mut Vec<String>,
) -> Result<bool> {
    if !wanted {
        return Ok(false);
    }
    if live.guest_type == GuestType::Hvm {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("domain '{domain}' is of type HVM"),
        )
        .hint("in a live save its device model gives the disks away before they are snapshotted"));
    }
    if guest == GuestState::Paused {
        notes.push("the domain is paused: nothing changes while its memory is written".into());
        return Ok(false);
    }
    notes.push(
        "the guest runs while its memory is written; what it changes meanwhile is written again, so the \
         image may become larger"
            .into(),
    );
    Ok(true)
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
