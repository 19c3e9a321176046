//! Decompressing, with what that takes kept from one section to the next: to touch memory for the first time costs more than
//! to fill it again.

use super::section::Section;
use crate::error::{Error, Result};
use zstd::bulk::Decompressor;

/// What sections are read into and decompressed with.
#[derive(Default)]
pub(super) struct Unpacker {
    zstd: Decompressor<'static>,
    /// What the section that was read last has stored.
    stored: Vec<u8>,
}

impl Unpacker {
    /// Where a section is read into that is unpacked next.
    pub(super) fn stored(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.stored)
    }

    /// Puts into `into` what a section has compressed. It may be longer than the section says if `into` has the room, but
    /// no longer than that.
    ///
    /// # Errors
    /// What zstd says, also if it is longer.
    pub(super) fn unpack(&mut self, section: Section, into: &mut Vec<u8>) -> Result<()> {
        into.clear();
        into.reserve(section.length);
        let unpacked = self.zstd.decompress_to_buffer(&section.stored, into);
        self.stored = section.stored;
        unpacked
            .map(drop)
            .map_err(|error| Error::io("decompress memory", error))
    }
}
