//! A memory image as it is kept, and the file of `xl save` that comes out of it.

use super::header::{is_stock, read_header};
use super::packed::{self, Reader};
use super::prove;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Observer, Progress};
use crate::model::record::MemoryProof;
use crate::store::atomic;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Bytes that are written at a time to whoever restores.
const CHUNK: usize = 1 << 20;

/// Where a memory image is. Its first bytes say in which form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The image.
    pub image: PathBuf,
    /// Where the packs of its domain are.
    pub packs: PathBuf,
}

impl Kept {
    /// Opens it, to be read from the beginning.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`], [`ErrorKind::NewerVersion`], [`ErrorKind::Io`], also if a pack is missing.
    pub(crate) fn open(&self) -> Result<Content> {
        if packed::is_packed(&self.image)? {
            let reader = Reader::open(&self.image, &self.packs)?;
            return Ok(Content::Packed(Box::new(reader)));
        }
        if is_stock(&self.image)? {
            return Ok(Content::Plain(atomic::open_own(&self.image)?));
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "memory image {} is damaged: it does not begin as one",
                self.image.display()
            ),
        ))
    }

    /// The configuration of the domain, in JSON. Of the packs nothing is read.
    ///
    /// # Errors
    /// As [`Kept::open`].
    pub(crate) fn configuration(&self) -> Result<String> {
        if packed::is_packed(&self.image)? {
            read_header(&mut Reader::open_image(&self.image, &self.packs)?)
        } else {
            read_header(&mut atomic::open_own(&self.image)?)
        }
    }

    /// Reads all of it and compares that with what is recorded of it.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if it is another length or content, or a pack is damaged; [`ErrorKind::Io`];
    /// [`ErrorKind::Aborted`].
    pub(crate) fn prove(&self, proof: &MemoryProof, observer: &dyn Observer) -> Result<()> {
        self.each(proof, observer, |_| Ok(()))
    }

    /// The same for what is to be restored without anything being destroyed for it: what of a packed image is damaged
    /// turns out then ([`Content::feed`]), so that it is read once.
    ///
    /// # Errors
    /// As [`Kept::prove`].
    pub(crate) fn recognise(&self, proof: &MemoryProof, observer: &dyn Observer) -> Result<()> {
        if packed::is_packed(&self.image)? {
            packed::recognise(&self.image, proof)
        } else {
            self.prove(proof, observer)
        }
    }

    /// Copies it to a new file that stock `xl restore` takes, proving it on the way. A copy that is not whole is
    /// removed.
    ///
    /// # Errors
    /// As [`Kept::prove`]; [`ErrorKind::Io`] and [`ErrorKind::NoSpace`] if the copy cannot be written, also when
    /// there is a file of that name.
    pub(crate) fn export(
        &self,
        proof: &MemoryProof,
        to: &Path,
        observer: &dyn Observer,
    ) -> Result<()> {
        prove::to_new_file(to, |copy| self.each(proof, observer, copy))
    }

    /// What an image of which nothing is recorded is known by from now on. All of it is read.
    ///
    /// # Errors
    /// As [`Kept::prove`].
    pub(crate) fn measure(&self, observer: &dyn Observer) -> Result<MemoryProof> {
        if !packed::is_packed(&self.image)? {
            return prove::measure(&self.image, observer);
        }
        let proof = Reader::open(&self.image, &self.packs)?.proof();
        self.prove(&proof, observer)?;
        Ok(proof)
    }

    fn each(
        &self,
        proof: &MemoryProof,
        observer: &dyn Observer,
        each: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if packed::is_packed(&self.image)? {
            packed::prove(&self.image, &self.packs, proof, observer, each)
        } else {
            prove::scan(&self.image, proof, observer, each)
        }
    }
}

/// What comes out of an image, in order.
pub(crate) enum Content {
    /// The file of `xl save` itself.
    Plain(File),
    /// What is put together of an image and its packs, and compared with its checksum at the end.
    Packed(Box<Reader>),
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buffer),
            Self::Packed(reader) => reader.read(buffer),
        }
    }
}

/// Why not all of an image went where it should.
pub(crate) enum Unfed {
    /// The image is at fault.
    Image(Error),
    /// Whoever reads does so no more, or cannot be reached.
    Sink(Error),
}

/// Where an image goes.
pub(crate) trait Sink: Write {
    /// Writes so many bytes that are zero, of which nobody needs a copy.
    ///
    /// # Errors
    /// As [`Write::write_all`].
    fn write_zeros(&mut self, length: usize) -> io::Result<()>;
}

/// What the observer was told.
struct Told<'a> {
    done: u64,
    total: u64,
    observer: &'a dyn Observer,
}

impl<'a> Told<'a> {
    fn new(total: u64, observer: &'a dyn Observer) -> Self {
        Self {
            done: 0,
            total,
            observer,
        }
    }

    /// So many bytes more were written. It is told once for each chunk.
    fn more(&mut self, length: usize) {
        let before = self.done / CHUNK as u64;
        self.done += length as u64;
        if self.done / CHUNK as u64 > before {
            self.observer.progress(Progress {
                done: self.done,
                total: self.total,
                bytes: true,
            });
        }
    }
}

/// Fewer zeros than this are copied with what is around them, in bytes.
const ZEROS_LEAST: usize = 16 << 12;

/// What is written to whoever restores is gathered up to so many bytes: he wakes up for each write, and a page is not
/// worth that. What is longer is not copied once more.
const GATHERED: usize = 64 << 10;

impl Content {
    /// Writes what is left of it. The last bytes come only when all before has turned out to be what was written, so
    /// that nobody can make a domain of a stream that is not. The observer hears how much of it is written.
    ///
    /// # Errors
    /// Whose fault it is.
    pub(crate) fn feed(self, to: &mut impl Sink, observer: &dyn Observer) -> Result<(), Unfed> {
        let sink = |error| Unfed::Sink(Error::io("hand out a memory image", error));
        let mut to = BufWriter::with_capacity(GATHERED, to);
        match self {
            Self::Plain(mut file) => {
                let mut chunk = vec![0; CHUNK];
                let mut told = Told::new(file.metadata().map_or(0, |it| it.len()), observer);
                loop {
                    match file.read(&mut chunk) {
                        Ok(0) => break,
                        Ok(length) => {
                            to.write_all(&chunk[..length]).map_err(sink)?;
                            told.more(length);
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => {
                            let error = Error::io("read a memory image", error);
                            return Err(Unfed::Image(error));
                        }
                    }
                }
            }
            Self::Packed(reader) => {
                let mut reader = reader.in_parts();
                let mut held = Vec::new();
                let mut told = Told::new(reader.left(), observer);
                loop {
                    let left = reader.left();
                    let length = reader.next_bytes().map_err(Unfed::Image)?.len();
                    if length == 0 {
                        break;
                    }
                    let bytes = reader.ready_bytes();
                    let is_zeros = reader.is_at_zeros() && length >= ZEROS_LEAST;
                    if length as u64 == left {
                        held.extend_from_slice(bytes);
                    } else if is_zeros {
                        to.flush().map_err(sink)?;
                        to.get_mut().write_zeros(length).map_err(sink)?;
                    } else {
                        to.write_all(bytes).map_err(sink)?;
                    }
                    reader.consume_bytes(length);
                    told.more(length);
                }
                to.write_all(&held).map_err(sink)?;
                reader.forget();
            }
        }
        to.flush().map_err(sink)
    }
}
