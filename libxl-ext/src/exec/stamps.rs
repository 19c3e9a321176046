//! When images were last written to: what is taken down of it, by which their states are known again, and what is
//! refused after a kill because somebody wrote since.

use super::journal::Journal;
use super::perform::{Measured, Performer};
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::{DiskTarget, Stamp};
use crate::model::domain::DomainLife;
use crate::model::layer::{Backing, Layer};
use crate::model::name::SnapshotId;
use crate::model::record::DomainRecord;
use crate::plan::StoreChange;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

/// How long after its last entry in the journal an operation may still have written to images: QEMU
/// flushes when it ends.
const LAST_WRITES: Duration = Duration::from_secs(60);

impl Performer<'_> {
    pub(super) fn read_stamps(
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

    /// The images below the layers are not written to any more: when they were is what they are known by.
    pub(super) fn read_last_writes(&self, layers: &[Layer], measured: &mut Measured) -> Result<()> {
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

    /// The disks of a domain that is off have become the state of a snapshot. Who started it meanwhile may have
    /// written to them before or after that, nobody knows.
    pub(super) fn settle_images(
        &self,
        id: SnapshotId,
        disks: &[DiskTarget],
        layers: &[Layer],
        measured: &mut Measured,
    ) -> Result<()> {
        let images = &self.ports.images;
        let below = layers.iter().filter_map(Layer::below);
        for disk in disks.iter().cloned().chain(below) {
            images.require_closed(&disk.image)?;
        }
        for disk in disks {
            images.make_durable(&disk.image)?;
            let facts = images.facts(&disk.image, disk.format)?;
            let held = facts.and_then(|facts| facts.snapshot(&id.tag()).cloned());
            let held = held.ok_or_else(|| {
                Error::new(
                    ErrorKind::Toolstack,
                    format!("there is no snapshot {} in {disk}", id.tag()),
                )
            })?;
            measured.stamps.insert(disk.image.clone(), held.stamp);
        }
        self.read_last_writes(layers, measured)?;
        self.require_off()
    }

    /// The disks of a domain that was saved. Who started it meanwhile may have written to them.
    pub(super) fn stamp_images(&self, disks: &[DiskTarget], measured: &mut Measured) -> Result<()> {
        let images = &self.ports.images;
        for disk in disks {
            images.require_closed(&disk.image)?;
            images.make_durable(&disk.image)?;
            if let Some(stamp) = images.last_write(&disk.image) {
                measured.stamps.insert(disk.image.clone(), stamp);
            }
        }
        self.require_off()
    }

    /// Images that a change of ours wrote to are known by their last writes again.
    pub(super) fn restamp(&self, record: &mut DomainRecord, change: &StoreChange) -> Result<()> {
        let changed: Vec<_> = match change {
            StoreChange::Merged { merge } => merge.images(),
            StoreChange::Remove { changed, .. } => changed.iter().map(|image| &**image).collect(),
            // All of which nobody knew when they were last written to, since we were about to.
            StoreChange::Stopped => record.images().collect(),
            _ => return Ok(()),
        };
        let changed: BTreeSet<Box<Path>> = changed.into_iter().map(Box::from).collect();
        let images = &self.ports.images;
        let mut seen: BTreeMap<Box<Path>, Option<Stamp>> = BTreeMap::new();
        for (Backing { image, format }, stamp) in record.last_writes_mut() {
            if stamp.is_some() || !changed.contains(&image) {
                continue;
            }
            *stamp = match seen.entry(image) {
                Entry::Occupied(seen) => *seen.get(),
                Entry::Vacant(unseen) => {
                    let image = unseen.key();
                    if *change != StoreChange::Stopped {
                        images.make_durable(image)?;
                    }
                    let facts = images.facts(image, format)?;
                    *unseen.insert(facts.map(|facts| facts.written))
                }
            };
        }
        Ok(())
    }

    /// After a kill: a memory image fits the disks as they were left. If somebody used them since, it does
    /// not. Our own domain is gone by the time that images are set back.
    pub(super) fn refuse_if_used_since(&self, disks: &[DiskTarget]) -> Result<()> {
        if self.killed_at.is_none() || self.images_are_ours.get() {
            return Ok(());
        }
        if let Some(view) = self.find_by_name()? {
            return Err(self.usurped(view));
        }
        self.refuse_if_written_since(disks.iter().map(|disk| &disk.image))?;
        self.images_are_ours.set(true);
        self.write_ourselves()
    }

    pub(super) fn refuse_if_written_since<'a>(
        &self,
        images: impl Iterator<Item = &'a Box<Path>>,
    ) -> Result<()> {
        let Some(killed_at) = self.killed_at else {
            return Ok(());
        };
        for image in images {
            let written = self.ports.images.last_write(image);
            if written.is_some_and(|stamp| stamp.time() > killed_at + LAST_WRITES) {
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

    /// After a kill: if somebody wrote to the image below and not to the layer, a merge would mix the two.
    pub(super) fn refuse_if_below_is_newer(&self, layer: &Layer) -> Result<()> {
        let (Some(killed_at), Some(below)) = (self.killed_at, &layer.backing) else {
            return Ok(());
        };
        let written = |image: &Path| self.ports.images.last_write(image).map(Stamp::time);
        // A merge in QEMU goes on without us, for as long as the guest does.
        let last = written(&layer.image).map_or(killed_at, |time| time.max(killed_at));
        if written(&below.image).is_some_and(|time| time > last + LAST_WRITES) {
            let (layer, below) = (layer.image.display(), below.image.display());
            return Err(Error::new(
                ErrorKind::NeedsRepair,
                format!("{below} was written to after its merge with {layer} had been interrupted"),
            )
            .hint(format!(
                "keep a copy of both; to go on with what is in {layer}, `touch {layer}` and give any command; \
                 to go on with {below} alone, `truncate -s 0 {layer}` and give any command"
            )));
        }
        self.write_ourselves()
    }

    /// Images were found as they were left: what is written to them from now on is ours, and who comes after another
    /// kill must not take it for a stranger's.
    pub(super) fn write_ourselves(&self) -> Result<()> {
        if self.killed_at.is_some() {
            self.has_written.set(true);
            Journal::renew(self.store)?;
        }
        Ok(())
    }
}
