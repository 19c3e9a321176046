//! The first bytes of a qcow2 image, looked at before QEMU opens an image that somebody else made: what it names
//! in them, QEMU would open. (QEMU's docs/interop/qcow2.txt.)

use super::manifest::corrupt;
use crate::error::{Error, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;

const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Incompatible features that change nothing outside the file: dirty, compression type, extended L2 entries. The
/// others are a damaged image, data in another file, and what nobody knows.
const HARMLESS: u64 = 1 << 0 | 1 << 3 | 1 << 4;

/// Refuses an image that names another file as its data, is encrypted or damaged, or has features that we do not
/// know; and, unless it `may_stand` on another image, one that does. The name of that is not read: we put our own
/// in its place.
pub(super) fn vet(file: &File, may_stand: bool) -> Result<()> {
    let mut head = [0; 80];
    file.read_exact_at(&mut head[..72], 0)
        .map_err(|_| corrupt("an image is too short to be qcow2"))?;
    let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
    let version = word(4);
    if head[..4] != MAGIC || !matches!(version, 2 | 3) {
        return Err(corrupt("an image is no qcow2 that we know"));
    }
    let backing = u64::from_be_bytes(head[8..16].try_into().expect("eight bytes"));
    if backing != 0 && !may_stand {
        return Err(corrupt("an image stands on one that is not in it"));
    }
    if word(32) != 0 {
        return Err(corrupt("an image is encrypted"));
    }
    if version == 3 {
        let mut features = [0; 8];
        file.read_exact_at(&mut features, 72)
            .map_err(|error| Error::io("read an image", error))?;
        if u64::from_be_bytes(features) & !HARMLESS != 0 {
            return Err(corrupt("an image is damaged, or keeps its data elsewhere"));
        }
    }
    Ok(())
}
