//! A record that contradicts itself, made one that does not. Nothing is taken out of it but what stands in it
//! twice.

use super::{FindingKind, Findings};
use crate::model::name::{SnapshotId, SnapshotName};
use crate::model::record::{DomainRecord, SnapshotRecord};

/// The record with every contradiction resolved. `parent_of` is what else is known of snapshots that the record
/// does not name: their parents.
pub(super) fn mend(
    record: &DomainRecord,
    parent_of: impl Fn(SnapshotId) -> Option<SnapshotId>,
    found: &mut Findings,
) -> DomainRecord {
    let mut mended = record.clone();
    mended.snapshots.clear();
    for snapshot in &record.snapshots {
        if mended.get(snapshot.id).is_some() {
            found
                .add(FindingKind::InconsistentRecord, "it is recorded twice")
                .of(snapshot.name());
            continue;
        }
        mended.snapshots.push(snapshot.clone());
        give_name(&mut mended, snapshot, found);
    }
    let known: Vec<SnapshotId> = mended.snapshots.iter().map(|s| s.id).collect();
    let nearest = |gone: SnapshotId| {
        let mut seen = vec![gone];
        let mut next = parent_of(gone);
        while let Some(id) = next {
            if known.contains(&id) {
                return Some(id);
            }
            // Whoever can write files in the store can make them go round in circles.
            if seen.contains(&id) {
                return None;
            }
            seen.push(id);
            next = parent_of(id);
        }
        None
    };
    let name_of = |record: &DomainRecord, id: Option<SnapshotId>| match id {
        Some(id) => format!("'{}'", record.get(id).map_or("?", SnapshotRecord::name)),
        None => "nothing".to_owned(),
    };
    for at in 0..mended.snapshots.len() {
        let Some(gone) = mended.snapshots[at].parent.filter(|id| !known.contains(id)) else {
            continue;
        };
        let parent = nearest(gone);
        let what = format!(
            "its parent {gone} is gone; the nearest one known above it is {}",
            name_of(&mended, parent)
        );
        let name = mended.snapshots[at].name().to_owned();
        found.add(FindingKind::DanglingParent, what).of(&name);
        mended.snapshots[at].parent = parent;
    }
    put_in_order(&mut mended, found);
    if let Some(gone) = mended.current.filter(|id| !known.contains(id)) {
        mended.current = nearest(gone);
        let what = format!(
            "the snapshot {gone} that the present state comes from is gone; the nearest one known above it is {}",
            name_of(&mended, mended.current)
        );
        found.add(FindingKind::MissingCurrent, what);
    }
    mended
}

/// Gives the snapshot that was added last another name, if its own is none or is taken.
fn give_name(mended: &mut DomainRecord, snapshot: &SnapshotRecord, found: &mut Findings) {
    let taken = |name: &str| {
        let others = mended.snapshots.iter();
        others
            .filter(|other| other.name() == name && other.id != snapshot.id)
            .count()
            > 0
    };
    if snapshot.checked_name().is_ok() && !taken(snapshot.name()) {
        return;
    }
    let id = snapshot.id.to_string();
    let candidates = [format!("recovered-{}", &id[..8]), format!("recovered-{id}")];
    let new = candidates.into_iter().find(|name| !taken(name));
    let new = new.and_then(|name| SnapshotName::new(name).ok());
    let what = format!(
        "its name is taken or no name; it becomes '{}'",
        new.as_ref().map_or("?", SnapshotName::as_str)
    );
    found
        .add(FindingKind::InconsistentRecord, what)
        .of(&snapshot.name().chars().take(40).collect::<String>());
    mended.edit(snapshot.id, new.as_ref(), None);
}

/// Parents before children; where they go round in circles, one of them becomes a root.
fn put_in_order(mended: &mut DomainRecord, found: &mut Findings) {
    let mut rest = std::mem::take(&mut mended.snapshots);
    let mut moved = false;
    while !rest.is_empty() {
        let placed = |snapshot: &SnapshotRecord| {
            let is_it = |parent| mended.snapshots.iter().any(|other| other.id == parent);
            snapshot.parent.is_none_or(is_it)
        };
        let next = if let Some(at) = rest.iter().position(placed) {
            moved |= at > 0;
            rest.remove(at)
        } else {
            let mut first = rest.remove(0);
            first.parent = None;
            found
                .add(FindingKind::InconsistentRecord, "it is its own ancestor")
                .of(first.name());
            first
        };
        mended.snapshots.push(next);
    }
    if moved {
        found.add(
            FindingKind::InconsistentRecord,
            "the record lists a child before its parent",
        );
    }
}
