//! Planning the end of a snapshot. Its children, and the running state, stand on their own: an internal
//! snapshot shares clusters with them, and qcow2 counts the references.

use super::{Fresh, Operation, Plan, Step, StoreChange};
use crate::error::Result;
use crate::model::disk::DiskTarget;
use crate::model::record::RecordState;
use crate::observe::Inventory;

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct DeleteRequest {
    /// Name of the snapshot.
    pub name: String,
}

/// Plans a deletion, with the domain running or not.
///
/// # Errors
/// [`crate::ErrorKind::NoSuchSnapshot`].
pub fn delete(inventory: &Inventory, request: &DeleteRequest, fresh: &Fresh) -> Result<Plan> {
    let record = inventory.record.find(&request.name)?;
    let id = record.id;
    let mut plan = Plan::new(inventory, Operation::SnapshotDelete, fresh, record.name());
    plan.cost.room_released = inventory.memory.get(&id).copied().unwrap_or(0);
    if record.state == RecordState::Deleting {
        plan.notes
            .push("its deletion was begun before and is finished now".into());
    }
    let mut disks: Vec<DiskTarget> = Vec::new();
    for proof in &record.disks {
        if matches!(inventory.images.get(&*proof.target.image), Some(Some(_))) {
            disks.push(proof.target.clone());
        } else {
            let why = match inventory.unreadable.get(&*proof.target.image) {
                Some(why) => format!("cannot be read and is left as it is ({why})"),
                None => "is missing: there is nothing to delete in it".to_owned(),
            };
            let image = proof.target.image.display();
            plan.notes
                .push(format!("the image {image} of {} {why}", proof.target.vdev));
        }
    }
    match inventory.record.children(Some(id)).count() {
        0 => {}
        1 => plan.notes.push("its child is kept".into()),
        children => plan.notes.push(format!("its {children} children are kept")),
    }
    plan.steps.push(Step::Commit {
        change: StoreChange::MarkDeleting { id },
    });
    if !disks.is_empty() {
        plan.steps.push(Step::DeleteTags { id, disks });
    }
    plan.steps.extend([
        Step::RemoveDirectory { id },
        Step::Commit {
            change: StoreChange::Remove { id },
        },
        Step::Announce,
    ]);
    Ok(plan)
}
