//! What the first bytes of a qcow2 image and its table of snapshots say. (QEMU's docs/interop/qcow2.txt.)

use super::disk::{InternalSnapshot, Stamp};
use nom::bytes::complete::{tag, take};
use nom::combinator::{cond, rest, verify};
use nom::multi::{fold_many0, length_data};
use nom::number::complete::{be_u16, be_u32, be_u64};
use nom::sequence::preceded;
use nom::{IResult, Parser};
use std::ops::Range;

/// Bytes of a header with all that is read of it.
pub(crate) const HEADER: usize = 104;

/// Bytes of a header of version 2.
const HEADER_2: u32 = 72;

/// Bytes of one of version 3 at least.
const HEADER_3: u32 = 104;

/// The extension that names the format of the image below.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// Features that a program has to know in order to read an image, each by its bit.
pub(crate) mod feature {
    /// The image was not closed.
    pub(crate) const DIRTY: u64 = 1 << 0;
    /// The image was found to be damaged.
    pub(crate) const CORRUPT: u64 = 1 << 1;
    /// Another compression than zlib.
    pub(crate) const COMPRESSION: u64 = 1 << 3;
    /// Parts of clusters are allocated.
    pub(crate) const EXTENDED_L2: u64 = 1 << 4;
}

/// The header of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Where the name of the image below is, if there is one.
    pub(crate) backing: Option<Range<u64>>,
    /// Bytes of a cluster.
    pub(crate) cluster: u64,
    /// Size that the guest sees, in bytes.
    pub(crate) length: u64,
    /// Whether the content is encrypted.
    pub(crate) is_encrypted: bool,
    /// How many clusters of its table of tables there are, and where that is.
    l1: (u32, u64),
    /// How many internal snapshots there are.
    pub(crate) snapshots: u32,
    /// Where the table of these is.
    pub(crate) snapshots_at: u64,
    /// Bits of [`feature`], and others.
    pub(crate) features: u64,
    /// Where the extensions begin.
    extensions_at: u32,
}

impl Header {
    /// The header at the beginning of `bytes`, if they begin with one of a version that we know. Nothing in it is believed
    /// yet.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        header(bytes).ok().map(|(_, header)| header)
    }

    /// Where the extensions are, if that is possible.
    pub(crate) fn extensions(&self) -> Option<Range<u64>> {
        let backing = self.backing.as_ref().map(|backing| backing.start);
        let end = backing.unwrap_or(self.cluster);
        let start = u64::from(self.extensions_at);
        (start <= end && end <= self.cluster).then_some(start..end)
    }

    /// Whether its table of tables is where one can be in a file of so many bytes, and is of the disk's length.
    pub(crate) fn is_consistent(&self, file_length: u64) -> bool {
        let (entries, at) = self.l1;
        // Each entry is of a table of one cluster, whose entries have 8 bytes, or 16 with extended ones.
        let is_extended = self.features & feature::EXTENDED_L2 != 0;
        let of_one = self.cluster / if is_extended { 16 } else { 8 };
        let covered = of_one.checked_mul(self.cluster);
        let needed = covered.map_or(0, |covered| self.length.div_ceil(covered));
        let end = at.checked_add(u64::from(entries) * 8);
        needed <= u64::from(entries)
            && at.is_multiple_of(self.cluster)
            && end.is_some_and(|end| end <= file_length)
    }
}

fn header(bytes: &[u8]) -> IResult<&[u8], Header> {
    let version = preceded(tag(&b"QFI\xfb"[..]), be_u32);
    let (rest, version) = verify(version, |version| matches!(version, 2 | 3)).parse(bytes)?;
    let (rest, (backing_at, backing_length, cluster_bits, length, encryption)) = (
        be_u64,
        be_u32,
        verify(be_u32, |bits| (9..=21).contains(bits)),
        be_u64,
        be_u32,
    )
        .parse(rest)?;
    let refcounts = (be_u64, be_u32);
    let (rest, (l1_entries, l1_at, _, snapshots, snapshots_at)) =
        (be_u32, be_u64, refcounts, be_u32, be_u64).parse(rest)?;
    // Compatible features, those that a writer may have to give up, and the width of reference counts are nothing to us.
    let others = (be_u64, be_u64, be_u32);
    let header_length = verify(be_u32, |length| *length >= HEADER_3);
    let mut newer = cond(version == 3, (be_u64, others, header_length));
    let (rest, newer) = newer.parse(rest)?;
    let (features, extensions_at) = newer.map_or((0, HEADER_2), |newer| (newer.0, newer.2));
    let backing = backing_at..backing_at.saturating_add(u64::from(backing_length));
    let header = Header {
        backing: (backing_at != 0).then_some(backing),
        cluster: 1 << cluster_bits,
        length,
        is_encrypted: encryption != 0,
        l1: (l1_entries, l1_at),
        snapshots,
        snapshots_at,
        features,
        extensions_at,
    };
    Ok((rest, header))
}

/// What is not as it is written down how it should be.
#[derive(Debug)]
pub(crate) struct Odd;

/// The format of the image below, if the extensions say it.
///
/// # Errors
/// If they cannot be read.
pub(crate) fn backing_format(extensions: &[u8]) -> Result<Option<String>, Odd> {
    let keep = |found, (kind, data): (u32, _)| match kind {
        BACKING_FORMAT => Some(data),
        _ => found,
    };
    // The end says so, unless there is no room for it.
    let mut all = (fold_many0(extension, || None, keep), rest);
    let (_, (found, after)) = all.parse(extensions).map_err(|_| Odd)?;
    if after.len() >= 8 && !after.starts_with(&[0; 4]) {
        return Err(Odd);
    }
    let name = found.map(|name| String::from_utf8(name.to_vec()));
    name.transpose().map_err(|_| Odd)
}

/// What one extension is of, and what it says.
fn extension(input: &[u8]) -> IResult<&[u8], (u32, &[u8])> {
    let (input, kind) = verify(be_u32, |kind| *kind != 0).parse(input)?;
    let (input, data) = length_data(be_u32).parse(input)?;
    // That of the last one may end with the room.
    let padding = data.len().next_multiple_of(8) - data.len();
    let (input, _) = take(padding.min(input.len()))(input)?;
    Ok((input, (kind, data)))
}

/// Bytes of an entry in the table of snapshots, before what it tells the length of.
pub(crate) const SNAPSHOT: usize = 40;

/// An entry in the table of snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    stamp: Stamp,
    /// Where its name is, from the beginning of the entry.
    pub(crate) name: Range<u64>,
}

impl Entry {
    /// The entry that `bytes` begin with.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let table = (be_u64::<&[u8], nom::error::Error<&[u8]>>, be_u32);
        let (_, lengths, seconds, nanoseconds, _, more) = (
            table,
            (be_u16, be_u16),
            be_u32,
            be_u32,
            (be_u64, be_u32),
            be_u32,
        )
            .parse(bytes)
            .ok()?
            .1;
        let start = SNAPSHOT as u64 + u64::from(more) + u64::from(lengths.0);
        Some(Self {
            stamp: Stamp {
                seconds: i64::from(seconds),
                nanoseconds: i64::from(nanoseconds),
            },
            name: start..start + u64::from(lengths.1),
        })
    }

    /// Where the next entry begins, from the beginning of this one, which is at a multiple of eight.
    pub(crate) fn next(&self) -> u64 {
        self.name.end.next_multiple_of(8)
    }

    /// What it tells, with the bytes of its name; none if that is no text.
    pub(crate) fn named(self, name: Vec<u8>) -> Option<InternalSnapshot> {
        let tag = String::from_utf8(name).ok()?;
        (!tag.contains('\0')).then_some(InternalSnapshot {
            tag,
            stamp: self.stamp,
        })
    }
}
