//! The part of [`super::check`] that follows the layers through a plan: none is lost while something stands
//! on it, none is written to that others stand on, and none is a disk that nobody would find again.

use super::check::require;
use super::coalesce::apply_merge;
use super::{Merge, PullChange, PullStep, Switch};
use crate::model::disk::DiskTarget;
use crate::model::layer::{Into, Layer};
use crate::model::name::SnapshotId;
use crate::model::pull::PullState;
use crate::model::record::{DiskProof, DomainRecord, SnapshotRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The layers after the steps so far.
pub(super) struct Chains {
    /// What the store will say.
    record: DomainRecord,
    /// Layers that were made, with the image whose content they begin with.
    made: BTreeMap<Box<Path>, Box<Path>>,
    /// Images that the domain no longer writes to, since it goes on in layers.
    left: BTreeSet<Box<Path>>,
    /// Layers that the domain writes to, without anybody having been told.
    untold: BTreeSet<Box<Path>>,
    removed: BTreeSet<Box<Path>>,
    /// Files that are not there.
    absent: BTreeSet<Box<Path>>,
    /// A merge that is not recorded yet.
    merging: Option<Merge>,
    /// Layers that were disks and are not any more.
    departed: BTreeSet<Box<Path>>,
    /// The images that are disks instead of them.
    left_for: BTreeSet<Box<Path>>,
    /// Images that were made to stand on less.
    completed: BTreeSet<Box<Path>>,
}

impl Chains {
    pub(super) fn of(record: &DomainRecord) -> Self {
        Self {
            record: record.clone(),
            made: BTreeMap::new(),
            left: BTreeSet::new(),
            untold: BTreeSet::new(),
            removed: BTreeSet::new(),
            absent: BTreeSet::new(),
            merging: None,
            departed: BTreeSet::new(),
            left_for: BTreeSet::new(),
            completed: BTreeSet::new(),
        }
    }

    /// Somebody looks whether there are such files.
    pub(super) fn require_absent(&mut self, images: &[Box<Path>]) {
        self.absent.extend(images.iter().cloned());
    }

    /// A layer is made, on the image below it or of the content of `from`.
    pub(super) fn make(&mut self, layer: &Layer, from: Option<&Path>) -> Result<(), &'static str> {
        require(
            self.record.layer(&layer.image).is_none() && !self.made.contains_key(&layer.image),
            "makes an image that is there",
        )?;
        require(
            self.absent.contains(&layer.image),
            "makes an image of which nobody knows whether it is there: taking that back would remove it",
        )?;
        let below = layer.backing.as_ref().map(|below| &*below.image);
        let begins_with = from.or(below).ok_or("makes an image of nothing")?;
        self.made.insert(layer.image.clone(), begins_with.into());
        Ok(())
    }

    /// The domain goes on in layers.
    pub(super) fn go_on_in(&mut self, layers: &[Layer]) -> Result<(), &'static str> {
        for layer in layers {
            let below = self.made.get(&layer.image);
            let below = below.ok_or("goes on in an image that was not made")?;
            self.left.insert(below.clone());
            self.untold.insert(layer.image.clone());
        }
        Ok(())
    }

    /// The domain is off, and will go on in layers: there is nobody to tell yet.
    pub(super) fn set_aside(&mut self, layers: &[Layer]) -> Result<(), &'static str> {
        for layer in layers {
            let below = self.made.get(&layer.image);
            let below = below.ok_or("goes on in an image that was not made")?;
            self.left.insert(below.clone());
        }
        Ok(())
    }

    /// libxl is told.
    pub(super) fn point(&mut self, switches: &[Switch]) {
        for switch in switches {
            self.untold.remove(&switch.to.image);
        }
    }

    /// The guest may go on only in images that the next start finds.
    pub(super) fn require_pointed(&self) -> Result<(), &'static str> {
        require(
            self.untold.is_empty(),
            "lets the guest go on in a layer that its next start would not find",
        )
    }

    /// Whether the guest went on elsewhere.
    pub(super) fn is_left(&self, image: &Path) -> bool {
        self.left.contains(image)
    }

    /// Whether a restored domain's disk begins with the state of a snapshot's.
    pub(super) fn made_of(&self, switches: &[Switch], proof: &DiskProof) -> bool {
        let mut switches = switches.iter();
        switches
            .find(|switch| switch.from.vdev == proof.target.vdev)
            .and_then(|switch| self.made.get(&switch.to.image))
            .is_some_and(|from| *from == proof.target.image)
    }

    /// Whether one of the layers begins with the state in an image.
    pub(super) fn one_begins_with(&self, layers: &[Layer], image: &Path) -> bool {
        layers.iter().any(|layer| {
            self.made
                .get(&layer.image)
                .is_some_and(|from| **from == *image)
        })
    }

    pub(super) fn commit(
        &mut self,
        added: Option<&SnapshotRecord>,
        layers: &[Layer],
        disks: &[DiskTarget],
    ) -> Result<(), &'static str> {
        require(
            layers
                .iter()
                .all(|layer| self.made.contains_key(&layer.image)),
            "records an image that was not made",
        )?;
        self.record.snapshots.extend(added.cloned());
        self.record.add_layers(layers);
        self.record.make_disks(disks);
        require(
            self.made
                .keys()
                .all(|made| self.record.layer(made).is_some()),
            "leaves an image that nothing explains",
        )?;
        require(
            disks.iter().all(|disk| !self.record.is_frozen(&disk.image)),
            "makes an image the disk that others stand on",
        )
    }

    /// The deletion of a snapshot has begun.
    pub(super) fn mark_deleting(&mut self, id: SnapshotId) {
        self.record.mark_deleting(&[id]);
    }

    /// Two images become one.
    pub(super) fn merge(&self, merge: &Merge) -> Result<(), &'static str> {
        require(
            self.merging.as_ref() == Some(merge),
            "merges images without a word about it in the record",
        )
    }

    /// It is recorded that two images are about to become one.
    pub(super) fn begin(&mut self, merge: &Merge) -> Result<(), &'static str> {
        require(
            self.merging.is_none(),
            "merges while another merge is not recorded",
        )?;
        require(
            self.record.mergeable().any(|(layer, below)| {
                layer.image == merge.layer.image && Some(below) == merge.layer.backing.as_ref()
            }),
            "merges an image that something else needs",
        )?;
        let above = self
            .record
            .layers_on(&merge.layer.image)
            .map(|above| &above.image);
        require(
            above.eq(merge.above.iter().map(|above| &above.image)),
            "merges an image and forgets what stands on it",
        )?;
        let below = merge.layer.backing.as_ref();
        let onto = below.and_then(|below| self.record.layer(&below.image)?.backing.clone());
        require(
            merge.onto == onto,
            "merges an image onto another one than the next",
        )?;
        self.merging = Some(merge.clone());
        Ok(())
    }

    /// Disks go on in the images below.
    pub(super) fn leave(&mut self, layers: &[Layer]) -> Result<(), &'static str> {
        for layer in layers {
            let merged = self.merging.as_ref();
            require(
                merged.is_some_and(|merge| merge.layer == *layer && merge.into == Into::Below),
                "leaves a layer that was not merged into the image below",
            )?;
            let below = layer.backing.as_ref().ok_or("leaves a layer for nothing")?;
            self.left_for.insert(below.image.clone());
            self.departed.insert(layer.image.clone());
        }
        Ok(())
    }

    /// Whether the domain went on in the image when it left a layer.
    pub(super) fn was_left_for(&self, image: &Path) -> bool {
        self.left_for.contains(image)
    }

    /// Nothing is left half done.
    pub(super) fn require_settled(&self) -> Result<(), &'static str> {
        require(self.merging.is_none(), "a merge would be left unrecorded")?;
        self.require_pointed()
    }

    /// Whether the domain left a layer that was its disk.
    pub(super) fn has_departed(&self, image: &Path) -> bool {
        self.departed.contains(image)
    }

    /// It is recorded that two images are one.
    pub(super) fn merged(&mut self, merge: &Merge) -> Result<(), &'static str> {
        require(
            self.merging.take().as_ref() == Some(merge),
            "records a merge that was not made",
        )?;
        self.require_pointed()?;
        require(
            merge.into == Into::Layer
                || !merge.layer.active
                || self.departed.contains(&merge.layer.image),
            "forgets a layer that a domain writes to",
        )?;
        apply_merge(&mut self.record, merge);
        Ok(())
    }

    /// A file is removed.
    pub(super) fn remove(&mut self, image: &Path) -> Result<(), &'static str> {
        let layer = self.record.layer(image);
        let layer = layer.ok_or("removes an image that is not ours")?;
        require(!layer.active, "removes a disk")?;
        let is_gone = |layer: &Layer| self.removed.contains(&layer.image);
        require(
            self.record.layers_on(image).all(is_gone),
            "removes an image that others stand on",
        )?;
        let mut proofs = self.record.proofs();
        require(
            proofs.all(|proof| &*proof.target.image != image),
            "removes an image that holds a snapshot's state",
        )?;
        self.removed.insert(image.into());
        Ok(())
    }

    /// A disk gets what it lacks.
    pub(super) fn pull(&mut self, step: &PullStep) -> Result<(), &'static str> {
        let pull = step.pull();
        let disk = &*pull.disk.image;
        let is_work = !matches!(
            step,
            PullStep::Hold { .. } | PullStep::GoOn { .. } | PullStep::End { .. }
        );
        require(!is_work || !pull.from.is_empty(), "pulls out of nothing")?;
        require(
            !is_work || !self.record.is_frozen(disk),
            "pulls into an image that others stand on",
        )?;
        let mut proofs = self.record.proofs();
        require(
            !is_work || !proofs.any(|proof| &*proof.target.image == disk),
            "pulls into an image whose snapshots read through it",
        )?;
        if let PullStep::Release { images, .. } = step {
            let mut named = self.record.images();
            let is_released = |image: &Path| images.iter().any(|it| &*it.image == image);
            require(
                !named.any(is_released),
                "removes an image that the record names",
            )?;
            return require(
                self.completed.contains(disk),
                "removes what a disk may still stand on",
            );
        }
        if matches!(step, PullStep::Complete { .. }) {
            self.completed.insert(pull.disk.image.clone());
        }
        Ok(())
    }

    /// It is recorded what became of a pull.
    pub(super) fn pull_changed(&mut self, change: &PullChange) -> Result<(), &'static str> {
        if let PullChange::Ended {
            pull,
            state: PullState::Completed,
            ..
        } = change
        {
            require(
                self.completed.contains(&pull.disk.image),
                "takes a disk for pulled that may still stand on others",
            )?;
            self.record.pulled(&pull.disk.image, pull.onto.as_ref());
        }
        Ok(())
    }

    /// The record no longer explains them.
    pub(super) fn forget(&mut self, images: &[Box<Path>]) -> Result<(), &'static str> {
        require(
            images.iter().all(|image| self.removed.contains(image)),
            "forgets an image that is still there",
        )?;
        self.record.forget_layers(images);
        Ok(())
    }
}
