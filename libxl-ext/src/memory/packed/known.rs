//! Which contents are in the packs of a domain already.

use super::pack::Pack;
use super::trace::packs_in;
use super::{Hash, Key};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Observer, Progress};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Where a content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Which of [`Known`]'s packs.
    pub(super) pack: usize,
    /// Which page of it.
    pub(super) page: u64,
}

/// The contents that are there, in about 50 bytes of memory each.
pub(crate) struct Known {
    /// Where the packs are.
    directory: PathBuf,
    key: Key,
    packs: Vec<Uuid>,
    places: HashMap<Hash, Place>,
}

impl Known {
    /// Reads all packs in a directory, which need not be there. It takes time, so it is done while the guest still runs.
    ///
    /// Every block's checksum is compared: what is damaged already is not offered, so that no new image comes to stand
    /// on it. A pack that cannot be read at all is left out with a warning; it is none of the new image's.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the directory cannot be read, [`ErrorKind::Aborted`]; if a pack that could be read
    /// cannot be read a moment later.
    pub(crate) fn load(directory: &Path, observer: &dyn Observer) -> Result<Self> {
        let mut known = Self {
            directory: directory.to_owned(),
            key: Key::random(),
            packs: Vec::new(),
            places: HashMap::new(),
        };
        let mut packs = Vec::new();
        let mut pages: HashMap<Key, u64> = HashMap::new();
        for id in packs_in(directory)? {
            match Pack::open(directory, id, |_| ()) {
                Err(error) => tracing::warn!("a pack is not used: {}", error.report()),
                Ok(pack) => {
                    *pages.entry(*pack.key()).or_default() += pack.pages();
                    packs.push((id, *pack.key()));
                }
            }
        }
        // Hashes of one key say nothing about those of another, such as that of an imported pack.
        let largest = pages.into_iter().max_by_key(|(key, pages)| (*pages, *key));
        if let Some((key, _)) = largest {
            known.key = key;
        }
        packs.retain(|(_, key)| *key == known.key);
        let total = packs.len() as u64;
        for (done, (id, _)) in (1..).zip(packs) {
            known.add(id, observer)?;
            observer.progress(Progress {
                done,
                total,
                bytes: false,
            });
        }
        Ok(known)
    }

    /// Where the packs are.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// With which hashes are made.
    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// The identity of a pack.
    pub(super) fn pack(&self, number: usize) -> Option<Uuid> {
        self.packs.get(number).copied()
    }

    /// Another pack, which is written now.
    pub(super) fn begin(&mut self, id: Uuid) -> usize {
        self.packs.push(id);
        self.packs.len() - 1
    }

    /// Where a content is, or the place where it is to be put.
    pub(super) fn entry(&mut self, hash: Hash) -> Entry<'_, Hash, Place> {
        self.places.entry(hash)
    }

    fn add(&mut self, id: Uuid, observer: &dyn Observer) -> Result<()> {
        let mut hashes = Vec::new();
        let pack = Pack::open(&self.directory, id, |hash| hashes.push(hash))?;
        let number = self.begin(id);
        for block in 0..pack.blocks() {
            if observer.wants_abort() {
                return Err(Error::new(
                    ErrorKind::Aborted,
                    "stopped while the packs were read",
                ));
            }
            if let Err(error) = pack.check(block) {
                tracing::warn!("a block is not used: {}", error.report());
                continue;
            }
            let first = block * super::BLOCK_PAGES as u64;
            let rest = usize::try_from(first).map_or(&[][..], |first| &hashes[first..]);
            for (page, hash) in (first..).zip(rest.iter().take(super::BLOCK_PAGES)) {
                let place = Place { pack: number, page };
                self.places.entry(*hash).or_insert(place);
            }
        }
        Ok(())
    }
}
