//! What each change makes of the record, also where a kill had come between it and the journal.

use super::perform::{Measured, Performer};
use super::pull;
use crate::error::Result;
use crate::model::layer::Layer;
use crate::model::record::DomainRecord;
use crate::plan::{StoreChange, apply_merge};

impl Performer<'_> {
    pub(super) fn commit(&self, change: &StoreChange, measured: &Measured) -> Result<()> {
        let mut record = self.store.load()?;
        apply(&mut record, change, measured);
        // As after a kill between the commit and the journal's word of it.
        #[cfg(test)]
        {
            let once = record.clone();
            apply(&mut record, change, measured);
            assert_eq!(record, once, "{change:?} is not the same when done twice");
        }
        self.restamp(&mut record, change)?;
        record.generation += 1;
        record.last_operation = Some(self.plan.id);
        self.store.save(&record)
    }
}

fn apply(record: &mut DomainRecord, change: &StoreChange, measured: &Measured) {
    match change {
        StoreChange::Add {
            record: new,
            layers,
        } => {
            if record.get(new.id).is_some() {
                return;
            }
            let mut new = (**new).clone();
            new.memory.clone_from(&measured.memory);
            for proof in &mut new.disks {
                proof.stamp = measured.stamps.get(&proof.target.image).copied();
            }
            record.add(new);
            let mut layers = layers.clone();
            for layer in &mut layers {
                let below = layer.backing.as_ref();
                let written = below.and_then(|below| measured.stamps.get(&below.image));
                layer.below_written = written.copied();
            }
            record.add_layers(&layers);
            record.make_disks(&layers.iter().map(Layer::target).collect::<Vec<_>>());
        }
        StoreChange::SetCurrent {
            id,
            layers,
            disks,
            accepted,
        } => {
            record.current = Some(*id);
            record.accept(accepted);
            record.add_layers(layers);
            record.make_disks(disks);
        }
        StoreChange::Edit {
            id,
            name,
            description,
        } => record.edit(*id, name.as_ref(), description.as_deref()),
        StoreChange::Contents { id, sums } => record.hold(*id, sums),
        StoreChange::KeepManaged { image } => {
            let mut image = (**image).clone();
            image.memory.clone_from(&measured.memory);
            for proof in &mut image.disks {
                proof.stamp = measured.stamps.get(&proof.target.image).copied();
            }
            record.managed = Some(image);
        }
        StoreChange::DropManaged { id } => {
            if record.managed.as_ref().is_some_and(|it| it.id == *id) {
                record.managed = None;
            }
        }
        StoreChange::Merging { merge } => {
            record.forget_last_writes(&merge.images());
            record.mark_merging(&merge.layer.image, merge.into);
        }
        StoreChange::Merged { merge } => apply_merge(record, merge),
        StoreChange::Pull { of } => pull::apply(record, of, measured.pulled),
        StoreChange::Stopped => {}
        StoreChange::ForgetLayers { images } => {
            record.forget_layers(images);
        }
        StoreChange::MarkDeleting { ids, changing } => {
            record.mark_deleting(ids);
            record.forget_last_writes(&changing.iter().map(|image| &**image).collect::<Vec<_>>());
        }
        StoreChange::Remove {
            ids,
            left_over,
            tidied,
            changed,
        } => {
            record.remember_last_writes(changed);
            for id in ids {
                record.remove(*id);
            }
            record
                .left_over
                .retain(|left| !tidied.contains(left) && !left_over.contains(left));
            record.left_over.extend(left_over.iter().cloned());
        }
    }
}
