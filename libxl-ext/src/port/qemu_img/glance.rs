//! What `qemu-img info` says of an ordinary image, without a process for it: in the lab that takes a tenth of the time of
//! all of a domain's restore.

use super::written;
use crate::model::disk::{ImageFacts, ImageFormat, InternalSnapshot};
use crate::model::qcow2::{Entry, HEADER, Header, SNAPSHOT, backing_format, feature};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// QEMU's limit for the name of the image below, in bytes.
const NAME_MAX: u64 = 1023;

/// QEMU's limit for the number of internal snapshots.
const SNAPSHOTS_MAX: u32 = 65536;

/// QEMU's limit for the table of them, in bytes.
const TABLE_MAX: u64 = 64 << 20;

/// Features that change nothing of what is read here.
const KNOWN: u64 = feature::DIRTY | feature::CORRUPT | feature::COMPRESSION | feature::EXTENDED_L2;

/// What is to be seen of an image. None of one that is out of the ordinary, be it damaged, encrypted, newer or not to be
/// read: what there is to say of that, QEMU says.
pub(super) fn facts(image: &Path, format: ImageFormat) -> Option<ImageFacts> {
    let metadata = std::fs::metadata(image).ok()?;
    let is_device = metadata.file_type().is_block_device();
    if !metadata.is_file() && !is_device {
        return None;
    }
    let mut file = File::open(image).ok()?;
    let length = file.seek(SeekFrom::End(0)).ok()?;
    let mut facts = ImageFacts {
        // QEMU counts in sectors.
        virtual_size: length.checked_next_multiple_of(512)?,
        allocated: metadata.blocks() * 512,
        written: written(&metadata),
        is_device,
        retired: false,
        backing: None,
        backing_format: None,
        snapshots: Vec::new(),
    };
    if format == ImageFormat::Qcow2 {
        add_qcow2(&file, length, &mut facts)?;
    }
    Some(facts)
}

/// Adds what the image itself says.
fn add_qcow2(file: &File, file_length: u64, facts: &mut ImageFacts) -> Option<()> {
    let mut bytes = Vec::with_capacity(HEADER);
    let mut head = file;
    head.rewind().ok()?;
    head.take(HEADER as u64).read_to_end(&mut bytes).ok()?;
    let header = Header::parse(&bytes)?;
    if header.is_encrypted || header.features & !KNOWN != 0 || !header.is_consistent(file_length) {
        return None;
    }
    if let Some(name) = &header.backing {
        let is_possible = name.end <= header.cluster && name.end - name.start <= NAME_MAX;
        let name = is_possible.then(|| text(file, name.clone())).flatten()?;
        // Anything else than a path may be one more way to say what to open.
        let is_path = name.starts_with('/') || !name.contains(':');
        facts.backing = Some(is_path.then(|| PathBuf::from(name))?);
        facts.backing_format = backing_format(&part(file, header.extensions()?)?).ok()?;
    }
    facts.virtual_size = header.length;
    facts.snapshots = snapshots(file, &header)?;
    Some(())
}

fn snapshots(file: &File, header: &Header) -> Option<Vec<InternalSnapshot>> {
    if header.snapshots > SNAPSHOTS_MAX || !header.snapshots_at.is_multiple_of(8) {
        return None;
    }
    let mut at = header.snapshots_at;
    let mut found = Vec::new();
    for _ in 0..header.snapshots {
        let left = TABLE_MAX.checked_sub(at - header.snapshots_at)?;
        let entry = Entry::parse(&part(file, at..at.checked_add(SNAPSHOT as u64)?)?)?;
        let name = &entry.name;
        let start = at.checked_add(name.start)?;
        let is_possible = entry.next() <= left;
        let end = start.checked_add(name.end - name.start)?;
        let name = is_possible.then(|| part(file, start..end)).flatten()?;
        at = at.checked_add(entry.next())?;
        found.push(entry.named(name)?);
    }
    Some(found)
}

/// Bytes of a file, all of them. Whoever asks has seen to it that they are few.
fn part(file: &File, range: Range<u64>) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(range.end.checked_sub(range.start)?).ok()?];
    file.read_exact_at(&mut bytes, range.start).ok()?;
    Some(bytes)
}

fn text(file: &File, range: Range<u64>) -> Option<String> {
    let text = String::from_utf8(part(file, range)?).ok()?;
    (!text.is_empty() && !text.contains('\0')).then_some(text)
}
