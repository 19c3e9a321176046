//! The vocabulary of plans. A step names everything that it works on; nothing is decided later.

use crate::model::disk::DiskTarget;
use crate::model::domain::{DomainLife, GuestState};
use crate::model::last_write::Accepted;
use crate::model::layer::{Backing, Into, Layer};
use crate::model::name::{SnapshotId, SnapshotName};
use crate::model::process::ProcessId;
use crate::model::record::{DiskProof, LeftOver, ManagedImage, SnapshotRecord};
use crate::plan::pull::{PullChange, PullStep};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use uuid::Uuid;

/// One step. Doing a step again that was done, or that was done in part, leads to the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Step {
    /// Read a snapshot's memory image and look at its disks: is it whole?
    Prove {
        /// The snapshot.
        id: SnapshotId,
        /// Where its disk state is.
        disks: Vec<DiskProof>,
    },
    /// Make a snapshot's directory in the store.
    CreateDirectory {
        /// The snapshot.
        id: SnapshotId,
    },
    /// Let a paused domain run, since a guest suspends itself and has to run for that.
    Wake {
        /// The domain.
        life: DomainLife,
    },
    /// Pause a domain that runs.
    Pause {
        /// The domain.
        life: DomainLife,
    },
    /// Stop xl's monitor of the domain, which would take a suspend for its end.
    HoldMonitor {
        /// The process.
        process: ProcessId,
    },
    /// Let the monitor go on.
    ReleaseMonitor {
        /// The process.
        process: ProcessId,
    },
    /// Suspend the domain and write its memory.
    SaveMemory {
        /// The domain.
        life: DomainLife,
        /// Where the image goes.
        id: SnapshotId,
        /// How the guest was before.
        guest: GuestState,
        /// Length to expect, in bytes.
        estimate: u64,
        /// Whether the guest runs while most of it is written.
        #[serde(default)]
        live: bool,
        /// Where it goes if not to the store.
        #[serde(default)]
        file: Option<Box<Path>>,
        /// Whether its pages go to packs.
        #[serde(default)]
        packed: bool,
    },
    /// Make sure that there are no files of these names: taking back the next step removes them.
    RequireAbsent {
        /// The names.
        images: Vec<Box<Path>>,
    },
    /// Make images on top of others, which hold all of their content so far.
    CreateLayers {
        /// The images.
        layers: Vec<Layer>,
    },
    /// Make images out of the internal snapshots of others.
    ExtractLayers {
        /// The snapshot.
        id: SnapshotId,
        /// Where its disk state is, and the image that is made of it.
        layers: Vec<Extracted>,
    },
    /// Snapshot disks that the domain's QEMU has open, all in one transaction: some inside their images, for
    /// the others the guest goes on in a layer.
    SnapshotDisks {
        /// The domain.
        life: DomainLife,
        /// The snapshot; the images carry its tag.
        id: SnapshotId,
        /// The disks that get an internal snapshot.
        disks: Vec<DiskTarget>,
        /// The layers that are put on top of the others.
        #[serde(default)]
        layers: Vec<Layer>,
    },
    /// Tell libxl and xenstore which images a domain's disks are now.
    PointDisks {
        /// The domain.
        life: DomainLife,
        /// The disks.
        switches: Vec<Switch>,
    },
    /// Bring disks back from layers to the images below, with what the guest wrote to them, and tell libxl. A
    /// running guest stands still while the two are the same, so that neither is the newer one.
    LeaveLayers {
        /// The domain as it was; none if there was none.
        life: Option<DomainLife>,
        /// The layers.
        layers: Vec<Layer>,
        /// Whether the guest ran before: after a kill nobody can say who paused it.
        wake: bool,
    },
    /// Make one image's content of two: a layer's and that of the image below it. Where the layer is a
    /// running domain's disk and goes down, only the copying is done.
    MergeLayer {
        /// The merge.
        merge: Merge,
    },
    /// Remove images of ours that nothing stands on.
    RemoveLayers {
        /// The images.
        layers: Vec<Layer>,
    },
    /// Make an internal snapshot in images that nobody has open.
    SnapshotImages {
        /// The snapshot; the images carry its tag.
        id: SnapshotId,
        /// The images.
        disks: Vec<DiskTarget>,
    },
    /// Make sure that nobody uses the disks of a domain that is off, which are the state of a snapshot now, and
    /// take down what they are known by.
    SettleImages {
        /// The snapshot; the images carry its tag.
        id: SnapshotId,
        /// The images that hold it inside.
        disks: Vec<DiskTarget>,
        /// The layers on top of the others, in which the domain goes on.
        layers: Vec<Layer>,
    },
    /// Make sure that there is no domain, and nobody about to start one: xl does so in a reboot, on images that it has
    /// read of already.
    RequireOff,
    /// Let the suspended domain go on.
    Resume {
        /// The domain.
        life: DomainLife,
        /// Running or paused.
        guest: GuestState,
    },
    /// Make sure that nobody uses the disks of a domain that is off, and take down when they were last written to.
    StampImages {
        /// The disks.
        disks: Vec<DiskTarget>,
    },
    /// Make a memory image durable.
    Seal {
        /// The snapshot.
        id: SnapshotId,
        /// Where it is if not in the store.
        #[serde(default)]
        file: Option<Box<Path>>,
    },
    /// Take from a memory image outside the store the name that it was written under.
    SettleMemory {
        /// The snapshot.
        id: SnapshotId,
        /// The image.
        file: Box<Path>,
    },
    /// Remove a memory image outside the store that is not recorded.
    WithdrawMemory {
        /// The snapshot.
        id: SnapshotId,
        /// The image.
        file: Box<Path>,
    },
    /// Remove a snapshot's memory image outside the store, if it still is what was written.
    RemoveMemory {
        /// The snapshot.
        id: SnapshotId,
        /// The image.
        file: Box<Path>,
    },
    /// Destroy the domain.
    Destroy {
        /// The domain.
        life: DomainLife,
        /// Whether it has a QEMU for its disks, without which it is not whole.
        has_qemu: bool,
        /// What becomes of its memory.
        memory: Memory,
    },
    /// Make the images' content that of a snapshot.
    ApplyImages {
        /// The snapshot.
        id: SnapshotId,
        /// The snapshot that holds the content to go back to.
        instead_of: SnapshotId,
        /// The images.
        disks: Vec<DiskTarget>,
    },
    /// Make a domain out of a memory image. It does not run yet.
    Restore {
        /// The snapshot.
        id: SnapshotId,
        /// UUID that the domain will have.
        uuid: Uuid,
        /// The disks that it gets other images for.
        #[serde(default)]
        switches: Vec<Switch>,
    },
    /// Bring a domain back on the disks that its memory belongs to, unless it is still there, whole.
    BringBack {
        /// The snapshot.
        id: SnapshotId,
        /// The domain as it was.
        life: DomainLife,
        /// Whether it had a QEMU for its disks.
        has_qemu: bool,
        /// The images that the snapshot holds.
        disks: Vec<DiskTarget>,
        /// The images that it does not hold.
        others: Vec<Box<Path>>,
    },
    /// Destroy the rest of a domain, unless it is still there, whole.
    DestroyRest {
        /// The domain.
        life: DomainLife,
        /// Whether it had a QEMU for its disks.
        has_qemu: bool,
    },
    /// Remove a domain that was restored but not used.
    DestroyRestored {
        /// Its UUID.
        uuid: Uuid,
    },
    /// Let a restored domain be as it should: run, or stay paused.
    Start {
        /// Its UUID.
        uuid: Uuid,
        /// Running or paused.
        guest: GuestState,
    },
    /// Change the record in the store.
    Commit {
        /// The change.
        change: StoreChange,
    },
    /// Delete a snapshot from the images.
    DeleteTags {
        /// The snapshot.
        id: SnapshotId,
        /// The images.
        disks: Vec<DiskTarget>,
    },
    /// Remove a snapshot's directory from the store.
    RemoveDirectory {
        /// The snapshot.
        id: SnapshotId,
    },
    /// Remove the pack with the pages that were new with a snapshot, which is not recorded.
    DiscardPack {
        /// The snapshot.
        id: SnapshotId,
    },
    /// Remove the packs that no memory image needs any more.
    CollectPacks,
    /// Post the name of the current snapshot in xenstore.
    Announce,
    /// A step of a pull.
    Pull {
        /// The step.
        step: PullStep,
    },
}

/// One disk whose image changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// What it was.
    pub from: DiskTarget,
    /// What it is then.
    pub to: Backing,
}

/// Which two images become one, and which way the content goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merge {
    /// The upper one.
    pub layer: Layer,
    /// Which of the two is left.
    pub into: Into,
    /// What the image below the layer stands on, for a layer that takes its place.
    pub onto: Option<Backing>,
    /// The layers that stand on the upper one.
    pub above: Vec<Layer>,
    /// The disk in whose chain a running domain may have it.
    pub disk: DiskTarget,
}

impl Merge {
    /// The images that are written to.
    pub fn images(&self) -> Vec<&Path> {
        let below = self.layer.backing.iter().map(|below| &*below.image);
        let above = self.above.iter().map(|above| &*above.image);
        below.chain(above).chain([&*self.layer.image]).collect()
    }
}

/// An image that is made of another one's internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extracted {
    /// Where the state is.
    pub from: DiskTarget,
    /// The image.
    pub layer: Layer,
}

/// What becomes of the memory of a domain that is destroyed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Memory {
    /// A snapshot holds it, to bring the domain back from.
    Kept {
        /// The snapshot.
        id: SnapshotId,
        /// How the guest was.
        guest: GuestState,
        /// The images that the snapshot holds.
        disks: Vec<DiskTarget>,
        /// The domain's other images: it can only be brought back as long as nobody writes to them.
        others: Vec<Box<Path>>,
    },
    /// The domain had ended by itself and could not go on.
    Ended,
    /// It is lost, because the user said that it may be.
    GivenUp {
        /// How the guest was, if it could go on.
        guest: Option<GuestState>,
    },
}

/// A change of the record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum StoreChange {
    /// A new snapshot below the current one. What was measured on the way is filled in.
    Add {
        /// The snapshot.
        record: Box<SnapshotRecord>,
        /// The layers that are the disks from now on.
        #[serde(default)]
        layers: Vec<Layer>,
    },
    /// The present state comes from this snapshot.
    SetCurrent {
        /// The snapshot.
        id: SnapshotId,
        /// The layers that were made for it.
        #[serde(default)]
        layers: Vec<Layer>,
        /// What the disks are now.
        #[serde(default)]
        disks: Vec<DiskTarget>,
        /// Layers of the disks that are taken as they are, though somebody else wrote to the images below them.
        #[serde(default)]
        accepted: Vec<Accepted>,
    },
    /// This is said of a snapshot; what is none stays as it is.
    Edit {
        /// The snapshot.
        id: SnapshotId,
        /// Its name.
        name: Option<SnapshotName>,
        /// Words of the user's own.
        description: Option<String>,
    },
    /// This is what the disks of a snapshot hold: XXH3-128 of what the guest sees, by virtual device.
    Contents {
        /// The snapshot.
        id: SnapshotId,
        /// The checksums.
        sums: BTreeMap<String, String>,
    },
    /// The domain is off, and goes on from this when it is started. What was measured on the way is filled in.
    KeepManaged {
        /// The saved state.
        image: Box<ManagedImage>,
    },
    /// The saved state is not gone on from any more.
    DropManaged {
        /// The saved state.
        id: SnapshotId,
    },
    /// Two images are about to become one.
    Merging {
        /// The merge.
        merge: Merge,
    },
    /// Two images have become one.
    Merged {
        /// The merge.
        merge: Merge,
    },
    /// A deletion stopped: images that it wrote to are known by their last writes again.
    Stopped,
    /// These images are gone.
    ForgetLayers {
        /// The images.
        images: Vec<Box<Path>>,
    },
    /// The deletion of these snapshots has begun.
    MarkDeleting {
        /// The snapshots, children before parents.
        ids: Vec<SnapshotId>,
        /// Images that hold other snapshots' states themselves and will be changed by it, which those states
        /// do not notice.
        #[serde(default)]
        changing: Vec<Box<Path>>,
    },
    /// These snapshots are gone.
    Remove {
        /// The snapshots, children before parents.
        ids: Vec<SnapshotId>,
        /// What could not be deleted yet.
        #[serde(default)]
        left_over: Vec<LeftOver>,
        /// What had been left over by earlier deletions and is gone now.
        #[serde(default)]
        tidied: Vec<LeftOver>,
        /// Images that hold other snapshots' states themselves and were changed by it.
        #[serde(default)]
        changed: Vec<Box<Path>>,
    },
    /// What became of a pull.
    Pull {
        /// That.
        of: PullChange,
    },
}

impl Step {
    /// Whether recovery need not know after a power cut that it had begun: it only looks, or what it changes ends with
    /// the host, or is seen for itself, or is done again whoever comes. A flush costs as much as all else that such a
    /// step does.
    pub fn needs_no_word(&self) -> bool {
        matches!(
            self,
            Self::Prove { .. }
                | Self::HoldMonitor { .. }
                | Self::ReleaseMonitor { .. }
                | Self::RequireAbsent { .. }
                | Self::RequireOff
                | Self::StampImages { .. }
                | Self::Commit {
                    change: StoreChange::KeepManaged { .. }
                }
                | Self::RemoveDirectory { .. }
                | Self::CollectPacks
                | Self::Announce
        )
    }

    /// Whether it is over before anybody could read in xenstore that it has begun.
    pub fn is_brief(&self) -> bool {
        matches!(
            self,
            Self::CreateDirectory { .. }
                | Self::Wake { .. }
                | Self::Pause { .. }
                | Self::HoldMonitor { .. }
                | Self::ReleaseMonitor { .. }
                | Self::RequireAbsent { .. }
                | Self::RequireOff
                | Self::StampImages { .. }
                | Self::Seal { .. }
                | Self::Start { .. }
                | Self::Commit { .. }
                | Self::RemoveDirectory { .. }
                | Self::CollectPacks
                | Self::Announce
        )
    }

    /// Whether nothing may go on before it is done: until then others could take the wrong image for the disk, or
    /// the guest stands still.
    pub fn must_be_finished(&self) -> bool {
        matches!(
            self,
            Self::LeaveLayers { .. }
                | Self::ReleaseMonitor { .. }
                | Self::Commit {
                    change: StoreChange::Merged { .. }
                }
        )
    }
}

impl Memory {
    /// What is lost with it when the domain is destroyed, as the end of a sentence on the domain.
    pub(crate) const fn loss(&self) -> Option<&'static str> {
        match self {
            Self::Kept { .. } => None,
            Self::Ended => Some("the domain, which had ended, is destroyed"),
            Self::GivenUp { .. } => Some("the domain, whose memory was given up, is destroyed"),
        }
    }
}
