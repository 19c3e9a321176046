//! A domain's whole tree in one file: `snapshot-export`, `snapshot-import`.
//!
//! The file is a tar archive with members of these names, in this order, and no others:
//!
//! ```text
//! manifest      sealed: the record, and for each image its length and where in it there is data
//! memory/<n>    the memory image of the n-th snapshot that has one
//! image/<n>     the data of the n-th image, without the holes between
//! checksums     sealed: length and XXH3-128 of each member before it
//! ```
//! `docs/store-format.md` specifies it. Whoever imports one believes nothing of it: names of members are
//! compared, never used; paths in the record are only labels by which the images are told apart.

mod configuration;
mod export;
mod import;
mod manifest;
mod members;
mod qcow2;
mod ranges;

#[cfg(test)]
pub(crate) mod tests;

pub use configuration::reaching_out;
pub(crate) use configuration::{Identity, rewrite};
pub use import::ImportRequest;

pub(crate) use export::export;
pub(crate) use import::import;

use serde::Serialize;
use std::path::PathBuf;

/// What went into a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// How many snapshots.
    pub snapshots: usize,
    /// How many images.
    pub images: usize,
    /// Length of the file, in bytes.
    pub bytes: u64,
}

/// What came out of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// The name under which the tree is known now.
    pub domain: String,
    /// How many snapshots it has.
    pub snapshots: usize,
    /// The new images.
    pub images: Vec<PathBuf>,
}
