//! The members of a bundle as they are read: each must be the next one, of its name and length, and is checksummed.

use super::manifest::{Checksums, Sum, corrupt};
use super::ranges::{Passing, Watch};
use crate::error::Result;
use crate::event::Observer;
use crate::model::record::MemoryProof;
use std::fs::File;
use std::io::{self, BufReader, Read};

/// Longest manifest, and longest list of checksums, in bytes: that of a store's file and its first line.
const SEALED_MAX: u64 = (64 << 20) + 160;

/// The members of the archive, one after the other.
pub(super) struct Members<'a, 'b> {
    pub(super) entries: tar::Entries<'a, BufReader<File>>,
    pub(super) sums: Checksums,
    watch: Watch<'b>,
    /// Length of the whole file, in bytes.
    length: u64,
}

type Member<'a> = tar::Entry<'a, BufReader<File>>;

impl<'a, 'b> Members<'a, 'b> {
    /// Those of a file of `length` bytes.
    pub(super) fn new(
        archive: &'a mut tar::Archive<BufReader<File>>,
        length: u64,
        observer: &'b dyn Observer,
    ) -> io::Result<Self> {
        Ok(Self {
            // Raw: extensions of the format, which change names and lengths, are members of a kind that is refused.
            entries: archive.entries()?.raw(true),
            sums: Checksums::default(),
            watch: Watch {
                observer,
                done: 0,
                total: length,
            },
            length,
        })
    }

    /// The next member, which must be the one of the given name.
    fn next(&mut self, name: &str) -> Result<(Member<'a>, u64)> {
        let damaged = |_| corrupt("it is no archive, or ends too early");
        let entry = self
            .entries
            .next()
            .ok_or_else(|| corrupt(&format!("{name} is missing")))?
            .map_err(damaged)?;
        let header = entry.header();
        let is_it = *entry.path_bytes() == *name.as_bytes()
            && header.entry_type() == tar::EntryType::Regular;
        let bytes = header.entry_size().map_err(damaged)?;
        if !is_it || bytes > self.length {
            return Err(corrupt(&format!("{name} is not where it belongs")));
        }
        Ok((entry, bytes))
    }

    /// A member that is read whole.
    pub(super) fn sealed(&mut self, name: &str) -> Result<Vec<u8>> {
        let (entry, bytes) = self.next(name)?;
        if bytes > SEALED_MAX {
            return Err(corrupt(&format!("{name} is too long")));
        }
        let mut content = Vec::new();
        let read = entry.take(bytes).read_to_end(&mut content);
        if read.is_err() || content.len() as u64 != bytes {
            return Err(corrupt(&format!("it ends in {name}")));
        }
        let mut sum = Sum::default();
        sum.add(&content);
        self.sums.members.push(sum.proof());
        Ok(content)
    }

    /// A member that is copied: `copy` reads it to its end.
    pub(super) fn copied<T>(
        &mut self,
        name: &str,
        bytes: u64,
        copy: impl FnOnce(&mut dyn Read) -> Result<T>,
    ) -> Result<(T, MemoryProof)> {
        let (entry, length) = self.next(name)?;
        if length != bytes {
            return Err(corrupt(&format!("{name} has another length")));
        }
        let mut passing = Passing::new(entry, &mut self.watch);
        let copied = copy(&mut passing);
        if let Some(error) = passing.failed {
            return Err(error);
        }
        let copied = copied?;
        let proof = passing.sum.proof();
        if proof.bytes != bytes {
            return Err(corrupt(&format!("it ends in {name}")));
        }
        self.sums.members.push(proof.clone());
        Ok((copied, proof))
    }
}
