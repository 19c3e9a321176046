//! The page store: memory images without what is in them twice.
//!
//! A packed image is two files. The *image* itself has everything of `xl save`'s file that is no page, byte by byte, and
//! for each page where its content is; the *pack* has those contents that no earlier pack of the domain has, in
//! compressed blocks. A page of zeros is nowhere, and what comes in runs is written as runs. What is read is the file of
//! `xl save`, bit for bit: whatever of it is not understood is kept as it is.
//!
//! | file | what |
//! |---|---|
//! | `stream` | finds the pages in what libxl writes |
//! | `section` | the form that both files have |
//! | `pieces`, `needs` | what is in an image |
//! | `pack`, `compress` | blocks of pages |
//! | `known` | which contents are there already |
//! | `write`, `read` | libxl's bytes in, libxl's bytes out |
//! | `trace` | which packs are needed, and by which images |
//!
//! `docs/store-format.md` specifies the bytes.
//!
//! # Contents are told apart by BLAKE3
//! A guest decides what is in its pages. With a hash for which contents of equal hash can be made (XXH3 is one) a
//! guest could have a page of its own replaced by another one at its next restore, behind the back of whoever inspects
//! the images, and we would keep a wrong image for a right one. So the hash is a cryptographic one, BLAKE3, and it has
//! a random key, which the guest does not know: nothing can be computed beforehand, which makes 128 bits of it plenty.
//! Measured on one core of an EPYC: BLAKE3 2.4 GB/s on pages, XXH3-128 25 GB/s, zstd 0.5 GB/s; so it costs
//! less than a fifth of the time that a new page takes. Packs belong to one domain: guests never share contents, so
//! none learns by the room that its image takes what another one has in its memory.
//!
//! # zstd, level -1
//! Measured on 65 MiB of programs and libraries in blocks of 64 pages: zstd level 1 makes 0.35 of them at 500 MB/s, lz4
//! 0.49 at 720 MB/s; blocks of 16 pages 0.37. A thread of its own compresses. Where there is one CPU that is no help: on
//! the lab's, which is emulated, the 64 MiB of an idle guest that are not zeros took 2.9 s at level 1 (14.6 MiB are left), 1.6 s at -1
//! (16.3 MiB) and 1.7 s at -5 (20.7 MiB); their hashes 1 s, with or without SSE.
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
pub(crate) mod stream;
mod trace;
mod write;

#[cfg(test)]
mod measure;
#[cfg(test)]
mod tests;

#[cfg(fuzzing)]
pub(crate) use forge::{forged, there_and_back};
pub(crate) use known::Known;
pub(crate) use read::{Reader, is_packed, prove, recognise};
pub(crate) use stream::Followed;
pub(crate) use trace::{Damage, Traced, discard, list, seal};
pub(crate) use write::Writer;

/// Bytes of a page.
const PAGE: usize = 4096;

/// Pages of a block; the last one of a pack may have fewer.
const BLOCK_PAGES: usize = 64;

/// Bytes of a hash of a page.
const HASH: usize = 16;

/// What a page's content is known by.
type Hash = [u8; HASH];

/// What makes hashes ours, 32 bytes.
type Key = [u8; 32];

/// The hash of a page.
fn hash_of(key: &Key, page: &[u8; PAGE]) -> Hash {
    let whole = blake3::keyed_hash(key, page);
    let mut hash = [0; HASH];
    hash.copy_from_slice(&whole.as_bytes()[..HASH]);
    hash
}
