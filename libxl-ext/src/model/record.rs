//! What the store keeps of a domain: its snapshots, their order and what proves them whole.

use crate::model::disk::{DiskKind, DiskTarget, Stamp};
use crate::model::domain::{GuestState, GuestType};
use crate::model::layer::Layer;
use crate::model::name::{SnapshotId, SnapshotName};
use crate::types::DomainSnapshot;
use serde::{Deserialize, Serialize};
use serde_json::Value;
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
    /// Length of the file in bytes.
    pub bytes: u64,
    /// XXH3-128 of the file, 32 hexadecimal digits (`xxhsum -H2` prints the same).
    pub xxh3: String,
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
