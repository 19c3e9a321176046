//! What is not as it should be, and what can be done about it: pure.

use super::mend::mend;
use super::survey::{Copy, Directory, RecordState, Survey};
use super::{Finding, FindingKind, Findings, Repair};
use crate::model::disk::{DiskKind, ImageFacts};
use crate::model::layer::{Into, Layer};
use crate::model::name::SnapshotId;
use crate::model::record::{self, DiskProof, DomainRecord, SnapshotRecord};
use std::path::Path;
use uuid::Uuid;

/// Everything that is found.
pub(crate) fn find(survey: &Survey) -> Findings {
    let mut found = Findings::default();
    if survey.journal {
        // What an operation in the middle of its work has made is explained by its journal alone.
        found.add(
            FindingKind::InterruptedOperation,
            "an operation was interrupted: the next command that changes something, or --repair, ends it first",
        );
        if let RecordState::Damaged { why, .. } = &survey.state {
            found.add(
                FindingKind::DamagedRecord,
                format!(
                    "{why}, and an operation was interrupted: whether it got far enough to be finished stood in the \
                     record. Move the journal aside if guest and disks are as they should be"
                ),
            );
        }
        return found;
    }
    let record = of_record(survey, &mut found);
    of_snapshots(survey, &record, &mut found);
    of_layers(survey, &record, &mut found);
    of_tags(survey, &record, &mut found);
    of_packs(survey, &record, &mut found);
    of_store(survey, &record, &mut found);
    for path in &survey.unexplained {
        let what = format!(
            "no record of this store explains the image {}; it is left alone",
            path.display()
        );
        found.add(FindingKind::OrphanImage, what).at(path);
    }
    found
}

/// The record as it will be, with the repairs that bring that about.
fn of_record(survey: &Survey, found: &mut Findings) -> DomainRecord {
    let record = &survey.inventory.record;
    if let RecordState::Damaged {
        why,
        rebuilt,
        notes,
        keep_as,
    } = &survey.state
    {
        found
            .add(FindingKind::DamagedRecord, why.clone())
            .at(&survey.record_path);
        for note in notes {
            found.add(FindingKind::DamagedRecord, note.clone());
        }
        if let Err(why) = rebuilt {
            let what = format!("it cannot be made anew: {why}");
            found.add(FindingKind::DamagedRecord, what);
        } else {
            let keep = keep_as.as_deref().map(|kept_as| Repair::KeepDamaged {
                kept_as: kept_as.into(),
            });
            found.repairs.extend(keep);
            write(record, found);
        }
        return record.clone();
    }
    let parent_of = |id: SnapshotId| match &survey.directories.get(&id)?.copy {
        Copy::Whole(copy) => copy.snapshot.parent,
        _ => None,
    };
    let mended = mend(record, parent_of, found);
    if mended != *record {
        write(&mended, found);
    }
    mended
}

fn write(record: &DomainRecord, found: &mut Findings) {
    let mut record = record.clone();
    record.generation += 1;
    found.repairs.push(Repair::WriteRecord {
        snapshots: record.snapshots.len(),
        record: Box::new(record),
    });
}

fn of_snapshots(survey: &Survey, record: &DomainRecord, found: &mut Findings) {
    for snapshot in &record.snapshots {
        let name = snapshot.name();
        if snapshot.disks.len() != snapshot.snapshot.disks.len() {
            found
                .add(
                    FindingKind::InconsistentRecord,
                    "the record knows one of its disks only in part",
                )
                .of(name);
        }
        if snapshot.state == record::RecordState::Deleting {
            // Its parts go one after the other, and `snapshot-delete` goes on with it.
            continue;
        }
        if let Some(what) = memory(survey, snapshot) {
            found.add(FindingKind::Memory, what).of(name);
        }
        for proof in &snapshot.disks {
            if let Some(what) = disk(survey, snapshot, proof) {
                found
                    .add(FindingKind::Disk, what)
                    .of(name)
                    .at(&*proof.target.image);
            }
        }
    }
}

fn memory(survey: &Survey, snapshot: &SnapshotRecord) -> Option<String> {
    let proof = snapshot.memory.as_ref()?;
    if let Some(file) = &snapshot.snapshot.memory_file {
        return match survey.inventory.memory.get(&snapshot.id) {
            None => Some(format!(
                "its memory image {file} is missing: it cannot be reverted to"
            )),
            Some(bytes) if *bytes != proof.bytes => Some(format!(
                "its memory image {file} has {bytes} bytes instead of {}",
                proof.bytes
            )),
            Some(_) => None,
        };
    }
    let directory = survey.directories.get(&snapshot.id);
    let Some(image) = directory.and_then(|directory| directory.memory.as_ref()) else {
        return Some("its memory image is missing: it cannot be reverted to".into());
    };
    match &image.configuration {
        Err(why) => Some(format!("its memory image cannot be read: {why}")),
        Ok(_) if image.bytes != proof.image_bytes() => Some(format!(
            "its memory image has {} bytes instead of {}",
            image.bytes,
            proof.image_bytes()
        )),
        Ok(_) => None,
    }
}

fn disk(survey: &Survey, snapshot: &SnapshotRecord, proof: &DiskProof) -> Option<String> {
    let target = &proof.target;
    let facts = match facts(survey, &target.image) {
        Ok(facts) => facts,
        Err(why) => return Some(format!("the image of {target} {why}")),
    };
    let tag = snapshot.id.tag();
    match proof.kind {
        DiskKind::Internal if facts.snapshot(&tag).is_none() => {
            Some(format!("{target} does not hold {tag}"))
        }
        _ => None,
    }
}

/// What a damaged block hurts is said of each snapshot. One that no image needs hurts nobody, and goes with its pack.
fn of_packs(survey: &Survey, record: &DomainRecord, found: &mut Findings) {
    let packs = &survey.packs;
    for damage in &packs.damages {
        let path = survey.packs_directory.join(damage.pack.to_string());
        let mut hurts = damage.hurts.clone();
        hurts.sort_by_key(|id| record.snapshots.iter().position(|it| it.id == *id));
        for id in &hurts {
            let what = format!("its memory cannot be restored: {}", damage.report);
            let finding = found.add(FindingKind::Pack, what).at(&*path);
            if let Some(snapshot) = record.get(*id) {
                finding.of(snapshot.name());
            } else if record.managed.as_ref().is_some_and(|it| it.id == *id) {
                finding.what = format!("what was saved cannot be gone on from: {}", damage.report);
            }
        }
    }
    for (id, why) in &packs.silent {
        // Of one that no record names it is said elsewhere that it is there, of one that is damaged in its beginning why.
        let Some(name) = record.get(*id).map(SnapshotRecord::name) else {
            continue;
        };
        let is_told = |finding: &Finding| {
            finding.kind == FindingKind::Memory && finding.snapshot.as_deref() == Some(name)
        };
        if found.findings.iter().any(is_told) {
            continue;
        }
        let what =
            format!("what its memory image needs is not known, so that no pack is removed: {why}");
        let finding = found.add(FindingKind::Memory, what).of(name);
        if let Some(directory) = survey.directories.get(id) {
            finding.at(directory.path.join("memory"));
        }
    }
    for path in &packs.orphans {
        let what = format!("no memory image needs {}", path.display());
        found.add(FindingKind::OrphanPack, what).at(&**path);
    }
    if !packs.orphans.is_empty() {
        found.repairs.push(Repair::CollectPacks);
    }
    for path in &packs.foreign {
        foreign(path, found);
    }
}

fn of_layers(survey: &Survey, record: &DomainRecord, found: &mut Findings) {
    for layer in &record.layers {
        // While two become one, either may be as before or as afterwards.
        let merging_down = layer.merging == Some(Into::Below);
        let what = match facts(survey, &layer.image) {
            Err(_) if merging_down => None,
            Err(why) => Some(format!("the layer {} {why}", layer.target())),
            Ok(facts) if layer.merging.is_none() => stands(layer, facts),
            Ok(_) => None,
        };
        if let Some(what) = what {
            found.add(FindingKind::Layer, what).at(&*layer.image);
        }
    }
}

fn stands(layer: &Layer, facts: &ImageFacts) -> Option<String> {
    let wanted = layer.backing.as_ref();
    (!facts.stands_on(wanted)).then(|| {
        let how = facts.stands_instead_of(wanted);
        format!("the layer {} {how}", layer.target())
    })
}

/// Internal snapshots with names of ours that nothing explains. A copy of an image, made while it held some, has
/// them too.
fn of_tags(survey: &Survey, record: &DomainRecord, found: &mut Findings) {
    for (path, facts) in &survey.inventory.images {
        for held in facts.iter().flat_map(|facts| &facts.snapshots) {
            let id = held.tag.strip_prefix("xl-ext-");
            let Some(id) = id.and_then(|id| Uuid::try_parse(id).ok()).map(SnapshotId) else {
                continue;
            };
            let is_recorded = record.get(id).is_some_and(|snapshot| {
                let mut disks = snapshot.disks.iter();
                disks.any(|proof| proof.kind == DiskKind::Internal && *proof.target.image == **path)
            });
            let is_left_over = record
                .left_over
                .iter()
                .any(|left| left.id == id && *left.target.image == **path);
            if !is_recorded && !is_left_over {
                let what = format!(
                    "no record explains the internal snapshot {} in {}; it is left alone (qemu-img snapshot -d deletes it)",
                    held.tag,
                    path.display()
                );
                found.add(FindingKind::OrphanTag, what).at(path);
            }
        }
    }
}

fn of_store(survey: &Survey, record: &DomainRecord, found: &mut Findings) {
    let may_remove = !matches!(
        &survey.state,
        RecordState::Damaged {
            rebuilt: Err(_),
            ..
        }
    );
    let is_written = found
        .repairs
        .iter()
        .any(|repair| matches!(repair, Repair::WriteRecord { .. }));
    // With a new record the copies are new too.
    if survey.state == RecordState::Whole && !is_written && of_copies(survey, record, found) {
        found.repairs.push(Repair::WriteCopies);
    }
    let temporaries = survey.temporaries.iter().chain(&survey.packs.temporaries);
    let mut temporaries: Vec<&Path> = temporaries.map(AsRef::as_ref).collect();
    for (id, directory) in &survey.directories {
        for path in &directory.foreign {
            foreign(path, found);
        }
        let is_managed = record.managed.as_ref().is_some_and(|it| it.id == *id);
        if record.get(*id).is_some() || is_managed {
            temporaries.extend(directory.temporaries.iter().map(|path| &**path));
        } else {
            orphan(*id, directory, may_remove, found);
        }
    }
    for path in temporaries {
        let what = format!("{} is of an operation that did not end", path.display());
        found.add(FindingKind::Temporary, what).at(path);
        found
            .repairs
            .push(Repair::RemoveTemporary { path: path.into() });
    }
    for path in &survey.foreign {
        foreign(path, found);
    }
}

/// Whether a copy does not say what the record says.
fn of_copies(survey: &Survey, record: &DomainRecord, found: &mut Findings) -> bool {
    let mut stale = false;
    let mut complain = |what: &str, name: Option<&str>| {
        let finding = found.add(FindingKind::StaleCopy, what);
        finding.snapshot = name.map(str::to_owned);
        stale = true;
    };
    match &survey.present {
        Copy::Whole(copy) if copy.says_what(record) => {}
        Copy::Whole(_) => complain("the copy of the layers is older than the record", None),
        Copy::Absent => complain("there is no copy of the layers", None),
        Copy::Damaged(why) => complain(&format!("the copy of the layers is damaged: {why}"), None),
    }
    for snapshot in &record.snapshots {
        let Some(directory) = survey.directories.get(&snapshot.id) else {
            continue;
        };
        let name = Some(snapshot.name());
        match &directory.copy {
            Copy::Whole(copy) if copy.says_what(&record.domain, snapshot) => {}
            Copy::Whole(_) => complain("the copy of its record is older than the record", name),
            Copy::Absent => complain("there is no copy of its record", name),
            Copy::Damaged(why) => {
                complain(&format!("the copy of its record is damaged: {why}"), name);
            }
        }
    }
    stale
}

fn orphan(id: SnapshotId, directory: &Directory, may_remove: bool, found: &mut Findings) {
    let path = &directory.path;
    let holds = match (&directory.memory, &directory.copy) {
        (Some(_), _) => " and holds a memory image; it is left alone",
        // As one of the disks alone, or with its memory elsewhere, where the record is an older one.
        (None, Copy::Whole(_)) => {
            " and holds all that was recorded of a snapshot; it is left alone"
        }
        (None, _) if !directory.foreign.is_empty() => {
            " and holds what is not ours; it is left alone"
        }
        (None, _) => "",
    };
    let what = format!("no record names {}{holds}", path.display());
    found.add(FindingKind::OrphanDirectory, what).at(path);
    if may_remove && holds.is_empty() {
        found.repairs.push(Repair::RemoveDirectory { id });
    }
}

fn foreign(path: &Path, found: &mut Findings) {
    let what = format!("{} is not ours; it is left alone", path.display());
    found.add(FindingKind::Foreign, what).at(path);
}

fn facts<'a>(survey: &'a Survey, image: &Path) -> Result<&'a ImageFacts, String> {
    match survey.inventory.images.get(image) {
        Some(Some(facts)) => Ok(facts),
        _ => Err(match survey.inventory.unreadable.get(image) {
            Some(why) => format!("cannot be read: {why}"),
            None => "is missing".into(),
        }),
    }
}
