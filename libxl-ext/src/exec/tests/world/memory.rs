//! The memory of the guests, as it is in memory images.

use crate::error::{Error, Result};
use crate::memory::{self, Kept, PAGE};
use std::io::Read;

const MARK: &str = "the memory of the guest: ";

/// A stream with the memory of a guest: a page that says which it is, one that no other memory has, one that all have,
/// one of zeros.
pub(super) fn stream_with(memory: &str) -> Vec<u8> {
    let mut told = format!("{MARK}{memory}").into_bytes();
    told.resize(PAGE, 0);
    let own = memory.bytes().cycle().take(PAGE).collect();
    let pages = [told, own, vec![7; PAGE], vec![0; PAGE]];
    let pages = (1..).zip(pages.map(Some)).collect();
    memory::stream_of(&[pages])
}

/// What the memory says that is in a memory image.
pub(in crate::exec::tests) fn memory_in(kept: &Kept) -> Result<String> {
    let mut bytes = Vec::new();
    kept.open()?
        .read_to_end(&mut bytes)
        .map_err(|error| Error::io("read a memory image", error))?;
    let at = bytes
        .windows(MARK.len())
        .position(|window| window == MARK.as_bytes());
    let told = &bytes[at.expect("the page is there") + MARK.len()..];
    let end = told.iter().position(|byte| *byte == 0).unwrap();
    Ok(String::from_utf8(told[..end].to_vec()).unwrap())
}
