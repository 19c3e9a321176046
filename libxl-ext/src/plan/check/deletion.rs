//! The part of [`super::check`] that follows deletions: nothing is deleted that is needed, and no snapshot is forgotten
//! of which something is left.

use super::{Checker, require};
use crate::model::disk::DiskKind;
use crate::model::name::SnapshotId;
use crate::model::record::SnapshotRecord;
use std::collections::BTreeSet;
use std::path::Path;

/// What is there of a snapshot that is being deleted.
pub(super) struct Remains {
    /// Images that hold its disk state.
    pub(super) images: BTreeSet<Box<Path>>,
    /// Its directory in the store.
    pub(super) directory: bool,
    /// Its memory image outside of that.
    pub(super) memory_file: bool,
}

impl Remains {
    fn is_nothing(&self) -> bool {
        self.images.is_empty() && !self.directory && !self.memory_file
    }
}

impl Checker<'_> {
    pub(super) fn mark(&mut self, id: SnapshotId) -> Result<(), &'static str> {
        require(
            self.referred.remove(&id),
            "marks what is no snapshot of the domain",
        )?;
        let images = &self.inventory.images;
        let remains = Remains {
            images: self
                .bound
                .iter()
                .filter(|(bound, image)| {
                    *bound == id && matches!(images.get(&**image), Some(Some(_)))
                })
                .map(|(_, image)| image.clone())
                .collect(),
            directory: true,
            memory_file: self
                .inventory
                .record
                .get(id)
                .is_some_and(|record| record.snapshot.memory_file.is_some()),
        };
        self.marked.insert(id, remains);
        self.chains.mark_deleting(id);
        Ok(())
    }

    pub(super) fn may_delete(&self, id: SnapshotId) -> Result<(), &'static str> {
        require(self.committed, "deletes before the point of no return")?;
        require(
            !self.referred.contains(&id),
            "deletes what a snapshot refers to",
        )?;
        let mut children = self.inventory.record.children(Some(id));
        require(
            children.all(|child| self.marked.get(&child.id).is_none_or(Remains::is_nothing)),
            "deletes a snapshot before those below it",
        )
    }

    pub(super) fn remove(&mut self, id: SnapshotId) -> Result<(), &'static str> {
        let remains = self
            .marked
            .remove(&id)
            .ok_or("forgets a snapshot whose deletion was not recorded")?;
        require(
            remains.is_nothing(),
            "forgets a snapshot of which something is left",
        )
    }
}

/// The images that hold a snapshot inside.
pub(super) fn bound_images(
    record: &SnapshotRecord,
) -> impl Iterator<Item = (SnapshotId, Box<Path>)> {
    record
        .disks
        .iter()
        .filter(|proof| proof.kind == DiskKind::Internal)
        .map(|proof| (record.id, proof.target.image.clone()))
}
