//! What a bundle says of itself.

use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::ImageFormat;
use crate::model::record::{DomainRecord, MemoryProof, RecordState};
use serde::{Deserialize, Serialize};
use std::path::Path;
use xxhash_rust::xxh3::Xxh3;

/// The first member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// The tree. Its paths are those of the host that it comes from.
    pub(super) record: DomainRecord,
    /// Every image that the tree names.
    pub(super) images: Vec<ImageEntry>,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ImageEntry {
    /// Its path where it comes from.
    pub(super) was: Box<Path>,
    /// Its format.
    pub(super) format: ImageFormat,
    /// Length of the file, in bytes; none for one that is only named, and needed by nothing.
    pub(super) bytes: Option<u64>,
    /// Where there is data: offset and length in bytes, in order.
    pub(super) data: Vec<(u64, u64)>,
}

/// The last member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checksums {
    /// In the order of the members.
    pub(super) members: Vec<MemoryProof>,
}

/// The length and the checksum of what goes by.
#[derive(Default)]
pub(super) struct Sum {
    hash: Xxh3,
    bytes: u64,
}

impl Sum {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    pub(super) fn proof(&self) -> MemoryProof {
        MemoryProof::plain(self.bytes, format!("{:032x}", self.hash.digest128()))
    }
}

pub(super) const MANIFEST: &str = "manifest";
pub(super) const CHECKSUMS: &str = "checksums";

pub(super) fn memory_name(number: usize) -> String {
    format!("memory/{number}")
}

pub(super) fn image_name(number: usize) -> String {
    format!("image/{number}")
}

impl ImageEntry {
    /// How many bytes of data there are.
    pub(super) fn data_bytes(&self) -> u64 {
        self.data.iter().map(|(_, length)| length).sum()
    }

    /// The ranges are in order and within the file, and do not overlap.
    pub(super) fn check(&self) -> Result<()> {
        let mut end = 0;
        for (offset, length) in &self.data {
            let next = offset.checked_add(*length);
            if *offset < end || *length == 0 || next.is_none() {
                return Err(corrupt("the data of an image is not in order"));
            }
            end = next.unwrap_or(end);
        }
        if end > self.bytes.unwrap_or(0) {
            return Err(corrupt("the data of an image goes beyond its end"));
        }
        Ok(())
    }
}

/// Whether a tree can be taken along as it is.
pub(super) fn check_record(record: &DomainRecord) -> Result<()> {
    record.check()?;
    let unfinished = record
        .snapshots
        .iter()
        .any(|snapshot| snapshot.state == RecordState::Deleting)
        || record.layers.iter().any(|layer| layer.merging.is_some());
    if unfinished {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!(
                "a deletion of a snapshot of '{}' is not finished",
                record.domain
            ),
        )
        .hint("give the `snapshot-delete` again"));
    }
    Ok(())
}

pub(super) fn corrupt(why: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("this is no whole bundle: {why}"),
    )
    .hint("nothing was changed")
}
