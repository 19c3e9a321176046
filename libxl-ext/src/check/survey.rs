//! Looks at everything that the store keeps of a domain, and at what it keeps nothing of.

use super::rebuild;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::memory::Kept;
use crate::memory::packed::{self, Damage, Traced};
use crate::model::configuration::disks_of;
use crate::model::disk::{DeviceDisk, ImageFacts, ImageFormat};
use crate::model::name::SnapshotId;
use crate::model::record::{DomainRecord, MemoryProof};
use crate::observe::{Asked, Inventory, Target, observe_with};
use crate::port::Ports;
use crate::store::{self, PresentCopy, RecordFile, SnapshotCopy, atomic};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// All that findings are made of.
#[derive(Clone, Debug)]
pub(crate) struct Survey {
    /// What is in the place of the record.
    pub(super) state: RecordState,
    /// Whether an operation was interrupted.
    pub(super) journal: bool,
    /// The record as it is, or as it was made anew, with what it names on the host.
    pub(super) inventory: Inventory,
    /// The copy of what the record says beside its snapshots.
    pub(super) present: Copy<PresentCopy>,
    /// What is in packs, and what needs it.
    pub(super) packs: Packs,
    /// The directories of snapshots.
    pub(super) directories: BTreeMap<SnapshotId, Directory>,
    /// Files that were being replaced.
    pub(super) temporaries: Vec<PathBuf>,
    /// What is in the store and not ours.
    pub(super) foreign: Vec<PathBuf>,
    /// Images with names of ours beside those of the domain, of which no record in the store knows.
    pub(super) unexplained: Vec<PathBuf>,
    /// Where the record is.
    pub(super) record_path: PathBuf,
    /// Where the packs are.
    pub(super) packs_directory: PathBuf,
}

/// What is in the place of the record.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RecordState {
    /// A record.
    Whole,
    /// Nothing, as before the first snapshot.
    Absent,
    /// Nothing that can be read, with the reason; nothing at all counts too where there are snapshots.
    Damaged {
        why: String,
        /// Whether the record in the inventory is made of what else is there, or else why not.
        rebuilt: Result<(), String>,
        /// What is said of how it was made.
        notes: Vec<String>,
        /// Under which name the damaged file is kept.
        keep_as: Option<PathBuf>,
    },
}

/// The packs of a domain.
#[derive(Clone, Debug, Default)]
pub(super) struct Packs {
    /// Those that no image needs. Empty as long as it is not known what they all need.
    pub(super) orphans: Vec<PathBuf>,
    /// Those that were not completed.
    pub(super) temporaries: Vec<PathBuf>,
    /// What is in their directory and not ours.
    pub(super) foreign: Vec<PathBuf>,
    /// What is damaged in them, and which images that hurts.
    pub(super) damages: Vec<Damage>,
    /// Images of which it is not known what they need, and why.
    pub(super) silent: Vec<(SnapshotId, String)>,
}

/// A copy of a part of the record.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Copy<T> {
    Absent,
    Whole(T),
    Damaged(String),
}

/// The directory of one snapshot.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    pub(super) copy: Copy<SnapshotCopy>,
    pub(super) memory: Option<Image>,
    pub(super) temporaries: Vec<PathBuf>,
    pub(super) foreign: Vec<PathBuf>,
}

/// A memory image as its beginning shows it.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) bytes: u64,
    /// The domain's configuration in JSON, or why there is none.
    pub(super) configuration: Result<String, String>,
    /// What the image is known by from now on, and the images of its disks; only where no record and no copy
    /// says it.
    pub(super) read: Option<(MemoryProof, Vec<DiskSeen>)>,
}

/// A writable disk of a configuration, and what is in its image if that is qcow2.
pub(super) type DiskSeen = (DeviceDisk, Option<ImageFacts>);

/// Looks. Nothing is changed.
///
/// # Errors
/// [`ErrorKind::NewerVersion`] for a store of a newer release; what the ports and the file system report.
pub(crate) fn survey(ports: &Ports, target: &Target, observer: &dyn Observer) -> Result<Survey> {
    let own = &target.store;
    let file = own.read()?;
    let needs_all = !matches!(file, RecordFile::Whole(_));
    let (directories, temporaries, foreign) = walk(ports, target, needs_all, observer)?;
    let present = copy(own.present_copy())?;
    let record_path = own.record_path();
    let why = match &file {
        RecordFile::Whole(_) => None,
        RecordFile::Damaged(error) => Some(error.to_string()),
        RecordFile::Absent if directories.is_empty() && present == Copy::Absent => None,
        RecordFile::Absent => Some(format!("{} is gone", record_path.display())),
    };
    let (state, record) = match (file, why) {
        (RecordFile::Whole(record), _) => (RecordState::Whole, *record),
        (_, None) => (RecordState::Absent, DomainRecord::new(&target.name)),
        (file, Some(why)) => {
            let mut notes = Vec::new();
            let made = rebuild::rebuild(&target.name, &directories, &present, &mut notes);
            let made = made.and_then(|record| {
                let lost = present_is_lost(&present, &record, &directories);
                lost.map_or(Ok(record), Err)
            });
            let keep_as = match file {
                RecordFile::Damaged(_) => Some(kept_name(&record_path)?),
                _ => None,
            };
            let rebuilt = made.as_ref().map(|_| ()).map_err(Clone::clone);
            let record = made.unwrap_or_else(|_| DomainRecord::new(&target.name));
            let state = RecordState::Damaged {
                why,
                rebuilt,
                notes,
                keep_as,
            };
            (state, record)
        }
    };
    let inventory = observe_with(ports, target, Asked::default(), record)?;
    let packs = packs(target, observer)?;
    let unexplained = unexplained(&inventory);
    Ok(Survey {
        state,
        journal: own.has_journal(),
        inventory,
        present,
        packs,
        directories,
        temporaries,
        foreign,
        unexplained,
        record_path,
        packs_directory: own.packs_directory(),
    })
}

/// Reads all packs that are needed.
fn packs(target: &Target, observer: &dyn Observer) -> Result<Packs> {
    let directory = target.store.packs_directory();
    let mut found = Packs::default();
    let files = packed::list(&directory)?;
    let (traced, silent) = Traced::ask(&target.store.packed_images()?);
    let needed: BTreeSet<SnapshotId> = traced.users().map(|(id, _)| id).collect();
    for file in &files {
        if file.is_partial {
            found.temporaries.push(file.path.clone());
        } else if silent.is_empty() && !needed.contains(&file.id) {
            found.orphans.push(file.path.clone());
        }
    }
    if directory.is_dir() {
        let paths = list(&directory)?.into_iter().map(|(path, _, _)| path);
        let is_ours = |path: &PathBuf| files.iter().any(|file| file.path == *path);
        found.foreign = paths.filter(|path| !is_ours(path)).collect();
    }
    if !needed.is_empty() {
        observer.step("read the packs");
        found.damages = traced.damages(&directory, observer)?;
    }
    let silent = silent.into_iter();
    found.silent = silent.map(|(id, why)| (id, why.report())).collect();
    Ok(found)
}

/// Without the layers nobody can say which image a disk is: a guest that is started on another one destroys
/// snapshots. So a record is not made anew without them, unless there are none.
fn present_is_lost(
    present: &Copy<PresentCopy>,
    record: &DomainRecord,
    directories: &BTreeMap<SnapshotId, Directory>,
) -> Option<String> {
    if matches!(present, Copy::Whole(_)) {
        return None;
    }
    let has_external = record
        .snapshots
        .iter()
        .flat_map(|snapshot| &snapshot.disks)
        .any(|proof| proof.kind == crate::model::disk::DiskKind::External);
    let images = record
        .snapshots
        .iter()
        .flat_map(|snapshot| &snapshot.disks)
        .map(|proof| proof.target.image.to_path_buf());
    let configured = directories
        .values()
        .filter_map(|directory| directory.memory.as_ref()?.read.as_ref())
        .flat_map(|(_, disks)| disks)
        .filter_map(|(disk, _)| disk.pdev_path.as_ref().map(PathBuf::from));
    let beside = neighbours(images.chain(configured));
    (has_external || !beside.is_empty()).then(|| {
        "the copy of the layers is damaged or gone too, and there are layers: nobody can say which image each \
         disk is"
            .to_owned()
    })
}

/// The name under which a damaged record is kept: the same one for the same damage, so that doing it again
/// makes no second.
fn kept_name(path: &Path) -> Result<PathBuf> {
    let bytes = atomic::read_own(path)?.unwrap_or_default();
    let mut name = path.as_os_str().to_owned();
    name.push(format!(
        ".damaged-{:016x}",
        xxhash_rust::xxh3::xxh3_64(&bytes)
    ));
    Ok(name.into())
}

/// What a copy is; one of a newer release is an error.
fn copy<T>(read: Result<Option<T>>) -> Result<Copy<T>> {
    match read {
        Ok(Some(copy)) => Ok(Copy::Whole(copy)),
        Ok(None) => Ok(Copy::Absent),
        Err(error) if error.kind() == ErrorKind::NewerVersion => Err(error),
        Err(error) => Ok(Copy::Damaged(error.report())),
    }
}

type Walked = (BTreeMap<SnapshotId, Directory>, Vec<PathBuf>, Vec<PathBuf>);

fn walk(
    ports: &Ports,
    target: &Target,
    needs_all: bool,
    observer: &dyn Observer,
) -> Result<Walked> {
    let own = &target.store;
    let (mut directories, mut temporaries, mut foreign) = Walked::default();
    for (path, name, is_directory) in list(own.directory())? {
        let id = SnapshotId::of_file_name(&name).filter(|_| is_directory);
        match (id, name.to_str()) {
            (Some(id), _) => {
                let found = directory(ports, target, id, needs_all, observer)?;
                directories.insert(id, found);
            }
            _ if store::is_temporary(&name) => temporaries.push(path),
            (_, Some("lock" | "domain" | "journal" | "present" | "replication")) => {}
            // Those of an import; those that are looked at by themselves.
            (_, Some("images" | "packs" | "replica")) if is_directory => {}
            (_, Some(kept)) if kept.starts_with("domain.damaged-") => {}
            _ => foreign.push(path),
        }
    }
    Ok((directories, temporaries, foreign))
}

fn list(directory: &Path) -> Result<Vec<(PathBuf, std::ffi::OsString, bool)>> {
    let failed = |error| Error::io(format!("list {}", directory.display()), error);
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_directory = entry.file_type().map_err(failed)?.is_dir();
        entries.push((entry.path(), entry.file_name(), is_directory));
    }
    entries.sort();
    Ok(entries)
}

fn directory(
    ports: &Ports,
    target: &Target,
    id: SnapshotId,
    needs_all: bool,
    observer: &dyn Observer,
) -> Result<Directory> {
    let own = &target.store;
    let path = own.snapshot_directory(id);
    let (mut temporaries, mut foreign) = (Vec::new(), Vec::new());
    for (path, name, is_directory) in list(&path)? {
        match name.to_str() {
            Some("memory" | "snapshot") => {}
            Some("memory.partial") if !is_directory => temporaries.push(path),
            _ if store::is_temporary(&name) && !is_directory => temporaries.push(path),
            _ => foreign.push(path),
        }
    }
    let copy = copy(own.snapshot_copy(id))?;
    let hash = needs_all && !matches!(copy, Copy::Whole(_));
    let kept = own.kept_in_store(id);
    let memory = if atomic::is_there(&kept.image) {
        Some(image(ports, &kept, hash, observer))
    } else {
        None
    };
    Ok(Directory {
        path,
        copy,
        memory,
        temporaries,
        foreign,
    })
}

fn image(ports: &Ports, kept: &Kept, hash: bool, observer: &dyn Observer) -> Image {
    let opened = atomic::open_own(&kept.image).and_then(|file| {
        let read = |error| Error::io(format!("read {}", kept.image.display()), error);
        Ok(file.metadata().map_err(read)?.len())
    });
    let (bytes, configuration) = match opened {
        Ok(bytes) => (bytes, kept.configuration().map_err(|error| error.report())),
        Err(error) => (0, Err(error.report())),
    };
    let read = match &configuration {
        Ok(configuration) if hash => kept
            .measure(observer)
            .ok()
            .map(|proof| (proof, disks(ports, configuration))),
        _ => None,
    };
    Image {
        bytes,
        configuration,
        read,
    }
}

/// The writable disks of a configuration, with what is in the qcow2 images among them.
fn disks(ports: &Ports, configuration: &str) -> Vec<DiskSeen> {
    let value: serde_json::Value = serde_json::from_str(configuration).unwrap_or_default();
    let disks = disks_of(&value).unwrap_or_default();
    let writable = disks.into_iter().filter(DeviceDisk::is_writable);
    writable
        .map(|disk| {
            let format = disk.format.as_deref().and_then(ImageFormat::of);
            let path = disk.pdev_path.as_deref().map(Path::new);
            let facts = match (format, path) {
                (Some(ImageFormat::Qcow2), Some(path)) => {
                    ports.images.facts(path, ImageFormat::Qcow2).ok().flatten()
                }
                _ => None,
            };
            (disk, facts)
        })
        .collect()
}

/// Whether a file has the name that a layer of ours gets: `<base>.xl-ext-<id>.qcow2`.
fn has_name_of_ours(name: &std::ffi::OsStr) -> bool {
    let id = name
        .to_str()
        .and_then(|name| name.strip_suffix(".qcow2"))
        .and_then(|name| name.rsplit_once(".xl-ext-"))
        .and_then(|(_, id)| SnapshotId::of_file_name(id.as_ref()));
    id.is_some()
}

/// Files with names of ours in the directories of images.
fn neighbours(images: impl Iterator<Item = PathBuf>) -> BTreeSet<PathBuf> {
    let directories: BTreeSet<PathBuf> = images
        .filter_map(|image| image.parent().map(Path::to_path_buf))
        .collect();
    let entries = directories
        .iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flat_map(Iterator::flatten);
    entries
        .filter(|entry| has_name_of_ours(&entry.file_name()))
        .map(|entry| entry.path())
        .collect()
}

/// Those of which no record in the store knows, and that are no disk of the domain.
pub(super) fn unexplained(inventory: &Inventory) -> Vec<PathBuf> {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let disks = inventory.live.iter().flat_map(|live| &live.disks);
    let disks: Vec<PathBuf> = disks
        .filter_map(|disk| disk.pdev_path.as_ref().map(PathBuf::from))
        .collect();
    let others = inventory.claimed.keys().map(PathBuf::as_path);
    let known: BTreeSet<PathBuf> = others
        .chain(inventory.record.images())
        .chain(disks.iter().map(PathBuf::as_path))
        .map(real)
        .collect();
    let own = inventory.record.images().map(Path::to_path_buf);
    let beside = neighbours(own.chain(disks));
    beside
        .into_iter()
        .filter(|path| !known.contains(&real(path)))
        .collect()
}
