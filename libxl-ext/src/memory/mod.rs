//! Memory images: written through us, so that they are checksummed and a full disk is noticed; proven
//! before they are relied on. The file is what stock `xl save` writes and `xl restore` takes.

mod header;
mod prove;
mod write;

pub(crate) use prove::{export, prove};
pub(crate) use write::write_image;

/// Bytes that a memory image needs beyond the guest's memory: headers, page tables, the records of
/// libxl and QEMU. Generous: a PV guest of 128 MiB was measured at 0.9 MiB.
pub(crate) const OVERHEAD_BYTES: u64 = 4 << 20;
