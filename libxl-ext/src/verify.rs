//! Are a domain's snapshots what they were when they were taken? Everything is read, nothing changed.

use crate::diff::checksum;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::model::disk::{DiskKind, ImageFacts};
use crate::model::last_write::ChainFault;
use crate::model::record::{DiskProof, DomainRecord, RecordState, SnapshotRecord};
use crate::observe::Inventory;
use crate::port::Ports;
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

/// Looks at the snapshots of the given name, or at all. The memory images are read whole, and the disks of which a
/// checksum is recorded.
pub(crate) fn verify(
    ports: &Ports,
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
        let found = of_snapshot(ports, inventory, store, snapshot, observer);
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
    ports: &Ports,
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
        let proven = store.kept_memory(snapshot).prove(proof, observer);
        proven.err().as_ref().map(Error::report)
    });
    let below = inventory.record.below(snapshot);
    let below = below.filter_map(|proof| of_disk(inventory, snapshot, proof));
    let mut found: Vec<_> = memory
        .into_iter()
        .chain(of_disks(inventory, snapshot))
        .collect();
    // Of an image that is a state as well, both the snapshot and the layer know.
    for what in below {
        if !found.contains(&what) {
            found.push(what);
        }
    }
    if found.is_empty() {
        found.extend(contents(ports, inventory, snapshot, observer));
    }
    found
}

/// What the disks hold, where that is recorded.
fn contents(
    ports: &Ports,
    inventory: &Inventory,
    snapshot: &SnapshotRecord,
    observer: &dyn Observer,
) -> Vec<String> {
    let disks = snapshot.disks.iter();
    let recorded =
        disks.filter_map(|proof| Some((proof, snapshot.contents.get(&proof.target.vdev)?)));
    recorded
        .filter_map(|(proof, recorded)| {
            let target = &proof.target;
            match checksum(ports, &inventory.record, snapshot, proof, observer) {
                Ok(now) if now == *recorded => None,
                Ok(_) => Some(format!(
                    "{target} does not hold any more what it held: its checksum does not match"
                )),
                Err(error) => Some(format!("{target} cannot be read: {}", error.report())),
            }
        })
        .collect()
}

/// Each disk, with the images that it stands on.
fn of_disks(inventory: &Inventory, snapshot: &SnapshotRecord) -> impl Iterator<Item = String> {
    snapshot.disks.iter().flat_map(|proof| {
        let own = of_disk(inventory, snapshot, proof);
        own.into_iter().chain(chain(inventory, &proof.target.image))
    })
}

/// Refuses a snapshot whose disks are not what they were, for what is to be made of it.
///
/// # Errors
/// [`ErrorKind::Corrupt`] with the first that is not.
pub(crate) fn require_disks_as_recorded(
    inventory: &Inventory,
    snapshot: &SnapshotRecord,
) -> Result<()> {
    match of_disks(inventory, snapshot).next() {
        None => Ok(()),
        Some(what) => Err(Error::new(
            ErrorKind::Corrupt,
            format!("snapshot '{}' is not what it was: {what}", snapshot.name()),
        )),
    }
}

fn of_disk(inventory: &Inventory, snapshot: &SnapshotRecord, proof: &DiskProof) -> Option<String> {
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

/// Whether the images below one of ours are those that we put there, and what they were.
pub(crate) fn chain(inventory: &Inventory, image: &Path) -> Vec<String> {
    let seen = |image: &Path| facts(inventory, image).ok();
    let faults = inventory.record.chain_faults(image, seen);
    let in_words = |fault: ChainFault<'_>| {
        let why = |image: &Path| facts(inventory, image).err().unwrap_or_default();
        match fault {
            ChainFault::Layer(layer) => {
                format!("the layer {} {}", layer.target(), why(&layer.image))
            }
            ChainFault::Below(layer) => match layer.below() {
                Some(below) => format!("the image of {below} {}", why(&below.image)),
                None => fault.to_string(),
            },
            ChainFault::StandsElsewhere(layer) => {
                let how =
                    seen(&layer.image).map(|facts| facts.stands_instead_of(layer.backing.as_ref()));
                format!("the layer {} {}", layer.target(), how.unwrap_or_default())
            }
            ChainFault::Written(_) => fault.to_string(),
        }
    };
    faults.into_iter().map(in_words).collect()
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

fn facts<'a>(
    inventory: &'a Inventory,
    image: &Path,
) -> std::result::Result<&'a ImageFacts, String> {
    match inventory.images.get(image) {
        Some(Some(facts)) => Ok(facts),
        _ => Err(match inventory.unreadable.get(image) {
            Some(why) => format!("cannot be read: {why}"),
            None => "is missing".into(),
        }),
    }
}
