//! A record made anew: of the copies, and of the memory images whose copies are gone.

use super::mend::mend;
use super::survey::{Copy, Directory, Image};
use super::{Finding, FindingKind, Findings};
use crate::model::disk::{DeviceDisk, DiskKind, DiskTarget, ImageFacts, ImageFormat};
use crate::model::domain::{GuestState, GuestType};
use crate::model::name::SnapshotId;
use crate::model::record::{DiskProof, DomainRecord, MemoryProof, RecordState, SnapshotRecord};
use crate::store::PresentCopy;
use crate::types::{DiskSnapshot, DomainSnapshot};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use uuid::Uuid;

/// The record that what is there gives; `notes` are for the user. If nothing can be said, the reason.
pub(super) fn rebuild(
    domain: &str,
    directories: &BTreeMap<SnapshotId, Directory>,
    present: &Copy<PresentCopy>,
    notes: &mut Vec<String>,
) -> Result<DomainRecord, String> {
    let mut record = DomainRecord::new(domain);
    if let Copy::Whole(present) = present {
        record.generation = present.generation;
        record.current = present.current;
        record.layers.clone_from(&present.layers);
        record.left_over.clone_from(&present.left_over);
        record.managed.clone_from(&present.managed);
    } else {
        notes.push(
            "which snapshot the present state comes from is not known any more: none, from now on"
                .into(),
        );
    }
    for (id, directory) in directories {
        if record.managed.as_ref().is_some_and(|it| it.id == *id) {
            continue;
        }
        let made = match (&directory.copy, &directory.memory) {
            (Copy::Whole(copy), _) => {
                record.generation = record.generation.max(copy.generation);
                Ok(copy.snapshot.clone())
            }
            (_, Some(image)) => of_image(*id, image),
            (_, None) => Err("it holds no memory image, and no copy of its record".into()),
        };
        match made {
            Ok(snapshot) => record.snapshots.push(snapshot),
            Err(why) => notes.push(format!(
                "nothing is recorded of {}: {why}",
                directory.path.display()
            )),
        }
    }
    // The order in the record is that of their creation.
    record
        .snapshots
        .sort_by_key(|snapshot| snapshot.snapshot.creation_time);
    let parent_of = |_| None;
    let mut found = Findings::default();
    let record = mend(&record, parent_of, &mut found);
    // The order in which they were read says nothing.
    let notable = |found: &&Finding| {
        found.snapshot.is_some() || found.kind != FindingKind::InconsistentRecord
    };
    notes.extend(
        found
            .findings
            .iter()
            .filter(notable)
            .map(Finding::to_string),
    );
    match record.check() {
        Ok(()) => Ok(record),
        Err(error) => Err(error.report()),
    }
}

/// What a memory image says of its snapshot: its disks, if each of them holds the internal snapshot.
fn of_image(id: SnapshotId, image: &Image) -> Result<SnapshotRecord, String> {
    let configuration = image.configuration.as_ref().map_err(Clone::clone)?;
    let (proof, disks) = image
        .read
        .as_ref()
        .ok_or("its memory image cannot be read")?;
    let value: Value = serde_json::from_str(configuration)
        .map_err(|error| format!("the configuration in its memory image is damaged: {error}"))?;
    let info = &value["c_info"];
    let guest_type = GuestType::deserialize(&info["type"])
        .map_err(|_| "its memory image does not say of which type the guest is")?;
    let domain_uuid = Uuid::deserialize(&info["uuid"])
        .map_err(|_| "its memory image does not say which domain it is")?;
    let name = format!("recovered-{}", &id.to_string()[..8]);
    let mut record = SnapshotRecord {
        id,
        parent: None,
        state: RecordState::Complete,
        // Nothing is lost in a guest that waits.
        guest: GuestState::Paused,
        guest_type,
        domain_uuid,
        snapshot: DomainSnapshot {
            name: Some(name.clone()),
            description: Some("made anew of its memory image".into()),
            memory: true,
            ..DomainSnapshot::default()
        },
        memory: Some(MemoryProof::clone(proof)),
        disks: Vec::new(),
        configuration: None,
        contents: BTreeMap::new(),
    };
    for (disk, facts) in disks {
        let (proof, disk) = of_disk(id, &name, disk, facts.as_ref())?;
        record.disks.push(proof);
        record.snapshot.disks.push(disk);
    }
    Ok(record)
}

fn of_disk(
    id: SnapshotId,
    name: &str,
    disk: &DeviceDisk,
    facts: Option<&ImageFacts>,
) -> Result<(DiskProof, DiskSnapshot), String> {
    let held = facts.and_then(|facts| facts.snapshot(&id.tag()));
    let (Some(held), Some(path)) = (held, &disk.pdev_path) else {
        return Err(format!(
            "where the content of {} is kept is not known",
            disk.vdev()
        ));
    };
    let proof = DiskProof {
        target: DiskTarget {
            vdev: disk.vdev().to_owned(),
            image: Path::new(path).into(),
            format: ImageFormat::Qcow2,
        },
        kind: DiskKind::Internal,
        stamp: Some(held.stamp),
    };
    let snapshot = DiskSnapshot {
        disk: disk.clone(),
        name: Some(name.to_owned()),
        ..DiskSnapshot::default()
    };
    Ok((proof, snapshot))
}
