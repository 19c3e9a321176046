//! Memory, page by page.

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Observer, Progress};
use crate::memory::{self, Content, Kept, PAGE, Pages};
use crate::model::record::MemoryProof;
use serde::Serialize;
use std::io::{self, BufReader, Read};
use xxhash_rust::xxh3::Xxh3;

/// What differs in memory, in pages of 4096 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PageDifference {
    /// Pages of the first snapshot.
    pub from_pages: u64,
    /// Pages of the second one.
    pub to_pages: u64,
    /// Pages that both have, with another content.
    pub changed: u64,
    /// Pages that only the first one has.
    pub only_from: u64,
    /// Pages that only the second one has.
    pub only_to: u64,
    /// Bytes of a page.
    pub page_bytes: u64,
}

/// What is in a memory image.
pub(super) struct Memory {
    pub(super) configuration: String,
    pub(super) pages: Pages,
}

impl Memory {
    /// Reads an image, and proves on the way that it is the recorded one.
    pub(super) fn read(kept: &Kept, proof: &MemoryProof, observer: &dyn Observer) -> Result<Self> {
        let path = kept.image.as_path();
        let damaged = || {
            Error::new(
                ErrorKind::Corrupt,
                format!(
                    "memory image {} is damaged: its checksum does not match",
                    path.display()
                ),
            )
        };
        let mut reading = Reading {
            file: BufReader::with_capacity(1 << 20, kept.open()?),
            hash: Xxh3::new(),
            done: 0,
            total: proof.bytes,
            observer,
            aborted: false,
        };
        let understood = memory::read_header(&mut reading).and_then(|configuration| {
            let pages = memory::pages(&mut reading)?;
            Ok(Self {
                configuration,
                pages,
            })
        });
        // What follows counts for the checksum. That it does not match says more than what was not understood.
        let drained = io::copy(&mut reading, &mut io::sink());
        if reading.aborted {
            return Err(Error::new(ErrorKind::Aborted, "stopped on request"));
        }
        drained.map_err(|error| Error::io(format!("read {}", path.display()), error))?;
        let checksum = format!("{:032x}", reading.hash.digest128());
        if reading.done != proof.bytes || checksum != proof.xxh3 {
            return Err(damaged());
        }
        understood.map_err(|error| error.while_doing(format!("read {}", path.display())))
    }
}

/// Checksums what is read.
struct Reading<'a> {
    file: BufReader<Content>,
    hash: Xxh3,
    done: u64,
    total: u64,
    observer: &'a dyn Observer,
    aborted: bool,
}

impl Read for Reading<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let before = self.done >> 20;
        let read = self.file.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.done += read as u64;
        if self.done >> 20 != before {
            if self.observer.wants_abort() {
                self.aborted = true;
                return Err(io::Error::other("stopped"));
            }
            self.observer.progress(Progress {
                done: self.done,
                total: self.total,
                bytes: true,
            });
        }
        Ok(read)
    }
}

pub(super) fn compare(from: &Pages, to: &Pages) -> PageDifference {
    let both = |pfn: &u64| Some((from.get(pfn)?, to.get(pfn)?));
    let shared = from.keys().filter_map(both);
    let (mut common, mut changed) = (0, 0);
    for (a, b) in shared {
        common += 1;
        changed += u64::from(a != b);
    }
    PageDifference {
        from_pages: from.len() as u64,
        to_pages: to.len() as u64,
        changed,
        only_from: from.len() as u64 - common,
        only_to: to.len() as u64 - common,
        page_bytes: PAGE as u64,
    }
}
