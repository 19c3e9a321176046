//! Keeping what is written once and read much later out of the page cache, where it would take the place of what the
//! host works with.
//!
//! Not by O_DIRECT: parts of an image begin and end anywhere, and whoever writes would wait for the disk while the guest
//! waits for whoever writes. `POSIX_FADV_DONTNEED` has the kernel begin to write what is not written yet, and drop
//! what is; neither waits.

use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::AsFd;

/// Bytes after which the kernel is told. What it has not begun to write at the end, a flush waits for.
const EVERY: u64 = 2 << 20;

/// How far the kernel was told of a file that is written.
#[derive(Default)]
pub(super) struct KeptOutOfCache {
    at: u64,
    told: u64,
}

impl KeptOutOfCache {
    /// Of a new file.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// So many more bytes were written at the end of it.
    pub(super) fn wrote(&mut self, file: &File, bytes: usize) {
        self.at += bytes as u64;
        if self.at - self.told >= EVERY {
            // What was told last time is on the disk by now, or on its way: it is dropped this time.
            let from = self.told.saturating_sub(EVERY);
            advise(file, from, NonZeroU64::new(self.at - from));
            self.told = self.at;
        }
    }
}

/// Nothing of a file is needed in the cache.
pub(crate) fn forget(file: impl AsFd) {
    advise(file, 0, None);
}

/// It is advice: what the kernel makes of it is of no consequence.
fn advise(file: impl AsFd, from: u64, length: Option<NonZeroU64>) {
    if let Err(error) = fadvise(file, from, length, Advice::DontNeed) {
        tracing::debug!("fadvise: {error}");
    }
}
