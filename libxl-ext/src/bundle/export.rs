//! Writing a bundle.

use super::Exported;
use super::manifest::{
    CHECKSUMS, Checksums, ImageEntry, MANIFEST, Manifest, check_record, image_name, memory_name,
};
use super::ranges::{self, Passing, Watch};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::model::configuration::disks_of;
use crate::model::disk::{DeviceDisk, ImageFormat};
use crate::model::layer::Backing;
use crate::model::record::{DomainRecord, MemoryProof};
use crate::observe::{Inventory, configuration_of};
use crate::port::{Ports, wait_until_closed};
use crate::store::{DomainStore, Envelope, atomic};
use crate::verify;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

/// Writes the whole tree to a new file. Nobody may have the images open: what is in them would change while it is
/// read.
///
/// # Errors
/// [`ErrorKind::DomainState`] while the domain is there, [`ErrorKind::Corrupt`] for snapshots that are not what they
/// were, [`ErrorKind::Unsupported`] for images that stand on one that is not ours; [`ErrorKind::Io`] and
/// [`ErrorKind::NoSpace`]. No file is left then.
pub(crate) fn export(
    ports: &Ports,
    inventory: &Inventory,
    store: &DomainStore,
    to: &Path,
    observer: &dyn Observer,
) -> Result<Exported> {
    let record = &inventory.record;
    if inventory.live.is_some() {
        return Err(Error::new(
            ErrorKind::DomainState,
            format!(
                "domain '{}' is there, and writes to its images",
                record.domain
            ),
        )
        .hint("shut it down; a snapshot that is taken before keeps its state"));
    }
    if record.snapshots.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("domain '{}' has no snapshots", record.domain),
        ));
    }
    check_record(record)?;
    require_as_recorded(inventory)?;
    let sources = sources(inventory, store)?;
    let mut images = Vec::new();
    let mut files = Vec::new();
    for (source, is_needed) in &sources {
        let (entry, file) = image(ports, record, source, *is_needed)?;
        images.push(entry);
        files.push(file);
    }
    let manifest = Manifest {
        record: as_taken_along(record),
        images,
    };
    write(&manifest, &files, store, to, observer)
}

/// The record of what goes along: memory as `xl restore` takes it, since packs belong to this store, and snapshots alone.
fn as_taken_along(record: &DomainRecord) -> DomainRecord {
    let mut record = record.clone();
    record.managed = None;
    record.pulls.clear();
    for snapshot in &mut record.snapshots {
        snapshot.memory = snapshot.memory.as_ref().map(MemoryProof::content);
    }
    record
}

/// A snapshot that is not what it was is of no use elsewhere either.
fn require_as_recorded(inventory: &Inventory) -> Result<()> {
    let record = &inventory.record;
    for snapshot in &record.snapshots {
        verify::require_disks_as_recorded(inventory, snapshot)?;
    }
    for layer in &record.layers {
        if let Some(what) = verify::chain(inventory, &layer.image).into_iter().next() {
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
    }
    Ok(())
}

/// Every image that the tree names, and whether its content is needed. That of a base that everything was copied
/// out of is not.
fn sources(inventory: &Inventory, store: &DomainStore) -> Result<Vec<(Backing, bool)>> {
    let record = &inventory.record;
    let mut sources: Vec<(Backing, bool)> = Vec::new();
    let mut add = |image: Backing, is_needed: bool| match sources
        .iter_mut()
        .find(|(known, _)| known.image == image.image)
    {
        Some((_, needed)) => *needed |= is_needed,
        None => sources.push((image, is_needed)),
    };
    for proof in record.snapshots.iter().flat_map(|s| &s.disks) {
        add(Backing::from(&proof.target), true);
    }
    for layer in &record.layers {
        add(Backing::from(&layer.target()), true);
        if let Some(below) = &layer.backing {
            add(below.clone(), true);
        }
        add(layer.base.clone(), false);
    }
    for left in &record.left_over {
        add(Backing::from(&left.target), true);
    }
    // Disks that no snapshot holds: those that the guest only reads.
    for snapshot in &record.snapshots {
        if snapshot.configuration.is_none() && snapshot.memory.is_none() {
            continue;
        }
        let disks = disks_of(&configuration_of(store, snapshot)?).map_err(|error| {
            Error::new(
                ErrorKind::Corrupt,
                format!("read the configuration in snapshot '{}'", snapshot.name()),
            )
            .because(error)
        })?;
        let held = |disk: &DeviceDisk| {
            snapshot
                .disks
                .iter()
                .any(|proof| proof.target.vdev == disk.vdev())
        };
        for disk in disks {
            let Some(image) = disk.pdev_path.as_deref().filter(|path| !path.is_empty()) else {
                continue;
            };
            if disk.is_cdrom != 0 || held(&disk) {
                continue;
            }
            let format = disk.format.as_deref().and_then(ImageFormat::of);
            let format = format.filter(|_| disk.readwrite == 0).ok_or_else(|| {
                Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "snapshot '{}' does not hold {} ({image}), which the guest wrote to",
                        snapshot.name(),
                        disk.vdev()
                    ),
                )
                .hint("without it the guest cannot go on elsewhere: delete the snapshot, or take it again")
            })?;
            add(
                Backing {
                    image: Path::new(image).into(),
                    format,
                },
                true,
            );
        }
    }
    Ok(sources)
}

/// An image as it will be in the bundle, opened.
fn image(
    ports: &Ports,
    record: &DomainRecord,
    source: &Backing,
    is_needed: bool,
) -> Result<(ImageEntry, Option<File>)> {
    let Backing { image, format } = source;
    let mut entry = ImageEntry {
        was: image.clone(),
        format: *format,
        bytes: None,
        data: Vec::new(),
    };
    if !is_needed {
        return Ok((entry, None));
    }
    let facts = ports
        .images
        .facts(image, *format)?
        .ok_or_else(|| Error::new(ErrorKind::Io, format!("{} is missing", image.display())))?;
    let is_layer = record.layer(image).is_some();
    if let Some(below) = facts.backing.filter(|_| !is_layer) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} stands on {}, which is no image of ours",
                image.display(),
                below.display()
            ),
        )
        .hint(
            "`qemu-img rebase -b ''` makes it an image of its own, while no snapshot stands on it",
        ));
    }
    wait_until_closed(image)?;
    // An image of the user's may be a link.
    let file =
        File::open(image).map_err(|error| Error::io(format!("open {}", image.display()), error))?;
    let (bytes, data) = ranges::of_file(&file, image)?;
    entry.bytes = Some(bytes);
    entry.data = data;
    Ok((entry, Some(file)))
}

struct Writer<'a, 'b> {
    archive: tar::Builder<&'a mut BufWriter<tempfile::NamedTempFile>>,
    checksums: Checksums,
    watch: Watch<'b>,
    to: &'a Path,
}

impl Writer<'_, '_> {
    fn append(&mut self, name: &str, bytes: u64, content: impl Read) -> Result<MemoryProof> {
        let mut header = tar::Header::new_gnu();
        let failed = |error| Error::io(format!("write {}", self.to.display()), error);
        header.set_path(name).map_err(failed)?;
        header.set_size(bytes);
        header.set_mode(0o600);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        let mut passing = Passing::new(content.take(bytes), &mut self.watch);
        let appended = self.archive.append(&header, &mut passing);
        if let Some(error) = passing.failed {
            return Err(error);
        }
        appended.map_err(failed)?;
        let proof = passing.sum.proof();
        if proof.bytes != bytes {
            return Err(Error::new(
                ErrorKind::Stale,
                format!("what becomes {name} grew shorter while it was read"),
            ));
        }
        self.checksums.members.push(proof.clone());
        Ok(proof)
    }
}

fn write(
    manifest: &Manifest,
    files: &[Option<File>],
    store: &DomainStore,
    to: &Path,
    observer: &dyn Observer,
) -> Result<Exported> {
    let failed = |error: io::Error| Error::io(format!("write {}", to.display()), error);
    let directory = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Mode 0600: it holds all that the guests knew.
    let file = tempfile::Builder::new()
        .prefix(".xl-ext-export-")
        .tempfile_in(directory)
        .map_err(failed)?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let memories = manifest
        .record
        .snapshots
        .iter()
        .filter_map(|snapshot| Some((snapshot, snapshot.memory.as_ref()?)));
    let memories: Vec<_> = memories.collect();
    let of_memory: u64 = memories.iter().map(|(_, proof)| proof.bytes).sum();
    let of_images: u64 = manifest.images.iter().map(ImageEntry::data_bytes).sum();
    let sealed = Envelope::BUNDLE.seal(manifest)?;
    let mut writer = Writer {
        archive: tar::Builder::new(&mut file),
        checksums: Checksums::default(),
        watch: Watch {
            observer,
            done: 0,
            total: of_memory + of_images,
        },
        to,
    };
    writer.append(MANIFEST, sealed.len() as u64, sealed.as_slice())?;
    for (number, (snapshot, proof)) in memories.iter().enumerate() {
        observer.step(&format!("copy the memory of '{}'", snapshot.name()));
        let kept = store.kept_memory(snapshot);
        let path = &kept.image;
        let written = writer.append(&memory_name(number), proof.bytes, kept.open()?)?;
        if written != proof.content() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "memory image {} is damaged: its checksum does not match",
                    path.display()
                ),
            ));
        }
    }
    let with_content = manifest.images.iter().zip(files);
    for (number, (entry, file)) in with_content.enumerate() {
        let Some(file) = file else { continue };
        observer.step(&format!("copy {}", entry.was.display()));
        let data = ranges::Data::new(file, &entry.data);
        writer.append(&image_name(number), entry.data_bytes(), data)?;
        // Nobody takes our lock but us.
        let now = ranges::of_file(file, &entry.was)?;
        if now.0 != entry.bytes.unwrap_or(0) {
            return Err(Error::new(
                ErrorKind::Stale,
                format!("{} changed while it was read", entry.was.display()),
            ));
        }
        // A guest that was started meanwhile writes to it.
        wait_until_closed(&entry.was)?;
    }
    let checksums = Envelope::CHECKSUMS.seal(&writer.checksums)?;
    writer.append(CHECKSUMS, checksums.len() as u64, checksums.as_slice())?;
    writer.archive.finish().map_err(failed)?;
    drop(writer);
    file.flush().map_err(failed)?;
    let file = file
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    file.as_file().sync_all().map_err(failed)?;
    let bytes = file.as_file().metadata().map_err(failed)?.len();
    file.persist_noclobber(to)
        .map_err(|error| failed(error.error))?;
    atomic::sync_parent(to)?;
    Ok(Exported {
        snapshots: manifest.record.snapshots.len(),
        images: files.iter().flatten().count(),
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pull::tests::pull;

    #[test]
    fn pulls_of_this_host_do_not_go_along() {
        let mut record = DomainRecord::new("g");
        record.begin_pull(&pull("/i/a", &["/i/b"]));
        assert!(as_taken_along(&record).pulls.is_empty());
    }
}
