//! Planning a snapshot of the disks alone, of a domain that is off: there is no memory that they have to fit.

use super::create::{GOES_ON_IN_LAYERS, new_name};
use super::disks::Choice;
use super::{CreateRequest, Fresh, Operation, Plan, Step, StoreChange};
use crate::error::{Error, ErrorKind, Result};
use crate::model::domain::{DomainState, GuestState};
use crate::model::record::{RecordState, SnapshotRecord};
use crate::observe::{Inventory, LiveDomain, OffDomain};
use crate::types::DomainSnapshot;
use std::collections::BTreeMap;

/// Plans it.
///
/// # Errors
/// As [`super::create`]; [`ErrorKind::DomainState`] for a domain that is not off.
pub(super) fn create(
    inventory: &Inventory,
    request: &CreateRequest,
    fresh: &Fresh,
) -> Result<Plan> {
    let domain = &inventory.domain;
    let name = new_name(inventory, request, fresh)?;
    if request.live || request.memory_file.is_some() {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "a snapshot of the disks alone has no memory to be saved",
        ));
    }
    if let Some(live) = &inventory.live {
        return Err(refuse_active(domain, live));
    }
    let off = require_known(inventory)?;
    let mut plan = Plan::new(inventory, Operation::SnapshotCreate, fresh, name.as_str());
    if let Some(told_by) = &off.told_by {
        plan.notes.push(format!(
            "the domain is taken to be made as in snapshot '{told_by}'"
        ));
    }
    let chosen = Choice {
        inventory,
        disks: &off.disks,
        wanted: &request.disks,
        default: request.kind,
        only_wanted: request.only_disks,
        id: fresh.snapshot,
        name: &name,
    }
    .choose(&mut plan.notes)?;
    if chosen.proofs.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("domain '{domain}' has no disk that could be in the snapshot"),
        ));
    }
    let (id, layers) = (fresh.snapshot, chosen.layers);
    if !layers.is_empty() {
        plan.notes.push(GOES_ON_IN_LAYERS.into());
    }
    let record = SnapshotRecord {
        id,
        parent: inventory.record.current,
        state: RecordState::Complete,
        guest: GuestState::Off,
        guest_type: off.guest_type,
        domain_uuid: off.uuid,
        snapshot: DomainSnapshot {
            name: Some(name.into()),
            description: request.description.clone(),
            creation_time: fresh.now,
            memory: false,
            memory_file: None,
            disks: chosen.snapshots,
        },
        memory: None,
        disks: chosen.proofs,
        configuration: Some(off.configuration.clone()),
        contents: BTreeMap::new(),
    };
    plan.steps
        .extend([Step::RequireOff, Step::CreateDirectory { id }]);
    if !layers.is_empty() {
        let images = layers.iter().map(|layer| layer.image.clone()).collect();
        plan.steps.extend([
            Step::RequireAbsent { images },
            Step::CreateLayers {
                layers: layers.clone(),
            },
        ]);
    }
    let disks = chosen.internal;
    if !disks.is_empty() {
        plan.steps.push(Step::SnapshotImages {
            id,
            disks: disks.clone(),
        });
    }
    plan.steps.extend([
        Step::SettleImages {
            id,
            disks,
            layers: layers.clone(),
        },
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

fn refuse_active(domain: &str, live: &LiveDomain) -> Error {
    let what = format!(
        "domain '{domain}' (domid {}) is {}",
        live.life.domid, live.state
    );
    let hint = match live.state {
        DomainState::Running => {
            "the disks alone would be as after a power cut: shut it down, or take a snapshot with its memory"
        }
        DomainState::Paused | DomainState::Suspended => {
            "it has not flushed what it wrote: shut it down, or take a snapshot with its memory"
        }
        DomainState::Crashed | DomainState::Shutdown | DomainState::Dying => {
            "its QEMU still has the disks open: `xl destroy` it first"
        }
    };
    Error::new(ErrorKind::DomainState, what).hint(hint)
}

fn require_known(inventory: &Inventory) -> Result<&OffDomain> {
    inventory.off.as_ref().ok_or_else(|| {
        let error = Error::new(
            ErrorKind::DomainState,
            format!(
                "nobody knows which disks domain '{}' has: it is off",
                inventory.domain
            ),
        )
        .hint("say it by --domain-config FILE");
        match &inventory.off_unknown {
            Some(why) => error.because(why.clone()),
            None => error,
        }
    })
}
