//! A pack: contents of pages in blocks, each compressed and with a checksum of its own, and an index at the end.

use super::compress::{Block, Compressor};
use super::section::{HEAD, Kind, Reading, Section, Writing};
use super::unpack::Unpacker;
use super::{BLOCK_PAGES, HASH, Hash, Key, PAGE};
use crate::error::{ErrorKind, Result};
use crate::store::Envelope;
use nom::Parser;
use nom::bytes::complete::take;
use nom::combinator::{all_consuming, verify};
use nom::number::complete::le_u32;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Bytes of a block whose pages are all there.
const BLOCK: usize = BLOCK_PAGES * PAGE;

/// Blocks that one section of the index tells of at most.
const INDEX_BLOCKS: usize = 1024;

/// What the last section stores: where the index begins, how many blocks and pages there are.
const END: usize = 8 + 8 + 8;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    id: Uuid,
    /// 64 hexadecimal digits.
    key: String,
}

/// What the first line of a pack says.
pub(super) fn head(id: Uuid, key: &Key) -> Head {
    Head {
        id,
        key: key.to_string(),
    }
}

/// Where a pack is.
pub(super) fn path(packs: &Path, id: Uuid) -> PathBuf {
    packs.join(id.to_string())
}

/// Where it is while it is being written.
pub(super) fn partial_path(packs: &Path, id: Uuid) -> PathBuf {
    packs.join(format!("{id}.partial"))
}

/// A pack that is being written.
pub(super) struct PackWriter {
    out: Writing,
    compressor: Compressor,
    /// The block that is not full.
    gathered: Block,
    /// One whose memory nobody needs now.
    spent: Option<Block>,
    /// Hashes of all pages.
    hashes: Vec<Hash>,
    /// What each block takes, in bytes.
    stored: Vec<u32>,
}

impl PackWriter {
    /// Begins a new pack.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] or [`ErrorKind::NoSpace`], also if there is one of that identity.
    pub(super) fn create(packs: &Path, id: Uuid, key: &Key) -> Result<Self> {
        Ok(Self {
            out: Writing::create(&partial_path(packs, id), Envelope::PACK, id, &head(id, key))?,
            compressor: Compressor::start()?,
            gathered: Block::default(),
            spent: None,
            hashes: Vec::new(),
            stored: Vec::new(),
        })
    }

    /// Takes a page, and says which one of the pack it is.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] or [`ErrorKind::NoSpace`].
    pub(super) fn add(&mut self, page: &[u8; PAGE], hash: Hash) -> Result<u64> {
        let number = self.hashes.len() as u64;
        self.hashes.push(hash);
        self.gathered.pages.extend_from_slice(page);
        if self.gathered.pages.len() == BLOCK {
            self.give()?;
        }
        Ok(number)
    }

    /// Completes the pack, which is not on the disk for sure yet. Returns how many pages it has, and its length in bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] or [`ErrorKind::NoSpace`].
    pub(super) fn finish(mut self) -> Result<(u64, u64)> {
        if !self.gathered.pages.is_empty() {
            self.give()?;
        }
        while let Some(block) = self.compressor.next()? {
            self.append(block)?;
        }
        let index = self.out.at();
        let mut blocks = self.stored.iter().zip(self.hashes.chunks(BLOCK_PAGES));
        loop {
            let mut section = Vec::new();
            for (stored, hashes) in blocks.by_ref().take(INDEX_BLOCKS) {
                let pages = u32::try_from(hashes.len()).unwrap_or_default();
                section.extend_from_slice(&stored.to_le_bytes());
                section.extend_from_slice(&pages.to_le_bytes());
                section.extend_from_slice(hashes.as_flattened());
            }
            if section.is_empty() {
                break;
            }
            self.out.append(Kind::Index, section.len(), &section)?;
        }
        let pages = self.hashes.len() as u64;
        let end = [index, self.stored.len() as u64, pages].map(u64::to_le_bytes);
        self.out.append(Kind::End, END, end.as_flattened())?;
        Ok((pages, self.out.at()))
    }

    fn give(&mut self) -> Result<()> {
        let mut next = self.spent.take().unwrap_or_default();
        next.pages.clear();
        next.pages.reserve(BLOCK);
        let block = std::mem::replace(&mut self.gathered, next);
        match self.compressor.give(block)? {
            Some(done) => self.append(done),
            None => Ok(()),
        }
    }

    fn append(&mut self, block: Block) -> Result<()> {
        self.out
            .append(Kind::Block, block.pages.len(), &block.stored)?;
        // What was appended is short enough.
        self.stored
            .push(u32::try_from(block.stored.len()).unwrap_or(u32::MAX));
        self.spent = Some(block);
        Ok(())
    }
}

/// Where a block is.
struct Place {
    at: u64,
    stored: u32,
    pages: u32,
}

/// A pack that is read.
pub(super) struct Pack {
    file: Reading,
    key: Key,
    blocks: Vec<Place>,
    pages: u64,
}

impl Pack {
    /// Opens a pack and reads its index; `each` is told the hashes of all pages, in order. Blocks are not looked at.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`], [`ErrorKind::NewerVersion`], [`ErrorKind::Io`] also if there is none.
    pub(super) fn open(packs: &Path, id: Uuid, mut each: impl FnMut(Hash)) -> Result<Self> {
        let path = path(packs, id);
        let (file, head) = Reading::open(&path, Envelope::PACK, |head: &Head| head.id)?;
        if head.id != id {
            return Err(file.corrupt("it is another pack"));
        }
        let key = Key::parse(&head.key).ok_or_else(|| file.corrupt("its key is none"))?;
        let (end, end_at) = file.end::<END>()?;
        let wrong = || file.corrupt("its index does not fit its blocks");
        let mut words = end.chunks_exact(8).map(|word| {
            let bytes = word.try_into();
            bytes.map_or(0, u64::from_le_bytes)
        });
        let [index, count, pages] = std::array::from_fn(|_| words.next().unwrap_or(0));
        let (mut at, mut next, mut found) = (index, file.start, 0);
        let mut blocks = Vec::new();
        while at < end_at {
            let section = file.section(at)?;
            at = section.next;
            let entries = index_entries(&section.stored).map_err(|_| wrong())?.1;
            if !section.is(Kind::Index, false) || entries.is_empty() {
                return Err(wrong());
            }
            for (stored, hashes) in entries {
                // All blocks but the last one are full.
                if found % BLOCK_PAGES as u64 != 0 {
                    return Err(wrong());
                }
                let pages = hashes.len() / HASH;
                found += pages as u64;
                blocks.push(Place {
                    at: next,
                    stored,
                    pages: u32::try_from(pages).unwrap_or_default(),
                });
                next += HEAD as u64 + u64::from(stored);
                hashes.as_chunks().0.iter().copied().for_each(&mut each);
            }
        }
        if at != end_at || next != index || found != pages || blocks.len() as u64 != count {
            return Err(wrong());
        }
        Ok(Self {
            file,
            key,
            blocks,
            pages,
        })
    }

    /// With which its hashes were made.
    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// How many blocks there are.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// How many pages there are.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// Bytes of the file.
    pub(super) fn size(&self) -> u64 {
        self.file.size
    }

    /// It is not read again soon.
    pub(super) fn forget(&self) {
        self.file.forget();
    }

    /// Puts the pages of a block into `pages`.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if it is damaged or not there, [`ErrorKind::Io`].
    pub(super) fn block(
        &self,
        number: u64,
        with: &mut Unpacker,
        pages: &mut Vec<u8>,
    ) -> Result<()> {
        let damaged = |how: &str| self.file.corrupt(&format!("block {number}: {how}"));
        let section = self.stored(number, with.stored())?;
        let length = section.length;
        with.unpack(section, pages)
            .map_err(|error| damaged("it cannot be decompressed").because(error))?;
        if pages.len() == length {
            Ok(())
        } else {
            Err(damaged("it has another length than it says"))
        }
    }

    /// Reads a block and compares its checksum, no more.
    ///
    /// # Errors
    /// As [`Pack::block`].
    pub(super) fn check(&self, number: u64) -> Result<()> {
        self.stored(number, Vec::new()).map(drop)
    }

    /// The section that a block is, read into `memory`.
    fn stored(&self, number: u64, memory: Vec<u8>) -> Result<Section> {
        let damaged = |how: &str| self.file.corrupt(&format!("block {number}: {how}"));
        let place = usize::try_from(number)
            .ok()
            .and_then(|number| self.blocks.get(number))
            .ok_or_else(|| damaged("it is not there"))?;
        let section =
            self.file
                .section_into(place.at, memory)
                .map_err(|error| match error.kind() {
                    ErrorKind::Corrupt => damaged("its checksum does not match"),
                    _ => error,
                })?;
        let length = place.pages as usize * PAGE;
        let fits = section.is(Kind::Block, true)
            && section.stored.len() == place.stored as usize
            && section.length == length;
        if fits {
            Ok(section)
        } else {
            Err(damaged("it is not what the index says"))
        }
    }
}

/// What a section of the index says: for each block the bytes that it takes, and its pages' hashes.
fn index_entries(section: &[u8]) -> nom::IResult<&[u8], Vec<(u32, &[u8])>> {
    let pages = le_u32.map(|pages| pages as usize);
    let pages = verify(pages, |pages| (1..=BLOCK_PAGES).contains(pages));
    let hashes = pages.flat_map(|pages| take(pages * HASH));
    // Each entry takes bytes of the section, which are there.
    all_consuming(nom::multi::many0((le_u32, hashes))).parse(section)
}
