//! For the fuzz targets: files whose checksums are right, whatever is in them. Without that nothing beyond the first
//! checksum would ever be reached.

use super::section::{ImageHead, Writing};
use super::{Key, Known, Reader, Writer, pack, seal};
use crate::error::Result;
use crate::event::Unobserved;
use crate::model::name::SnapshotId;
use crate::store::{Envelope, private_directory};
use std::io::Read as _;
use std::path::Path;
use uuid::Uuid;

/// The identity of both files.
const ID: Uuid = Uuid::from_u128(0x5eed);

/// A part of a file: its kind, the length that it claims to become, what is stored.
type Part<'a> = (u32, u32, &'a [u8]);

/// Writes both files, and reads what they are.
pub(crate) fn forged(directory: &Path, parts: &[Part<'_>], pack_parts: &[Part<'_>]) -> Result<u64> {
    let (image, packs) = (directory.join("memory"), directory.join("packs"));
    private_directory(&packs)?;
    for path in [&image, &pack::path(&packs, ID)] {
        // Those of the input before.
        let _ = std::fs::remove_file(path);
    }
    let mut out = Writing::create(&image, Envelope::IMAGE, ID, &ImageHead { id: ID })?;
    for (kind, length, stored) in parts {
        out.append_raw(*kind, *length, stored)?;
    }
    let head = pack::head(ID, &Key([ID; 2]));
    let path = pack::path(&packs, ID);
    let mut out = Writing::create(&path, Envelope::PACK, ID, &head)?;
    for (kind, length, stored) in pack_parts {
        out.append_raw(*kind, *length, stored)?;
    }
    // It may say of itself that it is of any length.
    let mut reader = Reader::open(&image, &packs)?.take(8 << 20);
    let read = std::io::copy(&mut reader, &mut std::io::sink());
    read.map_err(|error| crate::Error::io("read it", error))
}

/// Takes bytes as those of `xl save`, and reads them back.
pub(crate) fn there_and_back(directory: &Path, bytes: &[u8], length: usize) -> Result<Vec<u8>> {
    let (image, packs) = (directory.join("memory"), directory.join("packs"));
    let _ = std::fs::remove_file(&image);
    let _ = std::fs::remove_dir_all(&packs);
    let known = Known::load(&packs, &Unobserved)?;
    let mut writer = Writer::create(&image, SnapshotId(ID), known)?;
    for piece in bytes.chunks(length.max(1)) {
        writer.write(piece)?;
    }
    writer.finish()?;
    seal(&packs, SnapshotId(ID))?;
    let mut read = Vec::new();
    Reader::open(&image, &packs)?
        .read_to_end(&mut read)
        .map_err(|error| crate::Error::io("read it", error))?;
    Ok(read)
}
