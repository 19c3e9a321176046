//! What becomes of the layers when snapshots go: those that nothing needs are removed, and two of which
//! only the content of the upper one is needed become one, in the way that moves fewer bytes.

use super::disks::require_disks_as_recorded;
use super::revert::collect_garbage;
use super::{Merge, Plan, Step, StoreChange};
use crate::error::Result;
use crate::model::disk::{DiskTarget, ImageFacts};
use crate::model::domain::DomainState;
use crate::model::layer::{Backing, Into, Layer};
use crate::model::record::DomainRecord;
use crate::observe::Inventory;
use std::path::Path;

/// Plans it for the record `after`, which is what it will be then.
///
/// # Errors
/// [`crate::ErrorKind::Stale`] if a disk of the running domain is not what the record says: nobody can say then
/// which content is wanted.
pub(super) fn coalesce(
    inventory: &Inventory,
    after: &mut DomainRecord,
    plan: &mut Plan,
) -> Result<()> {
    let mut seen = inventory.clone();
    loop {
        sweep(after, plan);
        let merge = after
            .mergeable()
            .find_map(|(layer, below)| choose(&seen, after, layer, below));
        let Some((merge, bytes)) = merge else { break };
        require_disks_as_recorded(inventory)?;
        note_way(&seen, after, &merge, plan);
        plan.cost.disk_copied += bytes;
        add(inventory, &merge, plan);
        apply_merge(after, &merge);
        look_ahead(&mut seen, &merge);
    }
    note_kept(after, plan);
    Ok(())
}

/// The images as they will be after a merge.
fn look_ahead(seen: &mut Inventory, merge: &Merge) {
    let facts = |seen: &mut Inventory, image: &Path, change: &dyn Fn(&mut ImageFacts)| {
        if let Some(Some(facts)) = seen.images.get_mut(image) {
            change(facts);
        }
    };
    let stand_on = |facts: &mut ImageFacts, below: Option<&Backing>| {
        facts.backing = below.map(|below| below.image.to_path_buf());
        facts.backing_format = below.map(|below| below.format.driver().to_owned());
    };
    match (merge.into, &merge.layer.backing) {
        (Into::Below, Some(below)) => {
            let moved = match seen.images.get(&*merge.layer.image) {
                Some(Some(upper)) => upper.allocated,
                _ => 0,
            };
            facts(seen, &below.image, &|facts| facts.allocated += moved);
            for above in &merge.above {
                facts(seen, &above.image, &|facts| {
                    stand_on(facts, Some(below));
                });
            }
        }
        (Into::Layer, Some(below)) => {
            let moved = match seen.images.get(&*below.image) {
                Some(Some(lower)) => lower.allocated,
                _ => 0,
            };
            facts(seen, &merge.layer.image, &|facts| {
                facts.allocated += moved;
                stand_on(facts, merge.onto.as_ref());
            });
        }
        (_, None) => {}
    }
}

/// Removes what nothing needs.
fn sweep(after: &mut DomainRecord, plan: &mut Plan) {
    let garbage = after.garbage();
    plan.steps.extend(collect_garbage(after));
    after.layers.retain(|layer| !garbage.contains(layer));
}

/// The cheaper way to make one image of a layer and the one below, with the bytes that it moves; none where
/// nobody can say that they are what they should be.
fn choose(
    inventory: &Inventory,
    after: &DomainRecord,
    layer: &Layer,
    below: &Backing,
) -> Option<(Merge, u64)> {
    let facts = |image: &Path| inventory.images.get(image)?.as_ref();
    let lower = facts(&below.image)?;
    let above: Vec<Layer> = after.layers_on(&layer.image).cloned().collect();
    // What is changed here must be what the record says it is, or a change behind our back would be hidden.
    // Snapshots know it, also those that go, and the layers that stand there.
    let layers = above.iter().chain([layer]).map(|layer| &*layer.image);
    if !layers
        .chain([&*below.image])
        .all(|image| inventory.record.is_as_written(image, facts(image)))
    {
        return None;
    }
    let onto = after
        .layer(&below.image)
        .and_then(|below| below.backing.clone());
    let ours = after.layer(&below.image).is_some();
    let (into, bytes) = match (facts(&layer.image), layer.merging) {
        // What an earlier attempt began is finished in the same way.
        (Some(upper), Some(Into::Below)) => (Into::Below, upper.allocated),
        (Some(_), Some(Into::Layer)) => (Into::Layer, lower.allocated),
        (None, _) => return None,
        (Some(upper), None) => {
            if !upper.stands_on(Some(below)) || upper.virtual_size != lower.virtual_size {
                return None;
            }
            // An image of the user's is the disk again when it can be: his configuration file names it.
            if lower.allocated < upper.allocated && ours {
                (Into::Layer, lower.allocated)
            } else {
                (Into::Below, upper.allocated)
            }
        }
    };
    let disk = match after.active_layer(&layer.base.image) {
        Some(active) => active.target(),
        None => DiskTarget {
            vdev: layer.vdev.clone(),
            image: layer.base.image.clone(),
            format: layer.base.format,
        },
    };
    let merge = Merge {
        layer: layer.clone(),
        into,
        onto,
        above,
        disk,
    };
    Some((merge, bytes))
}

fn add(inventory: &Inventory, merge: &Merge, plan: &mut Plan) {
    plan.steps.extend([
        Step::Commit {
            change: StoreChange::Merging {
                merge: merge.clone(),
            },
        },
        Step::MergeLayer {
            merge: merge.clone(),
        },
    ]);
    if merge.into == Into::Below && merge.layer.active {
        // Also for a domain that is off: it may be started until then.
        let live = inventory.live.as_ref();
        let monitor = live.and_then(|live| live.monitor);
        plan.steps
            .extend(monitor.map(|process| Step::HoldMonitor { process }));
        plan.steps.push(Step::LeaveLayers {
            life: live.map(|live| live.life),
            layers: vec![merge.layer.clone()],
            wake: live.is_none_or(|live| live.state == DomainState::Running),
        });
        plan.steps
            .extend(monitor.map(|process| Step::ReleaseMonitor { process }));
    }
    plan.steps.push(Step::Commit {
        change: StoreChange::Merged {
            merge: merge.clone(),
        },
    });
}

/// Says why more is moved than the smaller of two images holds.
fn note_way(seen: &Inventory, after: &DomainRecord, merge: &Merge, plan: &mut Plan) {
    let allocated = |image: &Path| Some(seen.images.get(image)?.as_ref()?.allocated);
    let Some(below) = merge.layer.backing.as_ref() else {
        return;
    };
    let is_base = merge.into == Into::Below && after.layer(&below.image).is_none();
    if is_base && allocated(&below.image) < allocated(&merge.layer.image) {
        plan.notes.push(format!(
            "{} is written to {}, though that is the smaller one: it is the image that the configuration file names",
            merge.layer.image.display(),
            below.image.display()
        ));
    }
}

/// What a merge makes of the record.
pub(crate) fn apply_merge(record: &mut DomainRecord, merge: &Merge) {
    match merge.into {
        Into::Below => record.merge_down(&merge.layer.image),
        Into::Layer => record.merge_up(&merge.layer.image, merge.onto.as_ref()),
    }
}

/// Says what stays though no snapshot is left of it, and why.
fn note_kept(after: &DomainRecord, plan: &mut Plan) {
    for (layer, below) in after.mergeable() {
        plan.notes.push(format!(
            "{} and {} stay two images: one of them is missing, or was changed by somebody else",
            layer.image.display(),
            below.image.display()
        ));
    }
    for layer in &after.layers {
        let needed = after
            .proofs()
            .any(|proof| proof.target.image == layer.image);
        let on = after.layers_on(&layer.image).count();
        if !needed && !layer.active && on > 0 {
            plan.notes.push(format!(
                "{} stays: {on} other images stand on it",
                layer.image.display()
            ));
        }
    }
}
