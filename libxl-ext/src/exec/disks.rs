//! What the steps do that work on images: those that a QEMU has open, and those that nobody has.

use super::perform::{LAST_WRITES, Measured, Performer};
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::{DiskKind, DiskTarget};
use crate::model::domain::DomainLife;
use crate::model::layer::{Into, Layer};
use crate::model::name::SnapshotId;
use crate::model::record::{DiskProof, DomainRecord};
use crate::plan::{Extracted, Merge, Step, StoreChange, Switch};
use std::path::Path;

impl Performer<'_> {
    /// Whether a disk is still what the snapshot says.
    pub(super) fn prove_disk(&self, id: SnapshotId, proof: &DiskProof) -> Result<()> {
        let DiskTarget {
            image,
            format,
            vdev,
        } = &proof.target;
        let facts = self.ports.images.facts(image, *format)?;
        let holds = facts.is_some_and(|facts| match proof.kind {
            DiskKind::Internal => facts.snapshot(&id.tag()).is_some(),
            DiskKind::External => proof.stamp.is_none_or(|stamp| stamp == facts.written),
        });
        if holds {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            match proof.kind {
                DiskKind::Internal => {
                    format!("{} ({vdev}) no longer holds {}", image.display(), id.tag())
                }
                DiskKind::External => {
                    format!("{} ({vdev}) is gone or was written to", image.display())
                }
            },
        ))
    }

    pub(super) fn create_layers(&self, layers: &[Layer]) -> Result<()> {
        layers
            .iter()
            .try_for_each(|layer| self.ports.images.create_layer(layer))
    }

    pub(super) fn extract_layers(&self, id: SnapshotId, layers: &[Extracted]) -> Result<()> {
        layers.iter().try_for_each(|made| {
            self.ports
                .images
                .extract(&made.from, &id.tag(), &made.layer)
        })
    }

    pub(super) fn merge_layer(&self, merge: &Merge) -> Result<()> {
        let layer = &merge.layer;
        let view = self.find_by_name()?;
        let nodes = view.map(|view| self.ports.block.nodes(view.life));
        let is_open = |image: &Path| match &nodes {
            Some(Ok(nodes)) => nodes.iter().any(|node| &*node.image == image),
            _ => false,
        };
        let images = &self.ports.images;
        match view {
            Some(view) if is_open(&layer.image) => self.ports.block.merge(view.life, merge)?,
            // It was left before: nothing else stands on the image below, and that is open.
            Some(_)
                if layer
                    .backing
                    .as_ref()
                    .is_some_and(|below| is_open(&below.image)) => {}
            _ if images.facts(&layer.image, layer.target().format)?.is_none() => {}
            _ => match merge.into {
                Into::Below => images.commit_layer(layer)?,
                Into::Layer => images.rebase_layer(layer, merge.onto.as_ref(), true)?,
            },
        }
        if merge.into == Into::Layer {
            return Ok(());
        }
        // Those that a QEMU has open it has put onto the image below itself.
        let mut closed = merge.above.iter().filter(|above| !is_open(&above.image));
        closed.try_for_each(|above| images.rebase_layer(above, layer.backing.as_ref(), false))
    }

    /// Lets a monitor go on that was held for a merge which is not carried on: libxl is told which image the
    /// disk is, since a reboot begins with that. `at` is the step that failed.
    pub(super) fn let_monitor_go(&self, at: usize) -> Result<()> {
        let steps = &self.plan.steps;
        let holds = |step: &Step| match step {
            Step::HoldMonitor { .. } => Some(true),
            Step::ReleaseMonitor { .. } => Some(false),
            _ => None,
        };
        let before = steps.iter().take(at).rev().find_map(holds);
        let begun = steps.get(at).and_then(holds);
        if before != Some(true) && begun != Some(true) {
            return Ok(());
        }
        for step in &steps[at..] {
            match step {
                Step::PointDisks { life, switches } if self.look(*life)?.is_some() => {
                    let nodes = self.ports.block.nodes(*life)?;
                    let is_open = |image: &Path| nodes.iter().any(|node| &*node.image == image);
                    let mut switches = switches.clone();
                    switches
                        .retain(|switch| is_open(&switch.to.image) && !is_open(&switch.from.image));
                    self.ports.toolstack.point_disks(life.domid, &switches)?;
                }
                Step::ReleaseMonitor { process } => return self.ports.monitors.release(*process),
                _ => {}
            }
        }
        Ok(())
    }

    /// Images that a change of ours wrote to are known by their last writes again.
    pub(super) fn restamp(&self, record: &mut DomainRecord, change: &StoreChange) -> Result<()> {
        let changed: Vec<_> = match change {
            StoreChange::Merged { merge } => merge.images(),
            StoreChange::Remove { changed, .. } => changed.iter().map(|image| &**image).collect(),
            _ => return Ok(()),
        };
        let proofs = record
            .snapshots
            .iter_mut()
            .flat_map(|snapshot| &mut snapshot.disks);
        for proof in proofs.filter(|proof| proof.kind == DiskKind::External) {
            let DiskTarget { image, format, .. } = &proof.target;
            if changed.contains(&&**image) {
                self.ports.images.make_durable(image)?;
                let facts = self.ports.images.facts(image, *format)?;
                proof.stamp = facts.map(|facts| facts.written);
            }
        }
        Ok(())
    }

    pub(super) fn remove_layers(&self, layers: &[Layer]) -> Result<()> {
        layers
            .iter()
            .try_for_each(|layer| self.ports.images.remove_layer(layer))
    }

    pub(super) fn snapshot_disks(
        &self,
        life: DomainLife,
        id: SnapshotId,
        disks: &[DiskTarget],
        layers: &[Layer],
        measured: &mut Measured,
    ) -> Result<()> {
        let below = layers.iter().filter_map(Layer::below);
        self.refuse_if_open_twice(
            life,
            &disks.iter().cloned().chain(below).collect::<Vec<_>>(),
        )?;
        self.ports.block.snapshot(life, &id.tag(), disks, layers)?;
        self.read_stamps(life, id, disks, measured)?;
        self.read_last_writes(layers, measured)
    }

    /// The images below the layers are not written to any more: when they were is what they are known by.
    fn read_last_writes(&self, layers: &[Layer], measured: &mut Measured) -> Result<()> {
        for below in layers.iter().filter_map(|layer| layer.backing.as_ref()) {
            self.ports.images.make_durable(&below.image)?;
            let facts = self.ports.images.facts(&below.image, below.format)?;
            let facts = facts.ok_or_else(|| {
                Error::new(
                    ErrorKind::Toolstack,
                    format!("{} has gone", below.image.display()),
                )
            })?;
            measured.stamps.insert(below.image.clone(), facts.written);
        }
        Ok(())
    }

    /// A domain that is gone, or another one, needs not be told.
    pub(super) fn point_disks(&self, life: DomainLife, switches: &[Switch]) -> Result<()> {
        match self.look(life)? {
            Some(_) => self.ports.toolstack.point_disks(life.domid, switches),
            None => Ok(()),
        }
    }

    pub(super) fn leave_layers(&self, life: DomainLife, layers: &[Layer]) -> Result<()> {
        let view = self.find_by_name()?;
        let nodes = view.map(|view| self.ports.block.nodes(view.life));
        for layer in layers {
            let is_open = |image: &Path| match &nodes {
                Some(Ok(nodes)) => nodes.iter().any(|node| &*node.image == image),
                _ => false,
            };
            let below = layer.backing.as_ref();
            match view {
                Some(view) if is_open(&layer.image) => {
                    self.ports.block.leave_layer(view.life, layer)?;
                    // From here on the image below is newer: nobody may merge the layer into it again.
                    self.ports.images.remove_layer(layer)?;
                }
                // It was never put on top.
                Some(view) if view.life == life && below.is_some_and(|b| is_open(&b.image)) => {}
                _ if self
                    .ports
                    .images
                    .facts(&layer.image, layer.target().format)?
                    .is_none() => {}
                _ => {
                    // What the guest wrote to it belongs onto the image as it was left, and to no other.
                    self.refuse_if_written_since(below.map(|below| &below.image).into_iter())?;
                    self.ports.images.commit_layer(layer)?;
                }
            }
        }
        Ok(())
    }

    fn read_stamps(
        &self,
        life: DomainLife,
        id: SnapshotId,
        disks: &[DiskTarget],
        measured: &mut Measured,
    ) -> Result<()> {
        let nodes = self.ports.block.nodes(life)?;
        let tag = id.tag();
        for disk in disks {
            let snapshot = nodes
                .iter()
                .filter(|node| node.image == disk.image)
                .find_map(|node| node.facts.snapshot(&tag))
                .ok_or_else(|| {
                    Error::new(
                        ErrorKind::Toolstack,
                        format!("QEMU made no snapshot {tag} in {}", disk.image.display()),
                    )
                })?;
            measured.stamps.insert(disk.image.clone(), snapshot.stamp);
        }
        Ok(())
    }

    pub(super) fn apply_images(&self, id: SnapshotId, disks: &[DiskTarget]) -> Result<()> {
        self.refuse_if_used_since(disks)?;
        disks
            .iter()
            .try_for_each(|disk| self.ports.images.apply_snapshot(disk, &id.tag()))
    }

    /// After a kill: a memory image fits the disks as they were left. If somebody used them since, it does
    /// not. Our own domain is gone by the time that images are set back.
    fn refuse_if_used_since(&self, disks: &[DiskTarget]) -> Result<()> {
        if self.killed_at.is_none() || self.images_are_ours.get() {
            return Ok(());
        }
        if let Some(view) = self.find_by_name()? {
            return Err(self.usurped(view));
        }
        self.refuse_if_written_since(disks.iter().map(|disk| &disk.image))?;
        self.images_are_ours.set(true);
        Ok(())
    }

    pub(super) fn refuse_if_written_since<'a>(
        &self,
        images: impl Iterator<Item = &'a Box<Path>>,
    ) -> Result<()> {
        let Some(killed_at) = self.killed_at else {
            return Ok(());
        };
        for image in images {
            let written = std::fs::metadata(image).and_then(|image| image.modified());
            if written.is_ok_and(|time| time > killed_at + LAST_WRITES) {
                return Err(Error::new(
                    ErrorKind::NeedsRepair,
                    format!(
                        "{} was written to after the operation had been interrupted",
                        image.display()
                    ),
                )
                .hint(self.ways_out()));
            }
        }
        Ok(())
    }

    pub(super) fn delete_tags(&self, id: SnapshotId, disks: &[DiskTarget]) -> Result<()> {
        let tag = id.tag();
        let live = self.changeable_nodes(disks)?;
        for disk in disks {
            match &live {
                Some((view, Some(nodes))) if nodes.iter().any(|node| node.image == disk.image) => {
                    self.ports.block.delete_snapshot(view.life, &tag, disk)?;
                }
                _ => self.ports.images.delete_snapshot(disk, &tag)?,
            }
        }
        Ok(())
    }
}
