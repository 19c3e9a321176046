//! Writing a memory image: libxl writes into a pipe, a thread of ours copies to the file.
//!
//! With the pipe in between, the death of this process ends libxl's helper too (its next write fails),
//! so that nobody writes to a file that recovery removes.

use super::cache::KeptOutOfCache;
use super::header::header;
use super::packed::{Known, Writer};
use super::pipe;
use super::stream::Followed;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Observer, Progress};
use crate::model::name::SnapshotId;
use crate::model::record::MemoryProof;
use crate::port::Toolstack;
use crate::store::{atomic, room};
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;
use xxhash_rust::xxh3::Xxh3;

/// How much is copied at a time, in bytes.
const CHUNK: usize = 1 << 20;

/// What libxl writes itself before its helper writes the memory: the stream's header and the head of the
/// record in which the memory is, in bytes. If it cannot, libxl (4.17's `libxl__save_helper_abort`) calls
/// through a null pointer, so the pipe is not closed before.
const HEAD: u64 = 16 + 8;

/// In which form an image is written.
#[derive(Clone, Copy)]
pub(crate) enum Form<'a> {
    /// The file of `xl save` itself.
    Stock,
    /// With its pages in the packs of the domain.
    Packed {
        /// Where they are.
        packs: &'a Path,
        /// Whose image it is.
        id: SnapshotId,
    },
}

/// Suspends the domain and writes its configuration and memory to a new file at `path`. The domain
/// stays suspended, since the instant that is returned if libxl told. With `live` the guest runs while most
/// of it is written. `estimate` is the length to expect, in bytes, for the progress.
///
/// Neither the file nor the new pack is flushed here: the guest waits, and the store seals them once it runs again.
///
/// # Errors
/// [`ErrorKind::NoSpace`] or [`ErrorKind::Io`] if the file cannot be written, [`ErrorKind::Aborted`] if
/// the observer wants so, else what libxl says. The domain may be suspended after a failure.
pub(crate) fn write_image(
    toolstack: &dyn Toolstack,
    domid: u32,
    (path, form): (&Path, Form<'_>),
    estimate: u64,
    live: bool,
    observer: &dyn Observer,
) -> Result<(MemoryProof, Option<Instant>)> {
    let configuration = toolstack.configuration(domid)?;
    let mut image = Image::create(path, form, observer)?;
    image.append(&header(&configuration.json)?)?;
    let (image, still_since) = save_to(toolstack, domid, image, estimate, live, observer)?;
    Ok((image.finish()?, still_since))
}

/// Whoever takes what libxl writes.
pub(crate) trait Taker: Send {
    /// Takes the next bytes. They may end anywhere.
    ///
    /// # Errors
    /// If it takes nothing more.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;

    /// Bytes taken so far.
    fn bytes(&self) -> u64;
}

/// Suspends the domain and hands its memory, in libxl's stream alone, to whoever takes it. Else as [`write_image`].
///
/// # Errors
/// That of who takes it, before what libxl makes of it; [`ErrorKind::Aborted`]. The domain may be suspended then.
pub(crate) fn save_to<T: Taker>(
    toolstack: &dyn Toolstack,
    domid: u32,
    taker: T,
    estimate: u64,
    live: bool,
    observer: &dyn Observer,
) -> Result<(T, Option<Instant>)> {
    let (source, sink) = pipe_with(PipeFlags::CLOEXEC)
        .map_err(|error| Error::io("make a pipe for the memory", error))?;
    pipe::widen(&sink);
    let (saved, copied) = std::thread::scope(|scope| {
        let copier = scope.spawn(move || copy(source.into(), taker, estimate, observer));
        let saved = toolstack.suspend_to(domid, sink.as_fd(), live, observer);
        drop(sink);
        (saved, copier.join())
    });
    let copied = copied.unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::Io,
            "the thread that writes memory panicked",
        ))
    });
    match (saved, copied) {
        // If it could not be handed on, libxl's complaint about the pipe only follows from that.
        (_, Err(error)) | (Err(error), _) => Err(error),
        (Ok(still_since), Ok(taker)) => Ok((taker, still_since)),
    }
}

fn copy<T: Taker>(
    mut source: File,
    mut taker: T,
    estimate: u64,
    observer: &dyn Observer,
) -> Result<T> {
    let mut chunk = vec![0; CHUNK];
    let mut taken = 0;
    let mut failed = None;
    loop {
        if failed.is_none() && observer.wants_abort() {
            failed = Some(Error::new(
                ErrorKind::Aborted,
                "stopped while the memory was written",
            ));
        }
        if taken > HEAD
            && let Some(error) = failed
        {
            return Err(error);
        }
        let length = match source.read(&mut chunk) {
            Ok(0) => return failed.map_or(Ok(taker), Err),
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io("read the memory from libxl", error)),
        };
        taken += length as u64;
        if failed.is_some() {
            continue;
        }
        failed = taker.append(&chunk[..length]).err();
        observer.progress(Progress {
            done: taker.bytes(),
            total: estimate.max(taker.bytes()),
            bytes: true,
        });
    }
}

/// The image being written.
enum Image {
    Stock(Box<Plain>),
    Packed(Box<Writer>),
}

impl Image {
    /// While the guest runs: which pages there are already takes time to find out.
    fn create(path: &Path, form: Form<'_>, observer: &dyn Observer) -> Result<Self> {
        Ok(match form {
            Form::Stock => Self::Stock(Box::new(Plain::create(path)?)),
            Form::Packed { packs, id } => {
                let known = Known::load(packs, &Stopping(observer))?;
                Self::Packed(Box::new(Writer::create(path, id, known)?))
            }
        })
    }

    fn finish(self) -> Result<MemoryProof> {
        match self {
            Self::Stock(plain) => Ok(plain.proof()),
            Self::Packed(writer) => {
                let finished = writer.finish()?;
                if let Followed::Lost(why) = finished.followed {
                    tracing::warn!(
                        "libxl's stream is kept as it is from some place on, without looking for pages: {why}"
                    );
                }
                Ok(finished.proof)
            }
        }
    }
}

impl Taker for Image {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Stock(plain) => plain.append(bytes),
            Self::Packed(writer) => writer.write(bytes),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Stock(plain) => plain.bytes,
            Self::Packed(writer) => writer.bytes(),
        }
    }
}

/// What is not the memory makes no progress of it.
struct Stopping<'a>(&'a dyn Observer);

impl Observer for Stopping<'_> {
    fn step(&self, _what: &str) {}
    fn progress(&self, _progress: Progress) {}
    fn note(&self, _text: &str) {}
    fn wants_abort(&self) -> bool {
        self.0.wants_abort()
    }
}

/// A file of `xl save` being written, and what is known of it so far.
struct Plain {
    file: File,
    name: String,
    hash: Xxh3,
    bytes: u64,
    kept_out: KeptOutOfCache,
}

impl Plain {
    fn create(path: &Path) -> Result<Self> {
        Ok(Self::new(
            atomic::create_new(path)?,
            path.display().to_string(),
        ))
    }

    fn new(file: File, name: String) -> Self {
        Self {
            file,
            name,
            hash: Xxh3::new(),
            bytes: 0,
            kept_out: KeptOutOfCache::new(),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        room::write_all(&mut self.file, bytes)
            .map_err(|error| Error::io(format!("write {}", self.name), error))?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.kept_out.wrote(&self.file, bytes.len());
        Ok(())
    }

    fn proof(self) -> MemoryProof {
        MemoryProof::plain(self.bytes, format!("{:032x}", self.hash.digest128()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Impatient;
    use std::io::Write;
    use std::time::Duration;

    #[test]
    fn libxl_gets_its_head_written_whatever_fails_on_our_side() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let read_only = |file: File| {
            drop(file);
            File::open(&path).unwrap()
        };
        let ready: [(&dyn Observer, bool); 2] =
            [(&Impatient, false), (&crate::event::Unobserved, true)];
        for (observer, full) in ready {
            let file = File::create(&path).unwrap();
            // A file that takes nothing, as a full disk does.
            let file = if full { read_only(file) } else { file };
            let image = Image::Stock(Box::new(Plain::new(file, String::new())));
            let (source, mut sink) = std::io::pipe().unwrap();
            std::thread::scope(|scope| {
                let copier = scope.spawn(move || {
                    let source = File::from(std::os::fd::OwnedFd::from(source));
                    copy(source, image, 0, observer).map(drop)
                });
                for _ in 0..HEAD {
                    sink.write_all(&[0]).expect("the pipe is open");
                    std::thread::sleep(Duration::from_millis(2));
                }
                while sink.write_all(&[0; 512]).is_ok() {}
                assert!(copier.join().unwrap().is_err());
            });
        }
    }
}
