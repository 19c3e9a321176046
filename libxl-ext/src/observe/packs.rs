//! The packs of a domain: how much room they take, and which memory images need them.

use super::Inventory;
use crate::error::Result;
use crate::memory::packed::{self, Traced};
use crate::model::name::SnapshotId;
use crate::model::record::{DomainRecord, MemoryProof};
use crate::store::DomainStore;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is known of the packs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packs {
    /// Those that are there, complete.
    pub packs: BTreeMap<SnapshotId, PackUse>,
    /// Why it is not known what some image needs.
    pub unknown: Option<String>,
}

/// A pack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackUse {
    /// Bytes of the file.
    pub bytes: u64,
    /// The images that need it, recorded or not.
    pub needed_by: Vec<SnapshotId>,
}

/// The room that a memory image takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryRoom {
    /// The image, with the packs that no snapshot recorded before it needs: all of a domain together are what its
    /// memory images take.
    pub stored: u64,
    /// What would be given back if it alone went.
    pub alone: u64,
}

impl Packs {
    /// Looks at them. Of each image no more is read than what it needs.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`] if they cannot be listed.
    pub(crate) fn look(store: &DomainStore) -> Result<Self> {
        if !store.directory().is_dir() {
            return Ok(Self::default());
        }
        let (traced, silent) = Traced::ask(&store.packed_images()?);
        let files = packed::list(&store.packs_directory())?.into_iter();
        let whole = files.filter(|file| !file.is_partial).map(|file| {
            let unneeded = PackUse {
                bytes: file.bytes,
                needed_by: Vec::new(),
            };
            (file.id, unneeded)
        });
        let mut packs: BTreeMap<_, _> = whole.collect();
        for (id, needed_by) in traced.users() {
            if let Some(found) = packs.get_mut(&id) {
                found.needed_by = needed_by;
            }
        }
        let unknown = silent.first().map(|(_, why)| why.report());
        Ok(Self { packs, unknown })
    }

    /// What packs are given back if these images go, in bytes.
    fn released(&self, ids: &[SnapshotId]) -> u64 {
        if self.unknown.is_some() {
            return 0;
        }
        let only_theirs = |pack: &&PackUse| pack.needed_by.iter().all(|id| ids.contains(id));
        let gone = self.packs.values().filter(only_theirs);
        gone.map(|pack| pack.bytes).sum()
    }

    /// The room that a domain's memory images take.
    pub(crate) fn rooms(
        &self,
        record: &DomainRecord,
        images: &BTreeMap<SnapshotId, u64>,
    ) -> BTreeMap<SnapshotId, MemoryRoom> {
        let recorded = record.snapshots.iter().map(|snapshot| snapshot.id);
        let order: Vec<_> = recorded
            .chain(record.managed.iter().map(|it| it.id))
            .collect();
        let mut rooms: BTreeMap<_, _> = images
            .iter()
            .map(|(id, bytes)| {
                let room = MemoryRoom {
                    stored: *bytes,
                    alone: *bytes,
                };
                (*id, room)
            })
            .collect();
        for pack in self.packs.values() {
            let first = order.iter().find(|id| pack.needed_by.contains(id));
            if let Some(room) = first.and_then(|id| rooms.get_mut(id)) {
                room.stored += pack.bytes;
                if pack.needed_by.len() == 1 && self.unknown.is_none() {
                    room.alone += pack.bytes;
                }
            }
        }
        rooms
    }
}

impl Inventory {
    /// Room that is given back when the memory images of these snapshots go, in bytes.
    pub(crate) fn room_released(&self, ids: &[SnapshotId]) -> u64 {
        let images = ids.iter().filter_map(|id| self.memory.get(id));
        images.sum::<u64>() + self.packs.released(ids)
    }

    /// Room that the last packed memory image took when it was written, with its pack, in bytes.
    pub(crate) fn room_last(&self) -> Option<u64> {
        let of_snapshots = self.record.snapshots.iter().rev();
        let of_snapshots = of_snapshots.filter_map(|snapshot| snapshot.memory.as_ref());
        let of_managed = self.record.managed.iter();
        let of_managed = of_managed.filter_map(|managed| managed.memory.as_ref());
        let mut packed = of_managed
            .chain(of_snapshots)
            .filter(|memory| memory.packed.is_some());
        packed.next().map(MemoryProof::stored_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tree::tests::record;
    use uuid::Uuid;

    fn id(number: u128) -> SnapshotId {
        SnapshotId(Uuid::from_u128(number))
    }

    #[test]
    fn each_pack_is_counted_once_and_given_back_with_the_last_that_needs_it() {
        let mut domain = DomainRecord::new("g");
        (1..=3).for_each(|number| domain.add(record(number)));
        let pack = |bytes, needed_by: &[u128]| PackUse {
            bytes,
            needed_by: needed_by.iter().map(|number| id(*number)).collect(),
        };
        // That of a snapshot which is gone, one of the second alone, one that nothing needs.
        let all = [
            (id(9), pack(1000, &[1, 2, 3])),
            (id(2), pack(100, &[2])),
            (id(8), pack(10_000, &[])),
        ];
        let mut packs = Packs {
            packs: all.into(),
            unknown: None,
        };
        let images: BTreeMap<_, _> = [(id(1), 1), (id(2), 2), (id(3), 3)].into();
        let seen = |packs: &Packs| -> Vec<(u64, u64)> {
            let rooms = packs.rooms(&domain, &images);
            rooms
                .values()
                .map(|room| (room.stored, room.alone))
                .collect()
        };
        assert_eq!(seen(&packs), [(1001, 1), (102, 102), (3, 3)]);
        // What nothing needs goes at the next opportunity.
        assert_eq!(packs.released(&[id(1)]), 10_000);
        assert_eq!(packs.released(&[id(2)]), 10_100);
        assert_eq!(packs.released(&[id(3), id(2), id(1)]), 11_100);
        packs.unknown = Some("an image cannot be read".into());
        assert_eq!(packs.released(&[id(3), id(2), id(1)]), 0);
        assert_eq!(seen(&packs), [(1001, 1), (102, 2), (3, 3)]);
    }
}
