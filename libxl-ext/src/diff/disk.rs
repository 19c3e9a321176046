//! Disks, block by block, as the guest saw them. Two buffers are all that is kept of them.

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Observer, Progress};
use crate::model::disk::DiskKind;
use crate::model::layer::Backing;
use crate::model::record::{DiskProof, DomainRecord, SnapshotRecord};
use crate::port::{DiskContent, Ports};
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

/// The unit in which differences are counted, in bytes.
pub(super) const BLOCK: usize = 4096;

/// How much is read at a time, in bytes.
const CHUNK: usize = 1 << 20;

/// What differs on one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskDifference {
    /// Name of the virtual device.
    pub vdev: String,
    /// Its length in the first snapshot, in bytes; none if that does not hold it.
    pub from_bytes: Option<u64>,
    /// Its length in the second one.
    pub to_bytes: Option<u64>,
    /// How many bytes the blocks of 4096 bytes have that differ, as far as both are long.
    pub changed_bytes: u64,
    /// How many ranges these form.
    pub ranges: u64,
}

pub(super) fn compare(
    ports: &Ports,
    record: &DomainRecord,
    [from, to]: [&SnapshotRecord; 2],
    observer: &dyn Observer,
) -> Result<Vec<DiskDifference>> {
    let mut vdevs: Vec<&str> = Vec::new();
    for proof in from.disks.iter().chain(&to.disks) {
        if !vdevs.contains(&&*proof.target.vdev) {
            vdevs.push(&proof.target.vdev);
        }
    }
    let open = |snapshot: &SnapshotRecord, vdev: &str| {
        let mut disks = snapshot.disks.iter();
        let proof = disks.find(|proof| proof.target.vdev == vdev);
        proof
            .map(|proof| content(ports, record, snapshot, proof))
            .transpose()
    };
    let mut found = Vec::new();
    for vdev in vdevs {
        observer.step(&format!("compare {vdev}"));
        let (mut a, mut b) = (open(from, vdev)?, open(to, vdev)?);
        let mut difference = DiskDifference {
            vdev: vdev.to_owned(),
            from_bytes: a.as_ref().map(|content| content.length()),
            to_bytes: b.as_ref().map(|content| content.length()),
            changed_bytes: 0,
            ranges: 0,
        };
        if let (Some(a), Some(b)) = (&mut a, &mut b) {
            let (bytes, ranges) = blocks(&mut **a, &mut **b, observer)?;
            difference.changed_bytes = bytes;
            difference.ranges = ranges;
        }
        found.push(difference);
    }
    Ok(found)
}

/// XXH3-128 of what a disk of a snapshot holds, as its guest sees it, in 32 hexadecimal digits. All of it is read.
///
/// # Errors
/// [`ErrorKind::Aborted`]; what the ports report.
pub(crate) fn checksum(
    ports: &Ports,
    record: &DomainRecord,
    snapshot: &SnapshotRecord,
    proof: &DiskProof,
    observer: &dyn Observer,
) -> Result<String> {
    let vdev = &proof.target.vdev;
    observer.step(&format!("read {vdev} of '{}'", snapshot.name()));
    let mut content = content(ports, record, snapshot, proof)?;
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; CHUNK];
    each_chunk(content.length(), observer, |at, length| {
        let chunk = &mut buffer[..length];
        content.read_at(at, chunk)?;
        hash.update(chunk);
        Ok(())
    })?;
    Ok(format!("{:032x}", hash.digest128()))
}

fn content(
    ports: &Ports,
    record: &DomainRecord,
    snapshot: &SnapshotRecord,
    proof: &DiskProof,
) -> Result<Box<dyn DiskContent>> {
    let mut chain = vec![Backing::from(&proof.target)];
    for image in record.chain(&proof.target.image) {
        let below = record.layer(image).and_then(|layer| layer.backing.clone());
        let is_new = |below: &Backing| chain.iter().all(|known| known.image != below.image);
        chain.extend(below.filter(is_new));
    }
    let tag = snapshot.id.tag();
    let tag = (proof.kind == DiskKind::Internal).then_some(&*tag);
    ports.images.content(&chain, tag)
}

/// Bytes of the blocks that differ, and how many ranges they form.
fn blocks(
    a: &mut dyn DiskContent,
    b: &mut dyn DiskContent,
    observer: &dyn Observer,
) -> Result<(u64, u64)> {
    let total = a.length().min(b.length());
    let mut buffers = [vec![0; CHUNK], vec![0; CHUNK]];
    let (mut bytes, mut ranges, mut in_range) = (0, 0, false);
    each_chunk(total, observer, |at, length| {
        let [first, second] = &mut buffers;
        let (first, second) = (&mut first[..length], &mut second[..length]);
        a.read_at(at, first)?;
        b.read_at(at, second)?;
        if first == second {
            in_range = false;
        } else {
            for (first, second) in first.chunks(BLOCK).zip(second.chunks(BLOCK)) {
                let differs = first != second;
                bytes += if differs { first.len() as u64 } else { 0 };
                ranges += u64::from(differs && !in_range);
                in_range = differs;
            }
        }
        Ok(())
    })?;
    Ok((bytes, ranges))
}

/// Goes through so many bytes: each part by its offset and length.
fn each_chunk(
    total: u64,
    observer: &dyn Observer,
    mut each: impl FnMut(u64, usize) -> Result<()>,
) -> Result<()> {
    let mut at = 0;
    while at < total {
        if observer.wants_abort() {
            return Err(Error::new(ErrorKind::Aborted, "stopped on request"));
        }
        let length = usize::try_from(total - at).map_or(CHUNK, |left| left.min(CHUNK));
        each(at, length)?;
        at += length as u64;
        observer.progress(Progress {
            done: at,
            total,
            bytes: true,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Unobserved;

    struct Bytes(Vec<u8>);

    impl DiskContent for Bytes {
        fn length(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
            let offset = usize::try_from(offset).unwrap();
            buffer.copy_from_slice(&self.0[offset..][..buffer.len()]);
            Ok(())
        }
    }

    #[test]
    fn ranges_are_counted_over_the_ends_of_what_is_read_at_a_time() {
        let before = vec![0; 3 * CHUNK + 100];
        let count = |changes: &[usize]| {
            let mut after = before.clone();
            for at in changes {
                after[*at] = 1;
            }
            let (mut a, mut b) = (Bytes(before.clone()), Bytes(after));
            blocks(&mut a, &mut b, &Unobserved).unwrap()
        };
        assert_eq!(count(&[]), (0, 0));
        let block = BLOCK as u64;
        assert_eq!(count(&[0, 1, BLOCK - 1]), (block, 1));
        assert_eq!(count(&[CHUNK - 1, CHUNK]), (2 * block, 1));
        assert_eq!(count(&[CHUNK - 1, CHUNK + BLOCK]), (2 * block, 2));
        assert_eq!(count(&[CHUNK - 1, 2 * CHUNK]), (2 * block, 2));
        assert_eq!(
            count(&[3 * CHUNK + 99]),
            (100, 1),
            "the last block is short"
        );
        let (mut a, mut b) = (Bytes(vec![0; 5]), Bytes(vec![0; 5000]));
        assert_eq!(blocks(&mut a, &mut b, &Unobserved).unwrap(), (0, 0));
    }
}
