//! Reading a bundle. Nothing in it is believed, and nothing of it is recorded before all of it was verified.

use super::Imported;
use super::configuration::{Identity, rewrite};
use super::manifest::{
    CHECKSUMS, Checksums, ImageEntry, MANIFEST, Manifest, check_record, corrupt, image_name,
    memory_name,
};
use super::members::Members;
use super::qcow2;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::memory;
use crate::memory::packed::{self, Known, Traced, Writer};
use crate::model::disk::{DiskKind, DiskTarget, ImageFacts, ImageFormat};
use crate::model::layer::{Backing, Layer};
use crate::model::name::domain_directory;
use crate::model::record::{DomainRecord, MemoryProof, SnapshotRecord};
use crate::port::Ports;
use crate::store::{DomainLock, DomainStore, Envelope, LockWait, Store, atomic, private_directory};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// How much is copied at a time, in bytes.
const CHUNK: usize = 1 << 20;

/// What the user asks for.
#[derive(Clone, Debug, Default)]
pub struct ImportRequest {
    /// The name of the domain here; its own if there is none.
    pub name: Option<String>,
    /// Where its images go, in a new directory; in the store, if not said.
    pub directory: Option<PathBuf>,
    /// Paths in the configuration, of a kernel for instance, stay as they are.
    pub keep_paths: bool,
}

/// Makes a tree of a bundle.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for anything that is not as it was written, [`ErrorKind::NewerVersion`],
/// [`ErrorKind::InvalidRequest`] for a name that is taken; [`ErrorKind::Io`] and [`ErrorKind::NoSpace`]. Nothing is
/// left then.
pub(crate) fn import(
    ports: &Ports,
    store: &Store,
    from: &Path,
    request: &ImportRequest,
    observer: &dyn Observer,
) -> Result<Imported> {
    let unreadable = |error| Error::io(format!("read {}", from.display()), error);
    let file = File::open(from).map_err(unreadable)?;
    let found = file.metadata().map_err(unreadable)?;
    if !found.is_file() {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("{} is no file", from.display()),
        ));
    }
    let mut archive = tar::Archive::new(BufReader::with_capacity(CHUNK, file));
    let mut members = Members::new(&mut archive, found.len(), observer).map_err(unreadable)?;
    let manifest: Manifest = Envelope::BUNDLE.open(&members.sealed(MANIFEST)?, from)?;
    check_record(&manifest.record)?;
    manifest.images.iter().try_for_each(ImageEntry::check)?;
    let name = request.name.as_deref().unwrap_or(&manifest.record.domain);
    let own = store.domain(valid(name)?);
    let lock = own.lock(LockWait::No)?;
    require_free(ports, &own)?;
    let place = Place::new(&own, request.directory.as_deref())?;
    let work = Work {
        ports,
        own: &own,
        manifest: &manifest,
        place: &place,
        keep_paths: request.keep_paths,
        observer,
    };
    let done = work.run(&mut members, &lock);
    if done.is_err() {
        work.clean_up();
    }
    done
}

/// A name that xl takes.
fn valid(name: &str) -> Result<&str> {
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
    if name.len() > 255 || is_number || name.contains('/') || name.chars().any(char::is_control) {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("{name:?} is no name for a domain"),
        )
        .hint("--name gives it another one"));
    }
    Ok(name)
}

/// Refuses a name that is taken, and takes away what an import that was killed has left under it.
fn require_free(ports: &Ports, own: &DomainStore) -> Result<()> {
    let taken = |what: &str| {
        Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("there is {what} '{}' already", own.name()),
        )
        .hint("--name gives it another name"))
    };
    if ports.toolstack.domid_of(own.name())?.is_some() {
        return taken("a domain");
    }
    if own.exists() {
        return taken("a domain with snapshots");
    }
    let failed = |error| Error::io(format!("list {}", own.directory().display()), error);
    let mut ids = Vec::new();
    for entry in fs::read_dir(own.directory()).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let id = name.to_str().and_then(|name| Uuid::try_parse(name).ok());
        ids.extend(id.map(crate::model::name::SnapshotId));
    }
    if ids.iter().any(|id| atomic::is_there(&own.memory_path(*id))) {
        return taken("something left of a domain")
            .map_err(|error| error.hint(format!("see `xl-ext snapshot-check {}`", own.name())));
    }
    ids.into_iter()
        .try_for_each(|id| own.remove_snapshot_directory(id))?;
    // There is no image any more that could need one.
    Traced::default().collect(&own.packs_directory()).map(drop)
}

/// Where the images go.
struct Place {
    /// While they are not all there.
    partial: PathBuf,
    /// Afterwards.
    whole: PathBuf,
}

impl Place {
    /// A new directory, in that of the user or in the store.
    fn new(own: &DomainStore, directory: Option<&Path>) -> Result<Self> {
        let parent = if let Some(directory) = directory {
            std::path::absolute(directory)
                .map_err(|error| Error::io(format!("find {}", directory.display()), error))?
        } else {
            private_directory(&own.images_directory())?;
            own.images_directory()
        };
        if parent.to_str().is_none() {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("{} is no UTF-8, as libxl needs it", parent.display()),
            ));
        }
        let name = format!("{}-{}", domain_directory(own.name()), Uuid::new_v4());
        let partial = parent.join(format!("{name}.partial"));
        if !parent.is_dir() {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("{} is no directory", parent.display()),
            ));
        }
        if directory.is_none() {
            remove_partial(&parent)?;
        }
        private_directory(&partial)?;
        Ok(Self {
            partial,
            whole: parent.join(name),
        })
    }
}

/// Takes away what imports that were killed left in our own directory. The caller holds the lock.
fn remove_partial(parent: &Path) -> Result<()> {
    let failed = |error| Error::io(format!("tidy up {}", parent.display()), error);
    for entry in fs::read_dir(parent).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_partial = entry.file_name().as_encoded_bytes().ends_with(b".partial");
        if is_partial && entry.file_type().map_err(failed)?.is_dir() {
            fs::remove_dir_all(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

struct Work<'a> {
    ports: &'a Ports,
    own: &'a DomainStore,
    manifest: &'a Manifest,
    place: &'a Place,
    keep_paths: bool,
    observer: &'a dyn Observer,
}

impl Work<'_> {
    fn run(&self, members: &mut Members<'_, '_>, _lock: &DomainLock) -> Result<Imported> {
        let mut record = self.translated()?;
        let mut emptied = Vec::new();
        let mut number = 0;
        for at in 0..record.snapshots.len() {
            if let Some(configuration) = record.snapshots[at].configuration.take() {
                let (configuration, drives) =
                    self.rewritten(&configuration.to_string(), &record.snapshots[at])?;
                let configuration = serde_json::from_str(&configuration);
                record.snapshots[at].configuration = configuration.ok();
                emptied.extend(drives);
            }
            let Some(proof) = record.snapshots[at].memory.clone() else {
                continue;
            };
            let was = &self.manifest.record.snapshots[at];
            self.observer
                .step(&format!("copy the memory of '{}'", was.name()));
            let copied = members.copied(&memory_name(number), proof.bytes, |from| {
                self.memory(from, was, &record.snapshots[at])
            });
            let ((new, drives), read) = copied?;
            if read != proof.content() {
                return Err(corrupt(&format!(
                    "the memory of '{}' is damaged",
                    was.name()
                )));
            }
            record.snapshots[at].memory = Some(new);
            emptied.extend(drives);
            number += 1;
        }
        for (number, entry) in self.manifest.images.iter().enumerate() {
            if entry.bytes.is_some() {
                self.observer.step(&format!("copy image {number}"));
                members.copied(&image_name(number), entry.data_bytes(), |from| {
                    self.image(from, number, entry)
                })?;
            }
        }
        let seen = members.sums.clone();
        let sealed = members.sealed(CHECKSUMS)?;
        let checksums: Checksums = Envelope::CHECKSUMS.open(&sealed, Path::new(CHECKSUMS))?;
        if checksums != seen {
            return Err(corrupt("a checksum does not match"));
        }
        if members.entries.next().is_some() {
            return Err(corrupt("something follows its end"));
        }
        self.prove_images(&mut record)?;
        self.settle(&record)?;
        emptied.sort();
        emptied.dedup();
        if !emptied.is_empty() {
            self.observer.note(&format!(
                "CD-ROM drives are empty in the snapshots: {}",
                emptied.join(", ")
            ));
        }
        let images = self.manifest.images.iter().enumerate();
        Ok(Imported {
            domain: record.domain.clone(),
            snapshots: record.snapshots.len(),
            images: images
                .filter(|(_, entry)| entry.bytes.is_some())
                .map(|(number, _)| self.whole(number))
                .collect(),
        })
    }

    fn file_name(&self, number: usize) -> String {
        let format = self.manifest.images[number].format;
        format!("disk-{number}.{}", format.driver())
    }

    fn partial(&self, number: usize) -> PathBuf {
        self.place.partial.join(self.file_name(number))
    }

    fn whole(&self, number: usize) -> PathBuf {
        self.place.whole.join(self.file_name(number))
    }

    fn number_of(&self, was: &Path) -> Option<usize> {
        let mut images = self.manifest.images.iter();
        images.position(|entry| *entry.was == *was)
    }

    /// The image here that a label stands for.
    fn here(&self, was: &Path, needs_content: bool) -> Result<Box<Path>> {
        let number = self
            .number_of(was)
            .filter(|number| !needs_content || self.manifest.images[*number].bytes.is_some())
            .ok_or_else(|| corrupt("an image that the record names is missing"))?;
        Ok(self.whole(number).into())
    }

    /// A label, with the format under which it was to be found.
    fn backing(&self, was: &Backing, needs_content: bool) -> Result<Backing> {
        let image = self.here(&was.image, needs_content)?;
        let number = self.number_of(&was.image);
        if number.is_none_or(|number| self.manifest.images[number].format != was.format) {
            return Err(corrupt("an image has two formats"));
        }
        Ok(Backing {
            image,
            format: was.format,
        })
    }

    fn target(&self, was: &DiskTarget) -> Result<DiskTarget> {
        let Backing { image, format } = self.backing(&Backing::from(was), true)?;
        Ok(DiskTarget {
            vdev: was.vdev.clone(),
            image,
            format,
        })
    }

    /// The record as it will be here: under another name, on other images.
    fn translated(&self) -> Result<DomainRecord> {
        let mut record = self.manifest.record.clone();
        let mut uuids: BTreeMap<Uuid, Uuid> = BTreeMap::new();
        let is_renamed = record.domain != self.own.name();
        self.own.name().clone_into(&mut record.domain);
        record.generation = 1;
        record.last_operation = None;
        record.managed = None;
        // They would have images of this host changed that whoever made the file names.
        record.pulls.clear();
        for snapshot in &mut record.snapshots {
            if is_renamed {
                // Two domains of one UUID cannot run side by side.
                let new = uuids
                    .entry(snapshot.domain_uuid)
                    .or_insert_with(Uuid::new_v4);
                snapshot.domain_uuid = *new;
            }
            snapshot.snapshot.memory_file = None;
            for (proof, disk) in snapshot.disks.iter_mut().zip(&mut snapshot.snapshot.disks) {
                proof.target = self.target(&proof.target)?;
                if disk.disk.vdev() != proof.target.vdev {
                    return Err(corrupt("the disks of a snapshot are in another order"));
                }
                disk.disk.pdev_path = Some(proof.target.image.to_string_lossy().into_owned());
                disk.disk.format = Some(proof.target.format.driver().to_owned());
                let went_on = disk.external_sn.pdev_path.as_deref().map(Path::new);
                let went_on = went_on.map(|was| self.here(was, false));
                disk.external_sn.pdev_path = went_on
                    .and_then(Result::ok)
                    .map(|image| image.to_string_lossy().into_owned());
            }
        }
        for layer in &mut record.layers {
            let Backing { image, .. } = self.backing(&Backing::from(&layer.target()), true)?;
            layer.image = image;
            let below = layer.backing.as_ref();
            layer.backing = below.map(|below| self.backing(below, true)).transpose()?;
            layer.base = self.backing(&layer.base, false)?;
        }
        for left in &mut record.left_over {
            left.target = self.target(&left.target)?;
        }
        record.check()?;
        Ok(record)
    }

    /// A memory image, with a configuration that names what is here.
    fn memory(
        &self,
        from: &mut dyn Read,
        was: &SnapshotRecord,
        now: &SnapshotRecord,
    ) -> Result<(MemoryProof, Vec<String>)> {
        let mut from = from;
        let configuration = memory::read_header(&mut from)?;
        let (configuration, emptied) = self.rewritten(&configuration, now)?;
        self.own.create_snapshot_directory(was.id)?;
        let packs = self.own.packs_directory();
        let known = Known::load(&packs, self.observer)?;
        let path = self.own.partial_memory_path(was.id);
        let mut writer = Writer::create(&path, was.id, known)?;
        writer.write(&memory::header(&configuration)?)?;
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = read(from, &mut chunk)?;
            if read == 0 {
                break;
            }
            writer.write(&chunk[..read])?;
        }
        let proof = writer.finish()?.proof;
        // So that the next one finds its pages.
        packed::seal(&packs, was.id)?;
        Ok((proof, emptied))
    }

    /// A configuration that names what is here, and the drives that became empty.
    fn rewritten(
        &self,
        configuration: &str,
        now: &SnapshotRecord,
    ) -> Result<(String, Vec<String>)> {
        let image = |vdev: &str, path: &Path| {
            let held = now.disks.iter().find(|proof| proof.target.vdev == vdev);
            if let Some(proof) = held {
                return Some(Backing::from(&proof.target));
            }
            let format = self.manifest.images[self.number_of(path)?].format;
            let image = self.here(path, true).ok()?;
            Some(Backing { image, format })
        };
        let identity = Identity {
            name: self.own.name(),
            uuid: now.domain_uuid,
        };
        rewrite(configuration, &identity, self.keep_paths, image)
    }

    fn image(&self, from: &mut dyn Read, number: usize, entry: &ImageEntry) -> Result<()> {
        let path = self.partial(number);
        let failed = |error| Error::io(format!("write {}", path.display()), error);
        let file = atomic::create_new(&path)?;
        file.set_len(entry.bytes.unwrap_or(0)).map_err(failed)?;
        let mut chunk = vec![0; CHUNK];
        for (offset, length) in &entry.data {
            let (mut at, end) = (*offset, *offset + *length);
            while at < end {
                let wanted = usize::try_from(end - at).map_or(CHUNK, |left| left.min(CHUNK));
                let read = read(from, &mut chunk[..wanted])?;
                if read == 0 {
                    return Err(corrupt("it ends in an image"));
                }
                file.write_all_at(&chunk[..read], at).map_err(failed)?;
                at += read as u64;
            }
        }
        file.sync_all().map_err(failed)
    }

    /// QEMU opens no image before its head was looked at. Then each gets the one below it here, and is what the
    /// record says, or the snapshots are not.
    fn prove_images(&self, record: &mut DomainRecord) -> Result<()> {
        for (number, entry) in self.manifest.images.iter().enumerate() {
            if entry.bytes.is_some() && entry.format == ImageFormat::Qcow2 {
                let layer = self.manifest.record.layer(&entry.was);
                let file = atomic::open_own(&self.partial(number))?;
                qcow2::vet(&file, layer.is_some_and(|layer| layer.backing.is_some()))?;
            }
        }
        for (was, now) in self.manifest.record.layers.iter().zip(&record.layers) {
            let number = self.number_of(&was.image);
            let Some((number, onto)) = number.zip(now.backing.as_ref()) else {
                continue;
            };
            let here = Layer {
                image: self.partial(number).into(),
                ..now.clone()
            };
            self.ports.images.rebase_layer(&here, Some(onto), false)?;
        }
        let was = &self.manifest.record.layers;
        for (was, now) in was.iter().zip(&mut record.layers) {
            now.below_written = match &was.backing {
                Some(below) => Some(self.seen(&below.image, below.format)?.written),
                None => None,
            };
        }
        let was = &self.manifest.record.snapshots;
        for (was, now) in was.iter().zip(&mut record.snapshots) {
            for (was, proof) in was.disks.iter().zip(&mut now.disks) {
                let facts = self.seen(&was.target.image, proof.target.format)?;
                match proof.kind {
                    DiskKind::External => proof.stamp = Some(facts.written),
                    DiskKind::Internal => {
                        let held = facts.snapshot(&now.id.tag()).map(|held| held.stamp);
                        if held.is_none() || (proof.stamp.is_some() && held != proof.stamp) {
                            return Err(corrupt(
                                "an image does not hold a snapshot that it should",
                            ));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// An image of the bundle as it is here.
    fn seen(&self, was: &Path, format: ImageFormat) -> Result<ImageFacts> {
        let number = self
            .number_of(was)
            .ok_or_else(|| corrupt("an image that the record names is missing"))?;
        let facts = self.ports.images.facts(&self.partial(number), format)?;
        facts.ok_or_else(|| corrupt("an image is missing"))
    }

    /// From here on it is there: first the images, then the memory, then the record.
    fn settle(&self, record: &DomainRecord) -> Result<()> {
        let Place { partial, whole } = self.place;
        let failed = |error| Error::io(format!("rename {}", partial.display()), error);
        for (number, entry) in self.manifest.images.iter().enumerate() {
            if entry.bytes.is_some() {
                self.ports.images.make_durable(&self.partial(number))?;
            }
        }
        fs::rename(partial, whole).map_err(failed)?;
        atomic::sync_parent(whole)?;
        for snapshot in record.snapshots.iter().filter(|s| s.memory.is_some()) {
            self.own.seal_memory(snapshot.id)?;
        }
        for snapshot in &record.snapshots {
            self.own.create_snapshot_directory(snapshot.id)?;
        }
        self.own.save(record)
    }

    /// Takes away what we made: nobody knows of it.
    fn clean_up(&self) {
        // A commit that failed may have happened all the same, when only its flush did not.
        if self.own.exists() {
            return;
        }
        for directory in [&self.place.partial, &self.place.whole] {
            if let Err(error) = fs::remove_dir_all(directory)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!("remove {}: {error}", directory.display());
            }
        }
        for snapshot in &self.manifest.record.snapshots {
            let removed = self.own.remove_snapshot_directory(snapshot.id);
            let discarded = packed::discard(&self.own.packs_directory(), snapshot.id);
            for error in [removed, discarded].into_iter().filter_map(Result::err) {
                tracing::warn!("{}", error.report());
            }
        }
    }
}

fn read(from: &mut dyn Read, chunk: &mut [u8]) -> Result<usize> {
    loop {
        match from.read(chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("read the bundle", error)),
            Ok(read) => return Ok(read),
        }
    }
}
