//! Memory images: written through us, so that they are checksummed and a full disk is noticed; proven
//! before they are relied on. The file is what stock `xl save` writes and `xl restore` takes.

mod header;
pub(crate) mod own_file;
mod prove;
mod stream;
mod write;

pub(crate) use header::{header, read_header};
pub(crate) use prove::{export, measure, prove};
#[cfg(test)]
pub(crate) use stream::tests::stream;
pub(crate) use stream::{PAGE, Pages, pages};
pub(crate) use write::write_image;

/// Bytes that a memory image needs at most, for a guest with so many bytes of memory: the pages, eight
/// bytes of number for each, page tables, headers, the records of libxl and QEMU.
pub(crate) const fn estimate(memory_bytes: u64) -> u64 {
    memory_bytes + memory_bytes / 512 + (4 << 20)
}
