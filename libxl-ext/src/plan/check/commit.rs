//! The part of [`super::check`] that looks at commits: nothing is recorded that does not hold.

use super::{Checker, Domain, require};
use crate::model::disk::DiskKind;
use crate::model::layer::Layer;
use crate::model::name::SnapshotId;
use crate::model::record::SnapshotRecord;
use crate::plan::{Operation, StoreChange};

impl Checker<'_> {
    pub(super) fn commit(&mut self, change: &StoreChange) -> Result<(), &'static str> {
        require(
            self.domain != Domain::Suspended,
            "commits while the guest stands still",
        )?;
        require(
            self.domain != Domain::Destroyed || self.turns_off(change),
            "commits without a domain in its place",
        )?;
        self.committed = true;
        match change {
            StoreChange::Add { record, layers } => {
                require(
                    self.sealed.contains(&record.id),
                    "records what is not durable",
                )?;
                require(
                    !record.is_disk_only() || self.domain.is_gone(),
                    "records the disks alone of a guest that writes to them",
                )?;
                require(
                    record.disks.iter().all(|proof| {
                        let image = &proof.target.image;
                        match proof.kind {
                            DiskKind::Internal => {
                                self.covered.contains(&(record.id, image.clone()))
                            }
                            DiskKind::External => self.chains.is_left(image),
                        }
                    }),
                    "records a disk that was not snapshotted",
                )?;
                self.referred.insert(record.id);
                let disks: Vec<_> = layers.iter().map(Layer::target).collect();
                self.chains.commit(Some(record), layers, &disks)?;
            }
            StoreChange::MarkDeleting { ids, .. } => {
                ids.iter().try_for_each(|id| self.mark(*id))?;
            }
            StoreChange::Remove { ids, left_over, .. } => {
                for left in left_over {
                    if let Some(remains) = self.marked.get_mut(&left.id) {
                        remains.images.remove(&left.target.image);
                    }
                }
                ids.iter().try_for_each(|id| self.remove(*id))?;
            }
            StoreChange::SetCurrent {
                id, layers, disks, ..
            } => {
                require(
                    self.referred.contains(id),
                    "makes an unknown snapshot current",
                )?;
                self.require_disks_of(*id, layers)?;
                self.chains.commit(None, layers, disks)?;
            }
            StoreChange::Stopped => {}
            StoreChange::KeepManaged { image } => {
                require(
                    self.sealed.contains(&image.id),
                    "records what is not durable",
                )?;
                let mut disks = image.disks.iter();
                require(
                    disks.all(|proof| self.stamped.contains(&proof.target.image)),
                    "binds memory to disks of which nobody knows whether they change",
                )?;
                let former = self.managed.replace(image.id);
                self.dropped.extend(former);
            }
            StoreChange::DropManaged { id } => {
                require(
                    self.managed == Some(*id),
                    "drops what is no saved state of the domain",
                )?;
                require(
                    self.domain == Domain::Started
                        || self.operation == Operation::ManagedSaveRemove,
                    "drops the state of a guest that does not run",
                )?;
                self.managed = None;
                self.dropped.insert(*id);
            }
            StoreChange::Edit { id, .. } | StoreChange::Contents { id, .. } => {
                require(self.referred.contains(id), "speaks of an unknown snapshot")?;
            }
            StoreChange::Merging { merge } => self.chains.begin(merge)?,
            StoreChange::Merged { merge } => {
                self.chains.merged(merge)?;
            }
            StoreChange::ForgetLayers { images } => self.chains.forget(images)?,
            StoreChange::Pull { of } => self.chains.pull_changed(of)?,
        }
        Ok(())
    }

    /// Whether a domain that is gone is to stay so: the present state comes from a snapshot of the disks alone.
    fn turns_off(&self, change: &StoreChange) -> bool {
        match change {
            StoreChange::SetCurrent { id, .. } => self.is_disk_only(*id),
            StoreChange::KeepManaged { .. } => true,
            // What is tidied up behind the first commit.
            _ => self.committed,
        }
    }

    fn is_disk_only(&self, id: SnapshotId) -> bool {
        let record = self.inventory.record.get(id);
        record.is_some_and(SnapshotRecord::is_disk_only)
    }

    /// No restore looks after the disks of a snapshot of the disks alone.
    fn require_disks_of(&self, id: SnapshotId, layers: &[Layer]) -> Result<(), &'static str> {
        if !self.is_disk_only(id) {
            return Ok(());
        }
        require(
            self.domain.is_gone(),
            "turns disks back under a domain that has them open",
        )?;
        self.require_off()?;
        require(
            self.proven.contains(&id),
            "goes back to a snapshot that was not proven whole",
        )?;
        let record = self.inventory.record.get(id);
        let mut disks = record.into_iter().flat_map(|record| &record.disks);
        require(
            disks.all(|proof| {
                let image = &proof.target.image;
                let applied = self.applied.contains(&(id, image.clone()));
                (proof.kind == DiskKind::Internal && applied)
                    || self.chains.one_begins_with(layers, image)
            }),
            "goes back to a snapshot and leaves a disk as it is",
        )
    }
}
