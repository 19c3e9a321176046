//! Writing a packed image from libxl's stream.

use super::known::{Known, Place};
use super::pack::{PackWriter, partial_path};
use super::pieces::PieceWriter;
use super::section::{ImageHead, Kind, Writing};
use super::{BLOCK_PAGES, PAGE, hash_of, needs};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::stream::{Followed, Sink, Splitter};
use crate::model::name::SnapshotId;
use crate::model::record::{MemoryProof, Packed};
use crate::store::{Envelope, private_directory};
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

/// An image that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finished {
    /// Length and checksum of what was taken, and so of what is read, and the length of both files.
    pub(crate) proof: MemoryProof,
    /// How far it was understood. What was not takes the room of its compressed bytes, in each image anew.
    pub(crate) followed: Followed,
    /// Pages that no earlier image has; there is no pack if there are none.
    pub(crate) new_pages: u64,
}

/// Takes a memory image and writes a packed one.
///
/// Whoever drops it without [`Writer::finish`], or after an error, removes both files ([`super::discard`] and the image).
pub(crate) struct Writer {
    splitter: Splitter,
    target: Target,
    hash: Xxh3,
    bytes: u64,
    /// Something could not be written, so nothing more is.
    is_broken: bool,
}

impl Writer {
    /// Begins the image of a snapshot in a new file at `image`, and a pack beside those that are known. Both are 0600.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] or [`ErrorKind::NoSpace`], also if there are such files.
    pub(crate) fn create(image: &Path, id: SnapshotId, mut known: Known) -> Result<Self> {
        private_directory(known.directory())?;
        let pack = PackWriter::create(known.directory(), id.0, known.key())?;
        let head = ImageHead { id: id.0 };
        Ok(Self {
            splitter: Splitter::new(),
            target: Target {
                pieces: PieceWriter::new()?,
                out: Writing::create(image, Envelope::IMAGE, id.0, &head)?,
                own: known.begin(id.0),
                id: id.0,
                pack,
                known,
                numbers: HashMap::new(),
                needs: Vec::new(),
            },
            hash: Xxh3::new(),
            bytes: 0,
            is_broken: false,
        })
    }

    /// Takes the next bytes, which begin with xl's header. They may end anywhere.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] or [`ErrorKind::NoSpace`]; the image cannot be finished then.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        let written = self.splitter.feed(bytes, &mut self.target);
        self.is_broken |= written.is_err();
        written
    }

    /// Bytes taken so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Completes both files. Neither is on the disk for sure before [`super::seal`], which is for when the guest runs
    /// again, and before the image is sealed, which comes after it.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] or [`ErrorKind::NoSpace`].
    pub(crate) fn finish(mut self) -> Result<Finished> {
        if self.is_broken {
            return Err(Error::new(
                ErrorKind::Io,
                "the memory image cannot be completed: a part of it could not be written",
            ));
        }
        let followed = self.splitter.finish(&mut self.target)?;
        let digest = self.hash.digest128();
        let Target {
            mut pieces,
            mut out,
            id,
            pack,
            known,
            needs,
            ..
        } = self.target;
        pieces.finish(&mut out)?;
        let needs_at = out.at();
        let section = needs::encode(&needs);
        out.append(Kind::Needs, section.len(), &section)?;
        let mut end = [needs_at, self.bytes].map(u64::to_le_bytes).concat();
        end.extend_from_slice(&digest.to_le_bytes());
        out.append(Kind::End, end.len(), &end)?;
        let (new_pages, mut pack_bytes) = pack.finish()?;
        if new_pages == 0 {
            let path = partial_path(known.directory(), id);
            std::fs::remove_file(&path)
                .map_err(|error| Error::io(format!("remove {}", path.display()), error))?;
            pack_bytes = 0;
        }
        Ok(Finished {
            proof: MemoryProof {
                bytes: self.bytes,
                xxh3: format!("{digest:032x}"),
                packed: Some(Packed {
                    image_bytes: out.at(),
                    pack_bytes,
                }),
            },
            followed,
            new_pages,
        })
    }
}

/// Where the pieces of the stream go.
struct Target {
    out: Writing,
    pieces: PieceWriter,
    id: Uuid,
    pack: PackWriter,
    /// The pack's place among the known ones.
    own: usize,
    known: Known,
    /// Which number each known pack has in this image, if it is needed.
    numbers: HashMap<usize, usize>,
    needs: Vec<(Uuid, BTreeSet<u64>)>,
}

impl Sink for Target {
    fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.pieces.raw(bytes, &mut self.out)
    }

    fn number(&mut self, number: u64) -> Result<()> {
        self.pieces.number(number, &mut self.out)
    }

    fn page(&mut self, content: &[u8; PAGE]) -> Result<()> {
        if is_zero(content) {
            return self.pieces.zeros(&mut self.out);
        }
        let hash = hash_of(self.known.key(), content);
        let place = match self.known.entry(hash) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => *new.insert(Place {
                pack: self.own,
                page: self.pack.add(content, hash)?,
            }),
        };
        let number = self.number_of(place.pack)?;
        if let Some((_, blocks)) = self.needs.get_mut(number) {
            blocks.insert(place.page / BLOCK_PAGES as u64);
        }
        self.pieces.page(number as u64, place.page, &mut self.out)
    }
}

/// Whether a page has nothing but zeros. Three pages of four in an idle guest do: in words it costs a tenth of what
/// comparing with a page of zeros does where nothing wider is to be had.
fn is_zero(page: &[u8; PAGE]) -> bool {
    let word = |bytes: &[u8; 8]| u64::from_ne_bytes(*bytes);
    let (words, _) = page.as_chunks::<8>();
    let mut lines = words.chunks(32);
    lines.all(|line| line.iter().fold(0, |all, bytes| all | word(bytes)) == 0)
}

impl Target {
    /// The number that a known pack has in this image.
    fn number_of(&mut self, pack: usize) -> Result<usize> {
        if let Some(number) = self.numbers.get(&pack) {
            return Ok(*number);
        }
        let id = self.known.pack(pack).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "a page is in a pack that is not known")
        })?;
        let number = self.needs.len();
        self.needs.push((id, BTreeSet::new()));
        self.numbers.insert(pack, number);
        Ok(number)
    }
}
