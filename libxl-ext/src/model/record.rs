//! What the store keeps of a domain: its snapshots, their order and what proves them whole.

use crate::model::disk::{DiskKind, DiskTarget, Stamp};
use crate::model::domain::{GuestState, GuestType};
use crate::model::layer::Layer;
use crate::model::name::{SnapshotId, SnapshotName};
use crate::model::pull::Pull;
use crate::types::DomainSnapshot;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use uuid::Uuid;

/// All that is known of one domain. One file holds it, so that one rename changes all of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DomainRecord {
    /// Name of the domain, unescaped.
    pub domain: String,
    /// Counts the commits; a plan made on an older generation is stale.
    pub generation: u64,
    /// The operation that committed last, so that recovery knows whether one got that far.
    pub last_operation: Option<Uuid>,
    /// The snapshot that the domain's present state comes from.
    pub current: Option<SnapshotId>,
    /// Every snapshot, parents before children.
    pub snapshots: Vec<SnapshotRecord>,
    /// Every image that we made, those below before those above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Layer>,
    /// Internal snapshots of which nobody needs anything, in images that could not be written to when
    /// theirs was deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_over: Vec<LeftOver>,
    /// The saved state that the domain goes on from when it is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedImage>,
    /// The last pull of each disk, be it over or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pulls: Vec<Pull>,
}

/// The memory of a domain that was saved and is off, and the disks that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedImage {
    /// Its identity; the memory image is in the directory of that name.
    pub id: SnapshotId,
    /// How the guest goes on.
    pub guest: GuestState,
    /// The guest's type.
    pub guest_type: GuestType,
    /// UUID of the domain.
    pub domain_uuid: Uuid,
    /// When it was saved, in seconds since 1970-01-01 00:00 UTC.
    pub saved_at: u64,
    /// Whether it goes on when the host boots, since it was saved when that went down.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_boot: bool,
    /// What proves the memory image whole. `None` until it was written.
    pub memory: Option<MemoryProof>,
    /// The writable disks, each with its last write.
    pub disks: Vec<DiskProof>,
    /// When the domain was seen to run after it had been saved, in the same: somebody started it by other means, and it
    /// is void, whatever the disks say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_running: Option<u64>,
}

impl DomainRecord {
    /// The record of a domain without snapshots.
    pub fn new(domain: impl Into<String>) -> Self {
        Self {
            domain: domain.into(),
            generation: 0,
            last_operation: None,
            current: None,
            snapshots: Vec::new(),
            layers: Vec::new(),
            left_over: Vec::new(),
            managed: None,
            pulls: Vec::new(),
        }
    }
}

/// Whether a snapshot can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordState {
    /// Memory and disks are whole.
    Complete,
    /// Its deletion began and has to be finished: it can no longer be reverted to.
    Deleting,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Its identity.
    pub id: SnapshotId,
    /// The snapshot that was current when it was made.
    pub parent: Option<SnapshotId>,
    /// Whether it can be used.
    pub state: RecordState,
    /// The guest's state at the instant.
    pub guest: GuestState,
    /// The guest's type.
    pub guest_type: GuestType,
    /// UUID of the domain at the instant.
    pub domain_uuid: Uuid,
    /// V6's `domain_snapshot`: name, description, time, disks.
    pub snapshot: DomainSnapshot,
    /// What proves the memory image whole. `None` until it was written.
    pub memory: Option<MemoryProof>,
    /// What proves each disk's content, in the order of `snapshot.disks`.
    pub disks: Vec<DiskProof>,
    /// libxl's configuration of the domain, in JSON, where no memory image holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<Value>,
    /// What each disk holds as its guest sees it, by its virtual device, where that was read: XXH3-128 in 32 hexadecimal
    /// digits. A merge of images does not change it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub contents: BTreeMap<String, String>,
}

impl SnapshotRecord {
    /// Whether it is one of a domain that was off: of its disks, without a memory image.
    pub fn is_disk_only(&self) -> bool {
        self.guest == GuestState::Off
    }

    /// The snapshot's name.
    pub fn name(&self) -> &str {
        self.snapshot.name.as_deref().unwrap_or_default()
    }

    /// The checked name.
    ///
    /// # Errors
    /// If the store holds a name that breaks the rules.
    pub fn checked_name(&self) -> crate::Result<SnapshotName> {
        SnapshotName::new(self.name())
    }
}

/// An internal snapshot that is to be deleted from an image as soon as that can be written to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOver {
    /// The snapshot; the image carries its tag.
    pub id: SnapshotId,
    /// The image.
    #[serde(flatten)]
    pub target: DiskTarget,
}

/// What a memory image must be for it to be believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryProof {
    /// Length in bytes of the file that stock `xl restore` takes.
    pub bytes: u64,
    /// XXH3-128 of that file, 32 hexadecimal digits (`xxhsum -H2` prints the same).
    pub xxh3: String,
    /// What is kept instead of that file; none where the file itself is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<Packed>,
}

/// A memory image whose pages are in packs, as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// Length of the image in bytes.
    pub image_bytes: u64,
    /// Length in bytes of the pack with the pages that no earlier image has; 0 if there were none.
    pub pack_bytes: u64,
}

impl MemoryProof {
    /// Of a file that is kept as it is: its length in bytes, its XXH3-128 in hexadecimal digits.
    pub fn plain(bytes: u64, xxh3: impl Into<String>) -> Self {
        Self {
            bytes,
            xxh3: xxh3.into(),
            packed: None,
        }
    }

    /// The same without how it is kept: what comes out of it.
    #[must_use]
    pub fn content(&self) -> Self {
        Self::plain(self.bytes, self.xxh3.clone())
    }

    /// Bytes that were written for it.
    pub fn stored_bytes(&self) -> u64 {
        self.packed
            .map_or(self.bytes, |packed| packed.image_bytes + packed.pack_bytes)
    }

    /// Length in bytes of the image that is kept, without packs.
    pub fn image_bytes(&self) -> u64 {
        self.packed.map_or(self.bytes, |packed| packed.image_bytes)
    }
}

/// In which form a memory image is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryFormat {
    /// Pages once for all snapshots of the domain, compressed.
    #[default]
    Packed,
    /// The file that stock `xl restore` takes.
    Stock,
}

/// What a disk must hold for the memory image to fit it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskProof {
    /// Device and image.
    #[serde(flatten)]
    pub target: DiskTarget,
    /// Inside the image, or the image itself.
    #[serde(default)]
    pub kind: DiskKind,
    /// Internal: when QEMU made the snapshot, which is named after the snapshot's identity. External: when
    /// the image was last written to.
    pub stamp: Option<Stamp>,
}
