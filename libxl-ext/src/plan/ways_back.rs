//! How each disk of a snapshot gets back to its state: in place, on top of it, or as a copy.

use super::disks::{beside, target};
use super::{Extracted, Step, Switch};
use crate::model::disk::{DeviceDisk, DiskKind, DiskTarget, Stamp};
use crate::model::layer::{Backing, Layer};
use crate::model::name::SnapshotId;
use crate::model::record::{DiskProof, DomainRecord, SnapshotRecord};
use crate::observe::Inventory;
use std::path::Path;

/// The ways of all disks of a snapshot.
pub(super) struct WaysBack {
    /// Images that are set back: nothing stands on them.
    pub(super) applied: Vec<DiskTarget>,
    /// Layers on images that hold the state themselves.
    on_top: Vec<Layer>,
    /// Copies of states inside images that something stands on.
    extracted: Vec<Extracted>,
    /// The disks for which the memory image may name another image.
    pub(super) switches: Vec<Switch>,
}

impl WaysBack {
    /// Chooses them. The new layers are called after `fresh`.
    pub(super) fn of(inventory: &Inventory, snapshot: &SnapshotRecord, fresh: SnapshotId) -> Self {
        let record = &inventory.record;
        let mut ways = Self {
            applied: Vec::new(),
            on_top: Vec::new(),
            extracted: Vec::new(),
            switches: Vec::new(),
        };
        for (proof, described) in snapshot.disks.iter().zip(&snapshot.snapshot.disks) {
            let from = &proof.target;
            let base = record.base_of(from);
            let layer = Layer {
                vdev: from.vdev.clone(),
                image: beside(&base.image, fresh),
                backing: None,
                // The domain that is set aside does not write to it either.
                below_written: written(inventory, &from.image),
                base,
                active: false,
                merging: None,
            };
            let to: Backing = match proof.kind {
                DiskKind::Internal if !record.is_frozen(&from.image) => {
                    ways.applied.push(from.clone());
                    from.into()
                }
                DiskKind::Internal => {
                    let to = (&layer.target()).into();
                    // It holds all of its content itself; on the image it can go back into that one day.
                    let backing = Some(from.into());
                    let layer = Layer { backing, ..layer };
                    let from = from.clone();
                    ways.extracted.push(Extracted { from, layer });
                    to
                }
                DiskKind::External => {
                    let to = (&layer.target()).into();
                    let backing = Some(from.into());
                    ways.on_top.push(Layer { backing, ..layer });
                    to
                }
            };
            // What the memory image names was the disk at that instant.
            let named = described.disk.pdev_path.as_deref().map(Path::new);
            if let Some(named) = named.filter(|named| **named != *to.image) {
                let from = DiskTarget {
                    image: named.into(),
                    ..from.clone()
                };
                ways.switches.push(Switch { from, to });
            }
        }
        // A disk that the snapshot leaves out is as it is now.
        let is_in = |layer: &Layer| {
            let mut disks = snapshot.disks.iter();
            disks.any(|proof| record.base_of(&proof.target).image == layer.base.image)
        };
        for active in record
            .layers
            .iter()
            .filter(|layer| layer.active && !is_in(layer))
        {
            let same_base = |layer: &&Layer| layer.base == active.base && !layer.active;
            let earlier = record.layers.iter().filter(same_base).map(Layer::target);
            let base = DiskTarget {
                vdev: active.vdev.clone(),
                image: active.base.image.clone(),
                format: active.base.format,
            };
            for from in earlier.chain([base]) {
                let to = (&active.target()).into();
                ways.switches.push(Switch { from, to });
            }
        }
        ways
    }

    /// What is done before the present domain goes.
    pub(super) fn preparation(&self, id: SnapshotId) -> Vec<Step> {
        let create = Step::CreateLayers {
            layers: self.on_top.clone(),
        };
        let extract = Step::ExtractLayers {
            id,
            layers: self.extracted.clone(),
        };
        let images: Vec<_> = self.layers().into_iter().map(|layer| layer.image).collect();
        let mut steps = Vec::new();
        steps.extend((!images.is_empty()).then_some(Step::RequireAbsent { images }));
        steps.extend((!self.on_top.is_empty()).then_some(create));
        steps.extend((!self.extracted.is_empty()).then_some(extract));
        steps
    }

    /// Every layer that is made.
    pub(super) fn layers(&self) -> Vec<Layer> {
        let extracted = self.extracted.iter().map(|made| &made.layer);
        self.on_top.iter().chain(extracted).cloned().collect()
    }

    /// What the snapshot's disks are afterwards.
    pub(super) fn disks(&self) -> Vec<DiskTarget> {
        let layers = self.layers();
        let layers = layers.iter().map(Layer::target);
        self.applied.iter().cloned().chain(layers).collect()
    }

    /// The record with the layers, after the revert.
    pub(super) fn record(&self, record: &mut DomainRecord) {
        record.add_layers(&self.layers());
        record.make_disks(&self.disks());
    }

    /// Bytes that are copied, at most: a state has what it did not change from the images below its own.
    pub(super) fn copied(&self, inventory: &Inventory) -> u64 {
        let facts = |image: &Path| inventory.images.get(image)?.as_ref();
        let size = |made: &Extracted| {
            let from = &*made.from.image;
            let chain = inventory.record.chain(from);
            let allocated = chain.iter().filter_map(|image| facts(image));
            let allocated: u64 = allocated.map(|facts| facts.allocated).sum();
            Some(allocated.min(facts(from)?.virtual_size))
        };
        self.extracted.iter().filter_map(size).sum()
    }
}

/// When an image was last written to.
fn written(inventory: &Inventory, image: &Path) -> Option<Stamp> {
    let facts = inventory.images.get(image)?.as_ref()?;
    Some(facts.written)
}

/// Whether a domain's disk is the one of a snapshot, perhaps with other layers.
pub(super) fn same_base(inventory: &Inventory, disk: &DeviceDisk, proof: &DiskProof) -> bool {
    let record = &inventory.record;
    target(disk)
        .is_ok_and(|disk| record.base_of(&disk).image == record.base_of(&proof.target).image)
}
