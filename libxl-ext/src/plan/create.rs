//! Planning a snapshot: memory and all writable disks at one instant.

use super::claims::require_unclaimed;
use super::disks::{Choice, DiskChoice};
use super::managed_save::require_none_saved;
use super::pull::require_none_pulled;
use super::render::mebibytes;
use super::replicate::require_not_replicated;
use super::{Cost, Fresh, Operation, Plan, Step, StoreChange, disk_only};
use crate::error::{Error, ErrorKind, Result};
use crate::memory;
use crate::model::disk::DiskKind;
use crate::model::domain::{DomainState, GuestState, GuestType};
use crate::model::name::SnapshotName;
use crate::model::record::{MemoryFormat, RecordState, SnapshotRecord};
use crate::observe::{Inventory, LiveDomain};
use crate::types::DomainSnapshot;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
    /// Whether disks of which nothing is said are left out. (V6: a DISK_ONLY snapshot "will be limited to the disks
    /// described in @snapshot".)
    pub only_disks: bool,
    /// Only the disks, of a domain that is off. (V6: `LIBXL_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY`.)
    pub disk_only: bool,
    /// What the domain is made of, in libxl's JSON, for one that is off; as in the snapshot that its present
    /// state comes from, if not said.
    pub configuration: Option<Value>,
    /// Where the memory image goes: a new file, with an absolute path, which stock `xl restore` takes. In the store,
    /// if not said.
    pub memory_file: Option<PathBuf>,
    /// In which form the memory image is kept in the store.
    pub format: MemoryFormat,
}

/// Plans a snapshot of a domain that runs or is paused, or of the disks of one that is off.
///
/// # Errors
/// A refusal that names what stands in the way: [`ErrorKind::DomainState`],
/// [`ErrorKind::SnapshotExists`], [`ErrorKind::Unsupported`], [`ErrorKind::NoSpace`].
pub fn create(inventory: &Inventory, request: &CreateRequest, fresh: &Fresh) -> Result<Plan> {
    require_unclaimed(inventory)?;
    require_none_saved(inventory)?;
    require_none_pulled(inventory)?;
    require_not_replicated(inventory)?;
    if request.disk_only {
        return disk_only::create(inventory, request, fresh);
    }
    let domain = &inventory.domain;
    let name = new_name(inventory, request, fresh)?;
    let live = inventory.live.as_ref().ok_or_else(|| {
        Error::new(
            ErrorKind::DomainState,
            format!("domain '{domain}' is not running"),
        )
        .hint("--disk-only takes the disks of a domain that is off")
    })?;
    let guest = guest_state(domain, live)?;

    let mut plan = Plan::new(inventory, Operation::SnapshotCreate, fresh, name.as_str());
    let chosen = Choice {
        inventory,
        disks: &live.disks,
        wanted: &request.disks,
        default: request.kind,
        only_wanted: request.only_disks,
        id: fresh.snapshot,
        name: &name,
    }
    .choose(&mut plan.notes)?;
    let layers = chosen.layers;
    let packed = request.format == MemoryFormat::Packed && request.memory_file.is_none();
    let estimate = memory::at_most(live.memory_bytes, packed);
    let live_save = live_save(domain, live, guest, request.live, &mut plan.notes)?;
    plan.cost = Cost {
        memory_written: if live_save { 0 } else { estimate },
        room_needed: estimate,
        room_last: packed.then(|| inventory.room_last()).flatten(),
        ..plan.cost
    };
    require_room(inventory, estimate)?;
    if !layers.is_empty() {
        plan.notes.push(GOES_ON_IN_LAYERS.into());
    }
    let (id, life) = (fresh.snapshot, live.life);
    let file: Option<Box<Path>> = request.memory_file.as_deref().map(Into::into);
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
            memory_file: request.memory_file.as_deref().map(text_of).transpose()?,
            disks: chosen.snapshots,
        },
        memory: None,
        disks: chosen.proofs,
        configuration: None,
        contents: BTreeMap::new(),
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
    let_suspend(&mut plan, live, guest);
    plan.steps.push(Step::SaveMemory {
        life,
        id,
        guest,
        estimate,
        live: live_save,
        file: file.clone(),
        packed,
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
        Step::Seal {
            id,
            file: file.clone(),
        },
        Step::Commit {
            change: StoreChange::Add {
                record: Box::new(record),
                layers,
            },
        },
    ]);
    plan.steps
        .extend(file.map(|file| Step::SettleMemory { id, file }));
    plan.steps.push(Step::Announce);
    Ok(plan)
}

/// What the user has to know of external snapshots.
pub(super) const GOES_ON_IN_LAYERS: &str = "the domain goes on in new images: it is to be started by `xl-ext` under the \
     name xl from now on; stock xl, with its configuration file, would write to the images that the snapshot holds";

/// A path as the record holds it.
fn text_of(path: &Path) -> Result<String> {
    let refuse = |why: &str| {
        Error::new(
            ErrorKind::InvalidRequest,
            format!("{} {why}", path.display()),
        )
    };
    if !path.is_absolute() {
        return Err(refuse("is no absolute path"));
    }
    let text = path.to_str().ok_or_else(|| refuse("is no UTF-8"))?;
    Ok(text.to_owned())
}

/// The name that the snapshot gets, which no other one has.
pub(super) fn new_name(
    inventory: &Inventory,
    request: &CreateRequest,
    fresh: &Fresh,
) -> Result<SnapshotName> {
    let name = match &request.name {
        Some(name) => name.clone(),
        None => SnapshotName::new(fresh.now.to_string())?,
    };
    if inventory.record.find(name.as_str()).is_ok() {
        return Err(Error::new(
            ErrorKind::SnapshotExists,
            format!(
                "domain '{}' already has a snapshot '{name}'",
                inventory.domain
            ),
        )
        .hint("choose another name with -n, or delete the old one"));
    }
    Ok(name)
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
    if !live.dirty_pages_known {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "domain '{domain}' is of type PV, and this hypervisor cannot tell what a PV guest writes to"
            ),
        )
        .hint("it is built without shadow paging (`xl info`: virt_caps without 'shadow'), as Debian's is: PVH guests can be saved live"));
    }
    notes.push(
        "the guest runs while its memory is written; what it changes meanwhile is written again, so the \
         image may become larger"
            .into(),
    );
    Ok(true)
}

/// What comes before a guest suspends itself: xl's monitor would take that for its end, and a paused guest cannot.
pub(super) fn let_suspend(plan: &mut Plan, live: &LiveDomain, guest: GuestState) {
    plan.steps
        .extend(live.monitor.map(|process| Step::HoldMonitor { process }));
    if guest == GuestState::Paused {
        plan.steps.push(Step::Wake { life: live.life });
        plan.notes
            .push("the domain is paused: it runs for an instant in order to suspend".into());
    }
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
            "the memory of domain '{}' needs up to {}, and {} are free",
            inventory.domain,
            mebibytes(bytes),
            mebibytes(inventory.free_bytes)
        ),
    )
    .hint("free some room, or name another directory with --store"))
}
