//! Planning the end of snapshots. Those that are kept, and the running state, stand on their own: an internal
//! snapshot shares clusters with them, and qcow2 counts the references.
//!
//! However many they are, one commit says that their deletion has begun and one that they are gone. So a
//! deletion that failed in the middle leaves the tree as it was, and the same request finds them again.

use super::claims::require_unclaimed;
use super::coalesce::coalesce;
use super::managed_save::require_none_saved;
use super::pull::require_none_pulled;
use super::replicate::require_not_replicated;
use super::{Fresh, Operation, Plan, Step, StoreChange};
use crate::error::Result;
use crate::model::disk::{DiskKind, DiskTarget};
use crate::model::name::SnapshotId;
use crate::model::record::{DiskProof, LeftOver, RecordState, SnapshotRecord};
use crate::observe::Inventory;
use std::collections::BTreeSet;
use std::path::Path;

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
/// [`crate::ErrorKind::NoSuchSnapshot`]; [`crate::ErrorKind::Stale`] if images would be merged and a disk of the
/// running domain is not what the record says.
pub fn delete(inventory: &Inventory, request: &DeleteRequest, fresh: &Fresh) -> Result<Plan> {
    require_unclaimed(inventory)?;
    require_none_saved(inventory)?;
    require_none_pulled(inventory)?;
    require_not_replicated(inventory)?;
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
    plan.cost.room_released = inventory.room_released(&ids);
    let has_memory = doomed.iter().any(|record| record.memory.is_some());
    let read_only = read_only(inventory);
    let mut left_over = Vec::new();
    for record in doomed {
        let (id, disks) = (record.id, disks(inventory, record, &mut plan.notes));
        let (disks, later): (Vec<_>, Vec<_>) = disks
            .into_iter()
            .partition(|disk| !read_only.contains(&*disk.image));
        if !disks.is_empty() {
            plan.steps.push(Step::DeleteTags { id, disks });
        }
        if let Some(file) = record.snapshot.memory_file.as_deref().map(Path::new) {
            plan.steps.push(Step::RemoveMemory {
                id,
                file: file.into(),
            });
        }
        plan.steps.push(Step::RemoveDirectory { id });
        left_over.extend(later.into_iter().map(|target| LeftOver { id, target }));
    }
    for left in &left_over {
        plan.notes.push(format!(
            "the running domain stands on {}, so its part there is deleted later",
            left.target
        ));
    }
    if has_memory {
        plan.steps.push(Step::CollectPacks);
    }
    let tidied: Vec<LeftOver> = inventory
        .record
        .left_over
        .iter()
        .filter(|left| !read_only.contains(&*left.target.image))
        .cloned()
        .collect();
    for left in &tidied {
        if matches!(inventory.images.get(&*left.target.image), Some(Some(_))) {
            plan.steps.push(Step::DeleteTags {
                id: left.id,
                disks: vec![left.target.clone()],
            });
        }
    }
    let changed = changed(inventory, &plan.steps);
    let begin = Step::Commit {
        change: StoreChange::MarkDeleting {
            ids: ids.clone(),
            changing: changed.clone(),
        },
    };
    // The present state may come from another snapshot then.
    plan.steps.splice(0..0, [begin, Step::Announce]);
    let mut after = inventory.record.clone();
    after.mark_deleting(&ids);
    coalesce(inventory, &mut after, &mut plan)?;
    plan.steps.push(Step::Commit {
        change: StoreChange::Remove {
            ids,
            left_over,
            tidied,
            changed,
        },
    });
    Ok(plan)
}

/// Of the images from which internal snapshots are deleted, those that are known by their last write, and whose
/// last write is the one that is known.
fn changed(inventory: &Inventory, steps: &[Step]) -> Vec<Box<Path>> {
    let is_changed = |image: &Path| {
        steps.iter().any(|step| match step {
            Step::DeleteTags { disks, .. } => disks.iter().any(|disk| &*disk.image == image),
            _ => false,
        })
    };
    let record = &inventory.record;
    let unchanged_before = |image: &Path| {
        let facts = inventory.images.get(image);
        let written = facts.and_then(Option::as_ref).map(|facts| facts.written);
        let mut known = record.last_writes_of(image).peekable();
        known.peek().is_none() || known.any(|stamp| Some(stamp) == written)
    };
    let states = record
        .proofs()
        .filter(|proof| proof.kind == DiskKind::External)
        .map(|proof| &proof.target.image);
    let below = record
        .layers
        .iter()
        .filter_map(|layer| layer.backing.as_ref());
    let images: BTreeSet<_> = states.chain(below.map(|below| &below.image)).collect();
    let images = images.into_iter();
    images
        .filter(|image| is_changed(image) && unchanged_before(image))
        .cloned()
        .collect()
}

/// The images that a running domain's disks stand on: its QEMU has them open, and does not write to them.
fn read_only(inventory: &Inventory) -> BTreeSet<&Path> {
    let disks = inventory.live.iter().flat_map(|live| &live.disks);
    disks
        .filter_map(|disk| disk.pdev_path.as_deref())
        .flat_map(|disk| inventory.record.chain(Path::new(disk)).into_iter().skip(1))
        .collect()
}

/// The disks in whose images there is something to delete.
fn disks(
    inventory: &Inventory,
    record: &SnapshotRecord,
    notes: &mut Vec<String>,
) -> Vec<DiskTarget> {
    let mut disks = Vec::new();
    let internal = |proof: &&DiskProof| proof.kind == DiskKind::Internal;
    for proof in record.disks.iter().filter(internal) {
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
