//! Memory images: written through us, so that they are checksummed and a full disk is noticed; proven
//! before they are relied on. What comes out of one is what stock `xl save` writes and `xl restore` takes; how it is kept
//! is another matter (`packed`).

mod cache;
mod header;
mod kept;
pub(crate) mod own_file;
pub(crate) mod packed;
mod pages;
pub(crate) mod pipe;
mod prove;
mod stream;
mod write;

pub(crate) use cache::forget;
pub(crate) use header::{header, is_stock, read_header};
pub(crate) use kept::{Content, Kept, Sink, Unfed};
#[cfg(test)]
pub(crate) use pages::tests::{stream, stream_of};
pub(crate) use pages::{Pages, pages};
pub(crate) use stream::PAGE;
pub(crate) use write::{Form, Taker, save_to, write_image};

/// Bytes that a memory image needs at most, for a guest with so many bytes of memory: the pages, eight
/// bytes of number for each, page tables, headers, the records of libxl and QEMU.
const fn estimate(memory_bytes: u64) -> u64 {
    memory_bytes + memory_bytes / 512 + (4 << 20)
}

/// The same for either form. Of a packed one, with its pack: beside a page that cannot be compressed there are its hash, its number and
/// where it is, each in at most sixteen bytes, and the head of a block.
pub(crate) const fn at_most(memory_bytes: u64, packed: bool) -> u64 {
    if packed {
        memory_bytes + memory_bytes / 64 + (4 << 20)
    } else {
        estimate(memory_bytes)
    }
}
