//! Are a domain's snapshots what they were when they were taken? Everything is read, nothing changed.

use crate::error::Error;
use crate::event::Observer;
use crate::memory;
use crate::model::disk::{DiskKind, ImageFacts};
use crate::model::record::{DiskProof, DomainRecord, RecordState, SnapshotRecord};
use crate::observe::Inventory;
use crate::store::DomainStore;
use serde::Serialize;
use std::path::Path;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The snapshot that cannot be relied on because of it; none if no snapshot is concerned.
    pub snapshot: Option<String>,
    /// What it is, and of what.
    pub what: String,
}

/// Looks at the snapshots of the given name, or at all. The memory images are read whole.
pub(crate) fn verify(
    inventory: &Inventory,
    store: &DomainStore,
    name: Option<&str>,
    observer: &dyn Observer,
) -> Vec<Finding> {
    let record = &inventory.record;
    let chosen = record
        .snapshots
        .iter()
        .filter(|snapshot| name.is_none_or(|name| snapshot.name() == name));
    let mut findings = Vec::new();
    for snapshot in chosen {
        let found = of_snapshot(inventory, store, snapshot, observer);
        findings.extend(found.into_iter().map(|what| Finding {
            snapshot: Some(snapshot.name().to_owned()),
            what,
        }));
    }
    if name.is_none() {
        findings.extend(disks(inventory).into_iter().map(|what| Finding {
            snapshot: None,
            what,
        }));
    }
    findings
}

fn of_snapshot(
    inventory: &Inventory,
    store: &DomainStore,
    snapshot: &SnapshotRecord,
    observer: &dyn Observer,
) -> Vec<String> {
    if snapshot.state == RecordState::Deleting {
        return vec!["its deletion was begun and is not finished".into()];
    }
    observer.step(&format!("read the memory of '{}'", snapshot.name()));
    let memory = snapshot.memory.as_ref().and_then(|proof| {
        let proven = memory::prove(&store.memory_of(snapshot), proof, observer);
        proven.err().as_ref().map(Error::report)
    });
    let disks = snapshot.disks.iter().flat_map(|proof| {
        let own = of_disk(inventory, snapshot, proof);
        own.into_iter().chain(chain(inventory, &proof.target.image))
    });
    let below = inventory.record.below(snapshot);
    let below = below.filter_map(|proof| of_disk(inventory, snapshot, proof));
    memory.into_iter().chain(disks).chain(below).collect()
}

pub(crate) fn of_disk(
    inventory: &Inventory,
    snapshot: &SnapshotRecord,
    proof: &DiskProof,
) -> Option<String> {
    let target = &proof.target;
    let facts = match facts(inventory, &target.image) {
        Ok(facts) => facts,
        Err(why) => return Some(format!("the image of {target} {why}")),
    };
    match proof.kind {
        DiskKind::Internal => {
            let tag = snapshot.id.tag();
            match facts.snapshot(&tag) {
                None => Some(format!("{target} no longer holds {tag}")),
                Some(held) if proof.stamp.is_some_and(|stamp| stamp != held.stamp) => {
                    Some(format!("{tag} in {target} was made at another time"))
                }
                Some(_) => None,
            }
        }
        DiskKind::External => (proof.stamp.is_some_and(|stamp| stamp != facts.written))
            .then(|| format!("{target} was written to since")),
    }
}

/// Whether the images below one of ours are those that we put there.
pub(crate) fn chain(inventory: &Inventory, image: &Path) -> Vec<String> {
    let record = &inventory.record;
    let layers = record.chain(image);
    let layers = layers.iter().filter_map(|image| record.layer(image));
    let of_layer = |layer: &crate::model::layer::Layer| {
        let wanted = layer.backing.as_ref().map(|below| &*below.image);
        match facts(inventory, &layer.image) {
            Err(why) => Some(format!("the layer {} {why}", layer.target())),
            Ok(facts) if facts.backing.as_deref() != wanted && layer.merging.is_none() => {
                let stands_on = |image: Option<&Path>| {
                    image.map_or_else(|| "nothing".into(), |image| image.display().to_string())
                };
                Some(format!(
                    "the layer {} stands on {} and not on {}",
                    layer.target(),
                    stands_on(facts.backing.as_deref()),
                    stands_on(wanted)
                ))
            }
            Ok(_) => None,
        }
    };
    layers.filter_map(of_layer).collect()
}

/// Whether the disks are what the record says.
fn disks(inventory: &Inventory) -> Vec<String> {
    let record: &DomainRecord = &inventory.record;
    let active = record.layers.iter().filter(|layer| layer.active);
    let mut found: Vec<_> = active
        .flat_map(|layer| chain(inventory, &layer.image))
        .collect();
    for disk in inventory.live.iter().flat_map(|live| &live.disks) {
        let path = disk.pdev_path.as_deref().map(Path::new);
        if let Some(path) = path.filter(|path| record.is_frozen(path)) {
            found.push(format!(
                "{} runs on {}, which snapshots stand on",
                disk.vdev(),
                path.display()
            ));
        }
    }
    found
}

fn facts<'a>(inventory: &'a Inventory, image: &Path) -> Result<&'a ImageFacts, String> {
    match inventory.images.get(image) {
        Some(Some(facts)) => Ok(facts),
        _ => Err(match inventory.unreadable.get(image) {
            Some(why) => format!("cannot be read: {why}"),
            None => "is missing".into(),
        }),
    }
}
