//! Files with holes, read and written without them.

use super::manifest::Sum;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Observer, Progress};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A hole that is shorter is taken along as zeros: bytes.
const HOLE_MIN: u64 = 64 << 10;

/// Length of a file or of a block device, and where in it there is data.
pub(super) fn of_file(file: &File, path: &Path) -> Result<(u64, Vec<(u64, u64)>)> {
    let failed = |error: Errno| Error::io(format!("read {}", path.display()), error);
    let end = rustix::fs::seek(file, SeekFrom::End(0)).map_err(failed)?;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < end {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // A device has no holes.
            Err(Errno::INVAL) => return Ok((end, vec![(0, end)])),
            Err(error) => return Err(failed(error)),
        };
        let stop = rustix::fs::seek(file, SeekFrom::Hole(start)).map_err(failed)?;
        let stop = stop.min(end);
        match ranges.last_mut() {
            Some((offset, length)) if start - (*offset + *length) < HOLE_MIN => {
                *length = stop - *offset;
            }
            _ => ranges.push((start, stop - start)),
        }
        at = stop;
    }
    Ok((end, ranges))
}

/// Reads the data of a file and nothing between.
pub(super) struct Data<'a> {
    file: &'a File,
    ranges: std::slice::Iter<'a, (u64, u64)>,
    /// Offset and length of what is being read.
    now: (u64, u64),
}

impl<'a> Data<'a> {
    pub(super) fn new(file: &'a File, ranges: &'a [(u64, u64)]) -> Self {
        Self {
            file,
            ranges: ranges.iter(),
            now: (0, 0),
        }
    }
}

impl Read for Data<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.now.1 == 0 {
            match self.ranges.next() {
                Some(range) => self.now = *range,
                None => return Ok(0),
            }
        }
        let wanted =
            usize::try_from(self.now.1).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = self.file.read_at(&mut buffer[..wanted], self.now.0)?;
        if read == 0 && wanted > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the image became shorter while it was read",
            ));
        }
        self.now = (self.now.0 + read as u64, self.now.1 - read as u64);
        Ok(read)
    }
}

/// Tells of progress, and hears of a wish to stop, as bytes go by.
pub(super) struct Watch<'a> {
    pub(super) observer: &'a dyn Observer,
    pub(super) done: u64,
    pub(super) total: u64,
}

impl Watch<'_> {
    pub(super) fn passed(&mut self, bytes: usize) -> Result<()> {
        self.done += bytes as u64;
        if self.observer.wants_abort() {
            return Err(Error::new(ErrorKind::Aborted, "stopped on request"));
        }
        self.observer.progress(Progress {
            done: self.done,
            total: self.total.max(self.done),
            bytes: true,
        });
        Ok(())
    }
}

/// Passes bytes on, and remembers what they were.
pub(super) struct Passing<'a, 'b, R> {
    inner: R,
    pub(super) sum: Sum,
    watch: &'a mut Watch<'b>,
    /// Why reading was stopped.
    pub(super) failed: Option<Error>,
}

impl<'a, 'b, R> Passing<'a, 'b, R> {
    pub(super) fn new(inner: R, watch: &'a mut Watch<'b>) -> Self {
        Self {
            inner,
            sum: Sum::default(),
            watch,
            failed: None,
        }
    }
}

impl<R: Read> Read for Passing<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.sum.add(&buffer[..read]);
        if let Err(error) = self.watch.passed(read) {
            self.failed = Some(error);
            return Err(io::Error::other("stopped"));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_left_out_and_data_is_read_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sparse");
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_at(&[1; 4096], 1 << 20).unwrap();
        file.write_at(&[2; 4096], 5 << 20).unwrap();
        let (length, ranges) = of_file(&file, &path).unwrap();
        assert_eq!(length, 8 << 20);
        let mut data = Vec::new();
        Data::new(&file, &ranges).read_to_end(&mut data).unwrap();
        let count = |byte: u8| data.split(|it| *it == byte).count() - 1;
        assert_eq!((count(1), count(2)), (4096, 4096));
        assert!(data.len() < 1 << 20, "the holes are left out: {ranges:?}");
        file.set_len(1 << 20).unwrap();
        let cut = Data::new(&file, &ranges).read_to_end(&mut data);
        assert!(cut.is_err(), "it became shorter");
    }
}
