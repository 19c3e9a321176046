//! Planning a change of what is said of a snapshot. What it holds is not touched: files and internal snapshots
//! are called by its identity.

use super::{Fresh, Operation, Plan, Step, StoreChange};
use crate::error::{Error, ErrorKind, Result};
use crate::model::name::SnapshotName;
use crate::model::record::{RecordState, SnapshotRecord};
use crate::observe::Inventory;
use std::collections::BTreeMap;

/// What the user asks for. What is not said stays as it is.
#[derive(Clone, Debug)]
pub struct EditRequest {
    /// Name of the snapshot.
    pub name: String,
    /// The name that it gets.
    pub rename: Option<SnapshotName>,
    /// The description that it gets.
    pub describe: Option<String>,
}

/// Plans it, with the domain running or not.
///
/// # Errors
/// [`ErrorKind::NoSuchSnapshot`], [`ErrorKind::SnapshotExists`]; [`ErrorKind::InvalidRequest`] for a snapshot
/// that is being deleted.
pub fn edit(inventory: &Inventory, request: &EditRequest, fresh: &Fresh) -> Result<Plan> {
    let record = inventory.record.find(&request.name)?;
    if record.state == RecordState::Deleting {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("the deletion of snapshot '{}' has begun", record.name()),
        )
        .hint("`snapshot-delete` finishes it"));
    }
    if let Some(taken) = request
        .rename
        .as_ref()
        .and_then(|name| inventory.record.find(name.as_str()).ok())
        .filter(|other| other.id != record.id)
    {
        return Err(Error::new(
            ErrorKind::SnapshotExists,
            format!(
                "domain '{}' already has a snapshot '{}'",
                inventory.domain,
                taken.name()
            ),
        ));
    }
    let new = request
        .rename
        .as_ref()
        .map_or(record.name(), SnapshotName::as_str);
    let mut plan = Plan::new(inventory, Operation::SnapshotEdit, fresh, new);
    plan.steps.extend([
        Step::Commit {
            change: StoreChange::Edit {
                id: record.id,
                name: request.rename.clone(),
                description: request.describe.clone(),
            },
        },
        Step::Announce,
    ]);
    Ok(plan)
}

/// Plans to keep what the disks of a snapshot were found to hold, by virtual device.
pub(crate) fn keep_contents(
    inventory: &Inventory,
    record: &SnapshotRecord,
    sums: BTreeMap<String, String>,
    fresh: &Fresh,
) -> Plan {
    let mut plan = Plan::new(inventory, Operation::SnapshotEdit, fresh, record.name());
    plan.steps.push(Step::Commit {
        change: StoreChange::Contents {
            id: record.id,
            sums,
        },
    });
    plan
}
