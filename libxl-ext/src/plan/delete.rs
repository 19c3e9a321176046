//! Planning the end of snapshots. Those that are kept, and the running state, stand on their own: an internal
//! snapshot shares clusters with them, and qcow2 counts the references.
//!
//! However many they are, one commit says that their deletion has begun and one that they are gone. So a
//! deletion that failed in the middle leaves the tree as it was, and the same request finds them again.

use super::{Fresh, Operation, Plan, Step, StoreChange};
use crate::error::Result;
use crate::model::disk::DiskTarget;
use crate::model::name::SnapshotId;
use crate::model::record::{RecordState, SnapshotRecord};
use crate::observe::Inventory;

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct DeleteRequest {
    /// Name of the snapshot.
    pub name: String,
    /// Which part of the tree goes.
    pub scope: DeleteScope,
}

/// Which part of the tree a deletion takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeleteScope {
    /// The snapshot; its children are kept and become those of its parent.
    #[default]
    Only,
    /// The snapshot and every one below it. (V6: `LIBXL_DOMAIN_SNAPSHOT_DELETE_CHILDREN`.)
    WithChildren,
    /// Every snapshot below it; it is kept.
    ChildrenOnly,
}

/// Plans a deletion, with the domain running or not. Where there is nothing to delete, the plan has no
/// steps.
///
/// # Errors
/// [`crate::ErrorKind::NoSuchSnapshot`].
pub fn delete(inventory: &Inventory, request: &DeleteRequest, fresh: &Fresh) -> Result<Plan> {
    let named = inventory.record.find(&request.name)?;
    let below = inventory.record.descendants(named.id);
    let mut plan = Plan::new(inventory, Operation::SnapshotDelete, fresh, named.name());
    note_scope(inventory, request.scope, named, &below, &mut plan.notes);
    // Parents before children, as in the record.
    let mut doomed = match request.scope {
        DeleteScope::Only => vec![named],
        DeleteScope::WithChildren => [vec![named], below].concat(),
        DeleteScope::ChildrenOnly => below,
    };
    let begun: Vec<_> = doomed
        .iter()
        .filter(|record| record.state == RecordState::Deleting)
        .copied()
        .collect();
    if !begun.is_empty() {
        plan.notes.push(format!(
            "the deletion of {} was begun before and is finished now",
            names(&begun)
        ));
    }
    if doomed.is_empty() {
        return Ok(plan);
    }
    doomed.reverse();
    let ids: Vec<SnapshotId> = doomed.iter().map(|record| record.id).collect();
    let freed = ids.iter().filter_map(|id| inventory.memory.get(id));
    plan.cost.room_released = freed.sum();
    plan.steps.extend([
        Step::Commit {
            change: StoreChange::MarkDeleting { ids: ids.clone() },
        },
        // The present state may come from another snapshot now.
        Step::Announce,
    ]);
    for record in doomed {
        let (id, disks) = (record.id, disks(inventory, record, &mut plan.notes));
        if !disks.is_empty() {
            plan.steps.push(Step::DeleteTags { id, disks });
        }
        plan.steps.push(Step::RemoveDirectory { id });
    }
    plan.steps.push(Step::Commit {
        change: StoreChange::Remove { ids },
    });
    Ok(plan)
}

/// The disks in whose images there is something to delete.
fn disks(
    inventory: &Inventory,
    record: &SnapshotRecord,
    notes: &mut Vec<String>,
) -> Vec<DiskTarget> {
    let mut disks = Vec::new();
    for proof in &record.disks {
        if matches!(inventory.images.get(&*proof.target.image), Some(Some(_))) {
            disks.push(proof.target.clone());
            continue;
        }
        let why = match inventory.unreadable.get(&*proof.target.image) {
            Some(why) => format!("cannot be read and is left as it is ({why})"),
            None => "is missing: there is nothing to delete in it".to_owned(),
        };
        let image = proof.target.image.display();
        let note = format!("the image {image} of {} {why}", proof.target.vdev);
        // Snapshots of one domain share their images.
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    disks
}

/// Says what becomes of the snapshot's children.
fn note_scope(
    inventory: &Inventory,
    scope: DeleteScope,
    named: &SnapshotRecord,
    below: &[&SnapshotRecord],
    notes: &mut Vec<String>,
) {
    let descendants = match below {
        [one] => format!("its child {} is", names(&[one])),
        more => format!("its {} descendants {} are", more.len(), names(more)),
    };
    match (scope, inventory.record.children(Some(named.id)).count()) {
        (DeleteScope::Only | DeleteScope::WithChildren, 0) => {}
        (DeleteScope::Only, 1) => notes.push("its child is kept".into()),
        (DeleteScope::Only, children) => notes.push(format!("its {children} children are kept")),
        (DeleteScope::WithChildren, _) => notes.push(format!("{descendants} deleted too")),
        (DeleteScope::ChildrenOnly, 0) => {
            notes.push("it has no children: there is nothing to delete".into());
        }
        (DeleteScope::ChildrenOnly, _) => notes.push(format!("it is kept; {descendants} deleted")),
    }
}

fn names(records: &[&SnapshotRecord]) -> String {
    let names: Vec<_> = records
        .iter()
        .map(|record| format!("'{}'", record.name()))
        .collect();
    names.join(", ")
}
