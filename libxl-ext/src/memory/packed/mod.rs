//! The page store: memory images without what is in them twice.
//!
//! A packed image is two files. The *image* itself has everything of `xl save`'s file that is no page, byte by byte, and
//! for each page where its content is; the *pack* has those contents that no earlier pack of the domain has, in
//! compressed blocks. A page of zeros is nowhere, and what comes in runs is written as runs. What is read is the file of
//! `xl save`, bit for bit: whatever of it is not understood is kept as it is.
//!
//! | file | what |
//! |---|---|
//! | `section` | the form that both files have |
//! | `pieces`, `needs` | what is in an image |
//! | `pack`, `compress`, `unpack` | blocks of pages |
//! | `known` | which contents are there already |
//! | `write`, `read` | libxl's bytes in, libxl's bytes out |
//! | `trace` | which packs are needed, and by which images |
//!
//! `docs/store-format.md` specifies the bytes.
//!
//! # Contents are told apart by HighwayHash with a secret key
//! A guest decides what is in its pages. With a hash for which contents of equal hash can be made (XXH3 is one) a
//! guest could have a page of its own replaced by another one at its next restore, behind the back of whoever inspects
//! the images, and we would keep a wrong image for a right one. So the hash is a pseudorandom function with
//! a random key, which is in a file of root's and which the guest does not know: nothing can be computed beforehand, and
//! nothing be tried out without a save, which makes 128 bits of it plenty. A hash without a secret, as BLAKE3, costs
//! four times as much: 64 MiB of pages take 1.2 to 1.5 s on the lab's emulated CPU by BLAKE3, 0.3 s by HighwayHash, 0.1 s by XXH3.
//! Packs belong to one domain: guests never share contents, so
//! none learns by the room that its image takes what another one has in its memory.
//!
//! # zstd, level -1
//! Measured on 65 MiB of programs and libraries in blocks of 64 pages: zstd level 1 makes 0.35 of them at 500 MB/s, lz4
//! 0.49 at 720 MB/s; blocks of 16 pages 0.37. A thread of its own compresses. Where there is one CPU that is no help: on
//! the lab's, which is emulated, the 64 MiB of an idle guest that are not zeros took 2.9 s at level 1 (14.6 MiB are left), 1.6 s at -1
//! (16.3 MiB) and 1.7 s at -5 (20.7 MiB).
//!
//! # What is not done
//! A pack stays as it is as long as one page in it is needed: there is no compaction. Of what is not a page (all of an
//! image whose form we do not know, the state of an HVM guest's QEMU) nothing is stored once for two images.

mod compress;
#[cfg(fuzzing)]
mod forge;
mod known;
mod needs;
mod pack;
mod pieces;
mod read;
mod section;
mod trace;
mod unpack;
mod write;

#[cfg(test)]
mod measure;
#[cfg(test)]
mod tests;

#[cfg(fuzzing)]
pub(crate) use forge::{forged, there_and_back};
pub(crate) use known::Known;
pub(crate) use read::{Reader, is_packed, prove, recognise};
pub(crate) use trace::{Damage, Traced, collect, discard, list, path_of, seal};
pub(crate) use write::Writer;

use super::stream::PAGE;

use highway::{HighwayHash as _, HighwayHasher};
use std::fmt;
use uuid::Uuid;

/// Pages of a block; the last one of a pack may have fewer.
const BLOCK_PAGES: usize = 64;

/// Bytes of a hash of a page.
const HASH: usize = 16;

/// What a page's content is known by.
type Hash = [u8; HASH];

/// What makes hashes ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key([Uuid; 2]);

/// The hash of a page.
fn hash_of(key: &Key, page: &[u8; PAGE]) -> Hash {
    let words = key.0.map(|half| half.as_u64_pair());
    let key = highway::Key([words[0].0, words[0].1, words[1].0, words[1].1]);
    let halves = HighwayHasher::new(key).hash128(page);
    let mut hash = [0; HASH];
    for (bytes, half) in hash.chunks_exact_mut(8).zip(halves) {
        bytes.copy_from_slice(&half.to_le_bytes());
    }
    hash
}

impl Key {
    /// One that nobody knows: two random UUIDs have 244 bits of it.
    fn random() -> Self {
        Self([(); 2].map(|()| Uuid::new_v4()))
    }

    /// That of 64 hexadecimal digits.
    fn parse(text: &str) -> Option<Self> {
        let (one, other) = text.split_at_checked(32)?;
        let half = |digits: &str| {
            let is_plain = digits.len() == 32;
            is_plain.then(|| Uuid::try_parse(digits).ok()).flatten()
        };
        Some(Self([half(one)?, half(other)?]))
    }
}

/// As 64 hexadecimal digits.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0[0].simple(), self.0[1].simple())
    }
}
