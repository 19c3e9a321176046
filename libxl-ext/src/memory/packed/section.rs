//! What packs and packed images have in common: a framed head, then sections, of which the last has a known length.
//!
//! A section is a head of 32 bytes and what is stored; all numbers little endian:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | its kind |
//! | 4 | bytes stored |
//! | 4 | bytes that they become, if they are compressed; else the same |
//! | 4 | zero |
//! | 16 | XXH3-128 of the file's identity, the section's offset (8 bytes), the 16 bytes above, what is stored |
//!
//! So a section that was changed, moved, or comes from another file is found before anything in it is believed.

use crate::error::{Error, ErrorKind, Result};
use crate::memory::cache::{KeptOutOfCache, forget};
use crate::store::{Envelope, atomic, room};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

/// Bytes before what a section stores.
pub(super) const HEAD: usize = 32;

/// Most bytes of a framed head.
const FRAME_MAX: u64 = 1024;

/// Most that a section stores, and that it becomes, in bytes.
pub(super) const STORED_MAX: usize = 16 << 20;

/// What is in a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// Pages, compressed.
    Block = 1,
    /// Where blocks are, and the hashes of their pages.
    Index = 2,
    /// Pieces of an image, compressed.
    Pieces = 3,
    /// Which blocks of which packs an image needs.
    Needs = 4,
    /// The last one.
    End = 5,
}

/// A file that is being written, one section after the other.
pub(super) struct Writing {
    file: File,
    path: PathBuf,
    id: Uuid,
    at: u64,
    /// The section that goes out next, so that each is one write.
    buffer: Vec<u8>,
    kept_out: KeptOutOfCache,
}

impl Writing {
    /// Makes a new file with this head, 0600.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] or [`ErrorKind::NoSpace`], also if there is a file of that name.
    pub(super) fn create<T: Serialize>(
        path: &Path,
        kind: Envelope,
        id: Uuid,
        head: &T,
    ) -> Result<Self> {
        let file = atomic::create_new(path)?;
        let mut writing = Self {
            file,
            path: path.to_owned(),
            id,
            at: 0,
            buffer: kind.seal(head)?,
            kept_out: KeptOutOfCache::new(),
        };
        writing.flush()?;
        Ok(writing)
    }

    /// Where the next section will begin.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Writes a section; `length` is what it becomes, in bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] or [`ErrorKind::NoSpace`]; a part of it may be in the file.
    pub(super) fn append(&mut self, kind: Kind, length: usize, stored: &[u8]) -> Result<()> {
        let too_long = || {
            let context = format!("a part of {} is too long", self.path.display());
            Error::new(ErrorKind::Unsupported, context)
        };
        let is_fine = |length: &usize| *length <= STORED_MAX;
        let fits = |length: usize| u32::try_from(length).ok().filter(|_| is_fine(&length));
        let stored_length = fits(stored.len()).ok_or_else(too_long)?;
        let length = fits(length).ok_or_else(too_long)?;
        self.put([kind as u32, stored_length, length], stored)
    }

    /// The same for the fuzz targets, which say what they like of it.
    #[cfg(fuzzing)]
    pub(super) fn append_raw(&mut self, kind: u32, length: u32, stored: &[u8]) -> Result<()> {
        let stored_length = u32::try_from(stored.len()).unwrap_or(u32::MAX);
        self.put([kind, stored_length, length], stored)
    }

    fn put(&mut self, [kind, stored_length, length]: [u32; 3], stored: &[u8]) -> Result<()> {
        let mut start = [0; 16];
        let words = [kind, stored_length, length, 0];
        for (bytes, word) in start.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let checksum = checksum(self.id, self.at, &start, stored);
        self.buffer.clear();
        self.buffer.extend_from_slice(&start);
        self.buffer.extend_from_slice(&checksum.to_le_bytes());
        self.buffer.extend_from_slice(stored);
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        room::write_all(&mut self.file, &self.buffer)
            .map_err(|error| Error::io(format!("write {}", self.path.display()), error))?;
        self.at += self.buffer.len() as u64;
        self.kept_out.wrote(&self.file, self.buffer.len());
        Ok(())
    }
}

/// A file that is read.
pub(super) struct Reading {
    file: File,
    path: PathBuf,
    id: Uuid,
    /// Where the first section begins.
    pub(super) start: u64,
    /// Bytes of the file.
    pub(super) size: u64,
}

/// A section whose checksum fits.
pub(super) struct Section {
    /// What is in it.
    pub(super) kind: u32,
    /// What the stored bytes become, in bytes; at most [`STORED_MAX`].
    pub(super) length: usize,
    /// What is stored.
    pub(super) stored: Vec<u8>,
    /// Where the next one begins.
    pub(super) next: u64,
}

impl Section {
    /// Whether it is of a kind and, if it is not compressed, as long as it says.
    pub(super) fn is(&self, kind: Kind, compressed: bool) -> bool {
        self.kind == kind as u32 && (compressed || self.length == self.stored.len())
    }
}

impl Reading {
    /// Opens a file and reads its head. `identity` tells the identity in it.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if it is none of ours or a link, [`ErrorKind::NewerVersion`], [`ErrorKind::Io`].
    pub(super) fn open<T: DeserializeOwned>(
        path: &Path,
        kind: Envelope,
        identity: impl FnOnce(&T) -> Uuid,
    ) -> Result<(Self, T)> {
        let unreadable = |error| Error::io(format!("read {}", path.display()), error);
        let file = atomic::open_own(path)?;
        let size = file.metadata().map_err(unreadable)?.len();
        let mut frame = vec![0; size.min(FRAME_MAX) as usize];
        file.read_exact_at(&mut frame, 0).map_err(unreadable)?;
        let (head, rest) = kind.open_next(&frame, path)?;
        let reading = Self {
            file,
            path: path.to_owned(),
            id: identity(&head),
            start: (frame.len() - rest.len()) as u64,
            size,
        };
        Ok((reading, head))
    }

    /// The file's identity.
    pub(super) fn id(&self) -> Uuid {
        self.id
    }

    /// The file's path, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// It is not read again soon.
    pub(super) fn forget(&self) {
        forget(&self.file);
    }

    /// The section that begins at an offset.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if there is none that is whole, [`ErrorKind::Io`].
    pub(super) fn section(&self, at: u64) -> Result<Section> {
        self.section_into(at, Vec::new())
    }

    /// The same, with what is stored put into memory that was used before.
    ///
    /// # Errors
    /// As [`Reading::section`].
    pub(super) fn section_into(&self, at: u64, mut bytes: Vec<u8>) -> Result<Section> {
        let mut head = [0; HEAD];
        let left = self
            .size
            .checked_sub(at)
            .and_then(|left| left.checked_sub(HEAD as u64))
            .ok_or_else(|| self.corrupt("it ends too early"))?;
        self.read(&mut head, at)?;
        let word = |index: usize| {
            let bytes = head[index * 4..][..4].try_into();
            bytes.map_or(0, u32::from_le_bytes)
        };
        let [kind, stored, length] = [word(0), word(1), word(2)];
        let (start, sum) = head.split_at(16);
        // What is not there is not allocated.
        let is_possible = stored as usize <= STORED_MAX && u64::from(stored) <= left;
        if !is_possible || length as usize > STORED_MAX {
            return Err(self.corrupt(&format!(
                "the length of its part at byte {at} is impossible"
            )));
        }
        bytes.resize(stored as usize, 0);
        self.read(&mut bytes, at + HEAD as u64)?;
        if checksum(self.id, at, start, &bytes).to_le_bytes() != sum {
            return Err(self.corrupt(&format!(
                "the checksum of its part at byte {at} does not match"
            )));
        }
        Ok(Section {
            kind,
            length: length as usize,
            stored: bytes,
            next: at + HEAD as u64 + u64::from(stored),
        })
    }

    /// The last section, which stores `N` bytes; and where it begins.
    ///
    /// # Errors
    /// As [`Reading::section`].
    pub(super) fn end<const N: usize>(&self) -> Result<([u8; N], u64)> {
        let at = self.size.checked_sub((HEAD + N) as u64);
        let at = at.filter(|at| *at >= self.start);
        let at = at.ok_or_else(|| self.corrupt("it ends too early"))?;
        let section = self.section(at).map_err(|error| match error.kind() {
            ErrorKind::Corrupt => self.corrupt("its end is missing"),
            _ => error,
        })?;
        match <[u8; N]>::try_from(section.stored.as_slice()) {
            Ok(bytes) if section.is(Kind::End, false) => Ok((bytes, at)),
            _ => Err(self.corrupt("its end is missing")),
        }
    }

    /// An error about this file.
    pub(super) fn corrupt(&self, how: &str) -> Error {
        corrupt(&self.path, how)
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        self.file
            .read_exact_at(buffer, at)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => self.corrupt("it became shorter"),
                _ => Error::io(format!("read {}", self.path.display()), error),
            })
    }
}

/// A file of ours that is not what it was.
pub(super) fn corrupt(path: &Path, how: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("{} is damaged: {how}", path.display()),
    )
    .hint("restore it from a backup; nothing was changed")
}

fn checksum(id: Uuid, at: u64, start: &[u8], stored: &[u8]) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(id.as_bytes());
    hash.update(&at.to_le_bytes());
    hash.update(start);
    hash.update(stored);
    hash.digest128()
}

/// What the head of a packed image says, and the part of a pack's head that is the same.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageHead {
    /// Whose image it is.
    pub(super) id: Uuid,
}
