//! Reading a packed image: `xl save`'s file comes out, bit for bit.

use super::needs::{self, Needs};
use super::pack::Pack;
use super::pieces::{self, Piece, SECTION_MAX};
use super::section::{ImageHead, Kind, Reading};
use super::unpack::Unpacker;
use super::{BLOCK_PAGES, PAGE};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Observer, Progress};
use crate::model::record::{MemoryProof, Packed};
use crate::store::{Envelope, atomic};
use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

/// What the last section stores: where the needs are, length and XXH3-128 of what is read.
const END: usize = 8 + 8 + 16;

/// Blocks that are kept decompressed at most, a quarter of a MiB each. What did not change between snapshots comes from
/// one pack, and what did from others.
const CACHED: usize = 16;

/// Bytes that are handed out at a time at most, where they are made.
const STEP: usize = 1 << 20;

static ZEROS: [u8; STEP] = [0; STEP];

/// How a packed image begins.
const BEGINNING: &[u8] = b"libxl-ext image ";

/// Whether the file at `path` is a packed image, by how it begins; one of `xl save` begins otherwise.
///
/// # Errors
/// [`ErrorKind::Io`] if it cannot be read, [`ErrorKind::Corrupt`] if it is no file.
pub(crate) fn is_packed(path: &Path) -> Result<bool> {
    let mut beginning = Vec::new();
    atomic::open_own(path)?
        .take(BEGINNING.len() as u64)
        .read_to_end(&mut beginning)
        .map_err(|error| Error::io(format!("read {}", path.display()), error))?;
    Ok(beginning == BEGINNING)
}

/// An image without its pieces: what it is made of.
pub(super) struct Skeleton {
    pub(super) file: Reading,
    pub(super) needs: Needs,
    /// Where the pieces end.
    pieces_end: u64,
    bytes: u64,
    xxh3: u128,
}

impl Skeleton {
    /// Reads the head and the end of an image.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`], [`ErrorKind::NewerVersion`], [`ErrorKind::Io`].
    pub(super) fn open(path: &Path) -> Result<Self> {
        let (file, _) = Reading::open(path, Envelope::IMAGE, |head: &ImageHead| head.id)?;
        let (end, end_at) = file.end::<END>()?;
        let wrong = || file.corrupt("what it says of its packs is not understood");
        let (words, xxh3) = end.split_at(16);
        let (at, bytes) = words.split_at(8);
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        let (pieces_end, bytes) = (number(at), number(bytes));
        let section = file.section(pieces_end)?;
        if !section.is(Kind::Needs, false) || section.next != end_at || pieces_end < file.start {
            return Err(wrong());
        }
        Ok(Self {
            needs: needs::decode(&section.stored).ok_or_else(wrong)?,
            pieces_end,
            bytes,
            xxh3: xxh3.try_into().map_or(0, u128::from_le_bytes),
            file,
        })
    }
}

impl Skeleton {
    /// What is known of what is read.
    fn content(&self) -> MemoryProof {
        MemoryProof::plain(self.bytes, format!("{:032x}", self.xxh3))
    }

    /// A pack by its number in the image; opened if it is not among `open` yet.
    fn pack<'open>(
        &self,
        directory: &Path,
        open: &'open mut [Option<Pack>],
        number: usize,
    ) -> Result<&'open Pack> {
        let named = self.needs.get(number).zip(open.get_mut(number));
        let Some(((id, blocks), slot)) = named else {
            return Err(self.file.corrupt("it needs a pack that it does not name"));
        };
        if let Some(pack) = slot {
            return Ok(pack);
        }
        let pack =
            Pack::open(directory, *id, |_| ()).map_err(|error| error.while_doing(self.doing()))?;
        if blocks.end() > pack.blocks() {
            return Err(self.file.corrupt("it needs more of a pack than there is"));
        }
        Ok(slot.insert(pack))
    }

    fn doing(&self) -> String {
        format!("read {}", self.file.path().display())
    }

    /// Refuses an image that is not the recorded one.
    fn require(&self, proof: &MemoryProof) -> Result<()> {
        if self.content() == proof.content() {
            return Ok(());
        }
        Err(self
            .file
            .corrupt("it is another image than the one that was recorded"))
    }
}

/// Where the bytes are that come next.
enum Source {
    /// In the section.
    Section,
    Zeros,
    /// In the block that was used last.
    Block,
    /// In the numbers that were made.
    Numbers,
}

/// What of a piece is to come after the bytes that come next.
enum Left {
    Nothing,
    Numbers { next: u64, count: u64 },
    Zeros { count: u64 },
    Pages { pack: usize, next: u64, count: u64 },
}

/// Yields the file that `xl save` would have written. At its end length and checksum are compared, so the last read
/// fails if it is not that. What comes before it is of sections and blocks whose checksums fit, each of which says that
/// it belongs there.
pub(crate) struct Reader {
    skeleton: Skeleton,
    directory: PathBuf,
    /// Those that it needs, as far as they are open.
    packs: Vec<Option<Pack>>,
    /// Where the next section begins.
    at: u64,
    section: Vec<u8>,
    /// The pieces of the section that are to come.
    pieces: Range<usize>,
    left: Left,
    source: Source,
    /// The bytes that come next.
    ready: Range<usize>,
    numbers: Vec<u8>,
    /// Blocks that were used, the last one first: pack, number, pages.
    cache: Vec<(usize, u64, Vec<u8>)>,
    unpacker: Unpacker,
    /// Of all that came; none if what each section and block says of itself is enough.
    hash: Option<Xxh3>,
    done: u64,
    is_ended: bool,
}

impl Reader {
    /// Opens an image and all packs that it needs.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`], [`ErrorKind::NewerVersion`], [`ErrorKind::Io`], also if a pack is missing.
    pub(crate) fn open(image: &Path, packs: &Path) -> Result<Self> {
        let mut reader = Self::open_image(image, packs)?;
        for number in 0..reader.packs.len() {
            let (skeleton, directory) = (&reader.skeleton, &reader.directory);
            skeleton.pack(directory, &mut reader.packs, number)?;
        }
        Ok(reader)
    }

    /// Opens an image, and each pack only when it is needed: what is no page can be read without any.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub(crate) fn open_image(image: &Path, packs: &Path) -> Result<Self> {
        let skeleton = Skeleton::open(image)?;
        Ok(Self {
            at: skeleton.file.start,
            packs: skeleton.needs.iter().map(|_| None).collect(),
            directory: packs.to_owned(),
            skeleton,
            section: Vec::new(),
            pieces: 0..0,
            left: Left::Nothing,
            source: Source::Zeros,
            ready: 0..0,
            numbers: Vec::new(),
            cache: Vec::new(),
            unpacker: Unpacker::default(),
            hash: Some(Xxh3::new()),
            done: 0,
            is_ended: false,
        })
    }

    /// Without the checksum of all that is read, which takes a quarter as long again as a restore where nothing wider than
    /// words is to be had. That of each section and block is compared all the same.
    pub(crate) fn in_parts(mut self) -> Self {
        self.hash = None;
        self
    }

    /// What is known of what is read: length and checksum of `xl save`'s file. It is believed when all was read.
    pub(crate) fn proof(&self) -> MemoryProof {
        let own = self.skeleton.needs.iter().zip(&self.packs);
        let own = own.filter(|((id, _), _)| *id == self.skeleton.file.id());
        let pack_bytes = own.filter_map(|(_, pack)| Some(pack.as_ref()?.size()));
        MemoryProof {
            packed: Some(Packed {
                image_bytes: self.skeleton.file.size,
                pack_bytes: pack_bytes.sum(),
            }),
            ..self.skeleton.content()
        }
    }

    /// Bytes that are to come.
    pub(crate) fn left(&self) -> u64 {
        (self.skeleton.bytes - self.done) + self.ready.len() as u64
    }

    /// The image and its packs are not read again soon.
    pub(crate) fn forget(&self) {
        self.skeleton.file.forget();
        self.packs.iter().flatten().for_each(Pack::forget);
    }

    /// The next bytes, which are not taken before [`BufRead::consume`] says so; none at the end. As
    /// [`BufRead::fill_buf`], with an error of ours.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`], [`ErrorKind::Io`].
    pub(crate) fn next_bytes(&mut self) -> Result<&[u8]> {
        while self.ready.is_empty() && !self.is_ended {
            if let Err(error) = self.prepare() {
                // Whoever asks again does not get less than that.
                (self.left, self.ready, self.pieces) = (Left::Nothing, 0..0, 0..0);
                self.at = u64::MAX;
                return Err(error);
            }
        }
        Ok(self.ready_bytes())
    }

    /// What [`Reader::next_bytes`] gave, as far as it is not taken.
    pub(crate) fn ready_bytes(&self) -> &[u8] {
        &self.source()[self.ready.clone()]
    }

    /// Whether the bytes that come next are zeros, and known to be.
    pub(crate) fn is_at_zeros(&self) -> bool {
        matches!(self.source, Source::Zeros)
    }

    /// Takes some of the bytes that come next.
    pub(crate) fn consume_bytes(&mut self, amount: usize) {
        self.ready.start = self.ready.end.min(self.ready.start + amount);
    }

    fn source(&self) -> &[u8] {
        match self.source {
            Source::Section => &self.section,
            Source::Zeros => &ZEROS,
            Source::Block => self.cache.first().map_or(&[], |(_, _, pages)| pages),
            Source::Numbers => &self.numbers,
        }
    }

    /// Makes the next bytes ready, if any come.
    fn prepare(&mut self) -> Result<()> {
        match self.left {
            Left::Nothing if self.pieces.is_empty() => return self.next_section(),
            Left::Nothing => self.next_piece()?,
            Left::Zeros { count } => {
                let now = at_most(count, STEP / PAGE);
                self.source = Source::Zeros;
                self.ready = 0..now * PAGE;
                self.left = Left::Zeros {
                    count: count - now as u64,
                };
            }
            Left::Numbers { next, count } => {
                let now = count.min((STEP / 8) as u64);
                self.numbers.clear();
                for more in 0..now {
                    self.numbers.extend_from_slice(&(next + more).to_le_bytes());
                }
                self.source = Source::Numbers;
                self.ready = 0..self.numbers.len();
                // After the last number there may be no other.
                self.left = Left::Numbers {
                    next: next.wrapping_add(now),
                    count: count - now,
                };
            }
            Left::Pages { pack, next, count } => {
                let (block, first) = (next / BLOCK_PAGES as u64, next % BLOCK_PAGES as u64);
                let first = at_most(first, BLOCK_PAGES);
                let now = at_most(count, BLOCK_PAGES - first);
                self.use_block(pack, block)?;
                self.source = Source::Block;
                self.ready = first * PAGE..(first + now) * PAGE;
                self.left = Left::Pages {
                    pack,
                    next: next + now as u64,
                    count: count - now as u64,
                };
            }
        }
        if matches!(
            self.left,
            Left::Zeros { count: 0 }
                | Left::Numbers { count: 0, .. }
                | Left::Pages { count: 0, .. }
        ) {
            self.left = Left::Nothing;
        }
        if self.source().len() < self.ready.end {
            return Err(self.corrupt("a block has fewer pages than are needed of it"));
        }
        if let Some(mut hash) = self.hash.take() {
            hash.update(&self.source()[self.ready.clone()]);
            self.hash = Some(hash);
        }
        self.done += self.ready.len() as u64;
        Ok(())
    }

    fn next_section(&mut self) -> Result<()> {
        if self.at == self.skeleton.pieces_end {
            let hash = self.hash.as_ref().map(Xxh3::digest128);
            let fits = self.done == self.skeleton.bytes
                && hash.is_none_or(|hash| hash == self.skeleton.xxh3);
            self.is_ended = fits;
            return if fits {
                Ok(())
            } else {
                Err(self.corrupt("its checksum does not match"))
            };
        }
        let memory = self.unpacker.stored();
        let section = self.skeleton.file.section_into(self.at, memory)?;
        let is_fine = section.is(Kind::Pieces, true)
            && section.next <= self.skeleton.pieces_end
            && (1..=SECTION_MAX).contains(&section.length);
        if !is_fine {
            return Err(self.corrupt("a part of it is not where it belongs"));
        }
        let (length, next) = (section.length, section.next);
        self.unpacker
            .unpack(section, &mut self.section)
            .map_err(|error| self.corrupt("it cannot be decompressed").because(error))?;
        if self.section.len() != length {
            return Err(self.corrupt("a part of it has another length than it says"));
        }
        self.pieces = 0..self.section.len();
        self.at = next;
        Ok(())
    }

    /// Begins the next piece of the section.
    fn next_piece(&mut self) -> Result<()> {
        let input = &self.section[self.pieces.clone()];
        let Ok((rest, piece)) = pieces::decode(input) else {
            return Err(self.corrupt("a part of it is not understood"));
        };
        let start = self.pieces.end - rest.len();
        // What is not compressed may claim any length: no more is made than was taken.
        let end = piece.length().and_then(|more| self.done.checked_add(more));
        if end.is_none_or(|end| end > self.skeleton.bytes) {
            return Err(self.corrupt("it is longer than it says"));
        }
        let (left, ready) = match piece {
            Piece::Raw(bytes) => (Left::Nothing, start - bytes.len()..start),
            Piece::Zeros { count } => (Left::Zeros { count }, 0..0),
            Piece::Numbers { first, count } => {
                if first.checked_add(count - 1).is_none() {
                    return Err(self.corrupt("numbers of pages are too large"));
                }
                let next = first;
                (Left::Numbers { next, count }, 0..0)
            }
            Piece::Pages { pack, first, count } => {
                let pack = usize::try_from(pack).unwrap_or(usize::MAX);
                let needs = self.skeleton.needs.get(pack);
                if !needs.is_some_and(|(_, blocks)| blocks.contain_pages(first, count)) {
                    return Err(self.corrupt("it has a page of a block that it does not need"));
                }
                let next = first;
                (Left::Pages { pack, next, count }, 0..0)
            }
        };
        self.source = Source::Section;
        (self.left, self.ready, self.pieces.start) = (left, ready, start);
        Ok(())
    }

    /// Puts a block in front of those that were used.
    fn use_block(&mut self, pack: usize, block: u64) -> Result<()> {
        let is_it = |cached: &(usize, u64, Vec<u8>)| (cached.0, cached.1) == (pack, block);
        if let Some(found) = self.cache.iter().position(is_it) {
            self.cache[..=found].rotate_right(1);
            return Ok(());
        }
        // The block that was used least recently gives its memory.
        let last = (self.cache.len() >= CACHED).then(|| self.cache.pop());
        let mut pages = last.flatten().map(|last| last.2).unwrap_or_default();
        self.skeleton
            .pack(&self.directory, &mut self.packs, pack)?
            .block(block, &mut self.unpacker, &mut pages)
            .map_err(|error| error.while_doing(self.skeleton.doing()))?;
        self.cache.insert(0, (pack, block, pages));
        Ok(())
    }

    fn corrupt(&self, how: &str) -> Error {
        self.skeleton.file.corrupt(how)
    }
}

/// A count, where only so many are of use.
fn at_most(count: u64, most: usize) -> usize {
    usize::try_from(count).map_or(most, |count| count.min(most))
}

impl BufRead for Reader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.next_bytes().map_err(io::Error::other)
    }

    fn consume(&mut self, amount: usize) {
        self.consume_bytes(amount);
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        self.consume(length);
        Ok(length)
    }
}

/// Reads all of an image and compares it with what is recorded of it; `each` gets its bytes, as they were taken.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if it is not that, or a block that it needs is damaged or missing; [`ErrorKind::Io`];
/// [`ErrorKind::Aborted`]; what `each` says.
pub(crate) fn prove(
    image: &Path,
    packs: &Path,
    proof: &MemoryProof,
    observer: &dyn Observer,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut reader = Reader::open(image, packs)?;
    reader.skeleton.require(proof)?;
    loop {
        if observer.wants_abort() {
            return Err(Error::new(
                ErrorKind::Aborted,
                "stopped while the memory image was read",
            ));
        }
        let bytes = reader.next_bytes()?;
        if bytes.is_empty() {
            return Ok(());
        }
        each(bytes)?;
        let length = bytes.len();
        reader.consume_bytes(length);
        observer.progress(Progress {
            done: reader.done,
            total: proof.bytes,
            bytes: true,
        });
    }
}

/// Compares what an image says of itself with what is recorded of it. The rest turns out while it is read.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if it is another image; [`ErrorKind::Io`].
pub(crate) fn recognise(image: &Path, proof: &MemoryProof) -> Result<()> {
    Skeleton::open(image)?.require(proof)
}

/// The identities of the packs that an image needs, with the blocks.
pub(super) fn needs_of(image: &Path) -> Result<Vec<(Uuid, needs::Blocks)>> {
    Ok(Skeleton::open(image)?.needs)
}
