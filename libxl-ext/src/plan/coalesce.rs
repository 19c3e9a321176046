//! What becomes of the layers when snapshots go: those that nothing needs are removed, and two of which
//! only the content of the upper one is needed become one, in the way that moves fewer bytes.

use super::revert::collect_garbage;
use super::{Merge, Plan, Step, StoreChange, Switch};
use crate::model::disk::{DiskKind, DiskTarget};
use crate::model::layer::{Backing, Into, Layer};
use crate::model::record::DomainRecord;
use crate::observe::Inventory;
use std::path::Path;

/// Plans it for the record `after`, which is what it will be then.
pub(super) fn coalesce(inventory: &Inventory, after: &mut DomainRecord, plan: &mut Plan) {
    loop {
        sweep(after, plan);
        let merge = after
            .mergeable()
            .find_map(|(layer, below)| choose(inventory, after, layer, below));
        let Some((merge, bytes)) = merge else { break };
        plan.cost.disk_copied += bytes;
        add(inventory, &merge, plan);
        apply_merge(after, &merge);
    }
    note_shared(after, plan);
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
    let touched = |image: &Path| {
        image == &*layer.image
            || image == &*below.image
            || above.iter().any(|layer| &*layer.image == image)
    };
    let as_recorded = after
        .proofs()
        .filter(|proof| proof.kind == DiskKind::External && touched(&proof.target.image))
        .all(|proof| {
            let written = facts(&proof.target.image).map(|facts| facts.written);
            proof.stamp.is_none() || proof.stamp == written
        });
    if !as_recorded {
        return None;
    }
    let onto = after
        .layer(&below.image)
        .and_then(|below| below.backing.clone());
    // An image of the user's may stand on another one of the user's, of which we know nothing.
    let ours_or_alone = after.layer(&below.image).is_some() || lower.backing.is_none();
    let (into, bytes) = match (facts(&layer.image), layer.merging) {
        // What an earlier attempt began is finished in the same way.
        (None, Some(Into::Below)) => (Into::Below, 0),
        (Some(upper), Some(Into::Below)) => (Into::Below, upper.allocated),
        (Some(_), Some(Into::Layer)) => (Into::Layer, lower.allocated),
        (None, _) => return None,
        (Some(upper), None) => {
            let stands_as_recorded = upper.backing.as_deref() == Some(&*below.image);
            if !stands_as_recorded || upper.virtual_size != lower.virtual_size {
                return None;
            }
            if lower.allocated < upper.allocated && ours_or_alone {
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
    let below = merge.layer.backing.clone();
    let live = inventory.live.as_ref().filter(|live| {
        let image = merge.layer.image.to_str();
        live.disks
            .iter()
            .any(|disk| disk.pdev_path.as_deref() == image)
    });
    if let (Into::Below, Some(live), Some(to)) = (merge.into, live, below) {
        // The guest must not reboot between the two: it would begin with the image that was left.
        let life = live.life;
        plan.steps
            .extend(live.monitor.map(|process| Step::HoldMonitor { process }));
        let layers = vec![merge.layer.clone()];
        let from = merge.layer.target();
        plan.steps.extend([
            Step::LeaveLayers { life, layers },
            Step::PointDisks {
                life,
                switches: vec![Switch { from, to }],
            },
        ]);
        plan.steps
            .extend(live.monitor.map(|process| Step::ReleaseMonitor { process }));
    }
    plan.steps.push(Step::Commit {
        change: StoreChange::Merged {
            merge: merge.clone(),
        },
    });
}

/// What a merge makes of the record.
pub(crate) fn apply_merge(record: &mut DomainRecord, merge: &Merge) {
    match merge.into {
        Into::Below => record.merge_down(&merge.layer.image),
        Into::Layer => record.merge_up(&merge.layer.image),
    }
}

/// Says what stays though no snapshot is left of it.
fn note_shared(after: &DomainRecord, plan: &mut Plan) {
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
