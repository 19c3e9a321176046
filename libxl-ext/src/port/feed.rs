//! Handing a memory image to whoever makes a domain of it, through a pipe: nothing is unpacked to a file.

use crate::error::{Error, Result};
use crate::event::Observer;
use crate::memory::{Content, Sink, Unfed, pipe};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::pipe::{SpliceFlags, splice};
use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::os::fd::OwnedFd;

/// Zeros that are written at a time, in bytes.
const ZEROS: usize = 1 << 20;

/// The end of a pipe that an image is written to.
struct Feed {
    pipe: PipeWriter,
    /// A file of zeros: from a file a pipe takes pages without a copy.
    zeros: OwnedFd,
}

impl Feed {
    fn new(pipe: PipeWriter) -> io::Result<Self> {
        let zeros = memfd_create("zeros", MemfdFlags::CLOEXEC)?;
        let mut file = File::from(zeros);
        file.write_all(&vec![0; ZEROS])?;
        Ok(Self {
            pipe,
            zeros: file.into(),
        })
    }
}

impl Write for Feed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pipe.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pipe.flush()
    }
}

impl Sink for Feed {
    fn write_zeros(&mut self, length: usize) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            let (mut from, now) = (0, left.min(ZEROS));
            let (file, pipe) = (&self.zeros, &self.pipe);
            match splice(file, Some(&mut from), pipe, None, now, SpliceFlags::empty()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => left -= length,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// A pipe for an image: the end that is read, and the one that [`fed_through`] writes to.
pub(super) fn image_pipe(what: &str) -> Result<(OwnedFd, PipeWriter)> {
    let (reader, writer) = std::io::pipe().map_err(|error| Error::io(what, error))?;
    pipe::widen(&writer);
    Ok((reader.into(), writer))
}

/// As [`fed_through`], through a pipe of its own.
pub(super) fn fed<T>(
    head: &[u8],
    content: Content,
    what: &str,
    observer: &dyn Observer,
    restore: impl FnOnce(OwnedFd) -> Result<T>,
) -> Result<T> {
    let (reader, writer) = image_pipe(what)?;
    fed_through(writer, head, content, what, observer, || restore(reader))
}

/// Has `restore` read what `head` and `content` are together, from the other end of the pipe. This one is written to by
/// a thread of ours. If an image turns out not to be what was written, the stream is cut short, which no restore takes
/// for a whole one, and the error says so instead of what whoever restored made of it.
pub(super) fn fed_through<T>(
    writer: PipeWriter,
    head: &[u8],
    content: Content,
    what: &str,
    observer: &dyn Observer,
    restore: impl FnOnce() -> Result<T>,
) -> Result<T> {
    std::thread::scope(|scope| {
        let feeder = scope.spawn(move || {
            let failed = |error| Unfed::Sink(Error::io("hand out a memory image", error));
            let mut to = Feed::new(writer).map_err(failed)?;
            to.write_all(head).map_err(failed)?;
            content.feed(&mut to, observer)
        });
        let restored = restore();
        let fed = feeder.join().unwrap_or_else(|_| {
            let context = "the thread that reads memory panicked";
            Err(Unfed::Image(Error::new(crate::ErrorKind::Io, context)))
        });
        match fed {
            // Whatever was said of a stream that ended too early only follows from it.
            Err(Unfed::Image(error)) => Err(error.while_doing(what)),
            // A restore that failed stopped reading, so its word comes first.
            Err(Unfed::Sink(error)) => restored.and(Err(error.while_doing(what))),
            Ok(()) => restored,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::event::Unobserved;
    use crate::memory::{Kept, header, packed, stream};
    use crate::model::name::SnapshotId;
    use std::io::Read;

    fn packed(directory: &std::path::Path) -> (Kept, Vec<u8>) {
        let id = SnapshotId::random();
        let kept = Kept {
            image: directory.join("memory"),
            packs: directory.join("packs"),
        };
        let mut bytes = header("{}").unwrap();
        let pages: Vec<_> = (0..200_u64)
            .map(|number| (number, Some(u8::try_from(number).unwrap())))
            .collect();
        bytes.extend(stream(&[&pages]));
        let known = packed::Known::load(&kept.packs, &Unobserved).unwrap();
        let mut writer = packed::Writer::create(&kept.image, id, known).unwrap();
        writer.write(&bytes).unwrap();
        writer.finish().unwrap();
        packed::seal(&kept.packs, id).unwrap();
        (kept, bytes)
    }

    /// A restore as xl's: it takes a stream that is whole, and complains of any other.
    fn restore(from: OwnedFd, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::from(from).read_to_end(&mut bytes).unwrap();
        if bytes.len() < length {
            return Err(Error::new(ErrorKind::Toolstack, "xl says something"));
        }
        Ok(bytes)
    }

    #[test]
    fn what_is_restored_is_what_was_saved_or_the_image_is_to_blame() {
        let directory = tempfile::tempdir().unwrap();
        let (kept, bytes) = packed(directory.path());
        let whole = || {
            fed(b"", kept.open()?, "restore it", &Unobserved, |from| {
                restore(from, bytes.len())
            })
        };
        assert!(whole().unwrap() == bytes);

        // Damaged anywhere: no restore ever sees all of it.
        let pack = std::fs::read_dir(&kept.packs).unwrap().next().unwrap();
        for path in [kept.image.clone(), pack.unwrap().path()] {
            let good = std::fs::read(&path).unwrap();
            for at in (0..good.len()).step_by(good.len() / 40) {
                let mut bad = good.clone();
                bad[at] ^= 1;
                std::fs::write(&path, &bad).unwrap();
                let error = whole().unwrap_err();
                let report = error.report();
                assert!(
                    [ErrorKind::Corrupt, ErrorKind::NewerVersion].contains(&error.kind())
                        && !report.contains("xl says"),
                    "byte {at} of {}: {report}",
                    path.display()
                );
            }
            std::fs::write(&path, &good).unwrap();
        }
        assert!(whole().unwrap() == bytes);
    }

    #[test]
    fn a_restore_that_fails_has_the_first_word() {
        let directory = tempfile::tempdir().unwrap();
        let (kept, _) = packed(directory.path());
        let content = kept.open().unwrap();
        let result: Result<()> = fed(b"", content, "restore it", &Unobserved, |from| {
            drop(from);
            Err(Error::new(ErrorKind::Toolstack, "no memory, says xl"))
        });
        assert_eq!(result.unwrap_err().report(), "no memory, says xl");
    }
}
