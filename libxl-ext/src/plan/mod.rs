//! Plans: immutable data that says what an operation will do, step by step, before it does anything.
//!
//! The planners ([`create`], [`revert`], [`delete`], [`edit`]) are pure: an [`Inventory`] and a request go in, a
//! [`Plan`] or a refusal comes out. [`check`] proves of every plan that it cannot lose data, whichever
//! planner wrote it. How a step is taken back is a step too ([`Step::taken_back_by`]), so that an error
//! and a crash are undone by the same code.

mod chains;
mod check;
mod claims;
mod coalesce;
mod create;
mod delete;
mod disk_only;
mod disks;
mod edit;
mod managed_save;
mod pull;
mod render;
mod replicate;
mod revert;
mod step;
#[cfg(test)]
mod tests;
mod undo;
mod ways_back;
mod words;

pub use check::check;
pub(crate) use coalesce::apply_merge;
pub use create::{CreateRequest, create};
pub use delete::{DeleteRequest, DeleteScope, delete};
pub use disks::{DiskChoice, Take};
pub(crate) use edit::keep_contents;
pub use edit::{EditRequest, edit};
pub use managed_save::{ManagedSaveRequest, ManagedStartRequest};
pub(crate) use managed_save::{WAY_OUT, stale, usable};
pub use pull::{Increment, PullChange, PullRequest, PullStep};
pub(crate) use pull::{PullEnd, end as end_pull};
pub(crate) use replicate::replicable;
pub use revert::{RevertRequest, revert};
pub use step::{Extracted, Memory, Merge, Step, StoreChange, Switch};

use crate::error::Result;
use crate::model::domain::Keeper;
use crate::model::name::SnapshotId;
use crate::model::pull::Pull;
use crate::observe::{Asked, Inventory};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What an operation will do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Identity of the operation, by which the store knows whether it committed.
    pub id: Uuid,
    /// What the user asked for.
    pub operation: Operation,
    /// Name of the domain.
    pub domain: String,
    /// Name of the snapshot that the user named; empty where it is about none.
    pub snapshot: String,
    /// Who is to act on what the domain does if it is restored, also by whoever recovers.
    pub keeper: Keeper,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// What it will cost.
    pub cost: Cost,
    /// What the user should know beforehand.
    pub notes: Vec<String>,
}

/// The operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Take a snapshot.
    SnapshotCreate,
    /// Go back to a snapshot.
    SnapshotRevert,
    /// Remove snapshots.
    SnapshotDelete,
    /// Change what is said of a snapshot.
    SnapshotEdit,
    /// Save a domain, which is off then.
    ManagedSave,
    /// Let a saved domain go on.
    ManagedStart,
    /// Give up a saved state.
    ManagedSaveRemove,
    /// Copy what a disk lacks from the images below it.
    BlockPull,
}

impl Operation {
    /// The command's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SnapshotCreate => "snapshot-create",
            Self::SnapshotRevert => "snapshot-revert",
            Self::SnapshotDelete => "snapshot-delete",
            Self::SnapshotEdit => "snapshot-edit",
            Self::ManagedSave => "managed-save",
            Self::ManagedStart => "start",
            Self::ManagedSaveRemove => "managed-save-remove",
            Self::BlockPull => "block-pull",
        }
    }
}

/// What a user asks for.
#[derive(Clone, Debug)]
pub enum Request {
    /// Take a snapshot: memory and all writable disks at one instant. The guest goes on.
    Create(CreateRequest),
    /// Bring disks and memory back to a snapshot.
    Revert(RevertRequest),
    /// Remove a snapshot, the ones below it, or both.
    Delete(DeleteRequest),
    /// Change a snapshot's name or description.
    Edit(EditRequest),
    /// Save a domain, which is off then and goes on from there when it is started.
    ManagedSave(ManagedSaveRequest),
    /// Let a saved domain go on.
    ManagedStart(ManagedStartRequest),
    /// Give up a saved state.
    ManagedSaveRemove,
    /// Copy what a disk lacks from the images below it, or a part of that.
    Pull(PullRequest),
}

impl Request {
    /// Plans it.
    ///
    /// # Errors
    /// The refusals of the planner.
    pub fn plan(&self, inventory: &Inventory, fresh: &Fresh) -> Result<Plan> {
        match self {
            Self::Create(request) => create(inventory, request, fresh),
            Self::Revert(request) => revert(inventory, request, fresh),
            Self::Delete(request) => delete(inventory, request, fresh),
            Self::Edit(request) => edit(inventory, request, fresh),
            Self::ManagedSave(request) => managed_save::save(inventory, *request, fresh),
            Self::ManagedStart(request) => managed_save::start(inventory, *request, fresh),
            Self::ManagedSaveRemove => managed_save::remove(inventory, fresh),
            Self::Pull(request) => pull::pull(inventory, request, fresh),
        }
    }

    /// What has to be looked at for it.
    pub fn asked(&self) -> Asked<'_> {
        match self {
            Self::Create(request) => Asked {
                configuration: request.configuration.as_ref(),
                memory_file: request.memory_file.as_deref(),
                chains: false,
            },
            Self::Pull(request) => Asked {
                configuration: request.configuration.as_ref(),
                memory_file: None,
                chains: true,
            },
            Self::Revert(_)
            | Self::Delete(_)
            | Self::Edit(_)
            | Self::ManagedSave(_)
            | Self::ManagedStart(_)
            | Self::ManagedSaveRemove => Asked::default(),
        }
    }
}

/// Bytes that the memory image of a guest may take that has so many bytes of memory.
pub fn memory_image_bytes(memory_bytes: u64) -> u64 {
    // In the form that is the default.
    crate::memory::at_most(memory_bytes, true)
}

/// Space and data movement, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Guest memory that is written, at most, while the guest stands still.
    pub memory_written: u64,
    /// Memory images that are read.
    pub memory_read: u64,
    /// Content of disks that is copied from image to image, at most.
    #[serde(default)]
    pub disk_copied: u64,
    /// Room that has to be free below the store.
    pub room_needed: u64,
    /// Room that the last packed memory image of the domain took with its pack; none without one. What the next one takes
    /// depends on what the guest does.
    #[serde(default)]
    pub room_last: Option<u64>,
    /// Room that is free there.
    pub room_free: u64,
    /// Room that is given back in the end.
    pub room_released: u64,
}

/// What a planner may not make up itself: identities and the time.
#[derive(Clone, Copy, Debug)]
pub struct Fresh {
    /// For the operation.
    pub operation: Uuid,
    /// For the snapshot that is created: the user's, or the one that revert makes for its own safety.
    pub snapshot: SnapshotId,
    /// Seconds since the epoch.
    pub now: u64,
}

/// Seconds since 1970-01-01 00:00 UTC, by this host's clock.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

impl Fresh {
    /// New identities, and the time of this host's clock.
    pub fn now() -> Self {
        Self {
            operation: Uuid::new_v4(),
            snapshot: SnapshotId::random(),
            now: now(),
        }
    }
}

impl Plan {
    fn new(inventory: &Inventory, operation: Operation, fresh: &Fresh, snapshot: &str) -> Self {
        Self {
            id: fresh.operation,
            operation,
            domain: inventory.domain.clone(),
            snapshot: snapshot.to_owned(),
            keeper: Keeper::default(),
            steps: Vec::new(),
            cost: Cost {
                room_free: inventory.free_bytes,
                ..Cost::default()
            },
            notes: Vec::new(),
        }
    }

    /// The operation in words: which, of what, of which domain.
    pub fn title(&self) -> String {
        let title = self.title_within_domain();
        if self.snapshot.is_empty() {
            title
        } else {
            format!("{title}, domain '{}'", self.domain)
        }
    }

    /// The same where the domain is named anyway.
    pub fn title_within_domain(&self) -> String {
        let operation = self.operation.as_str();
        if self.snapshot.is_empty() {
            format!("{operation} of domain '{}'", self.domain)
        } else {
            format!("{operation} of '{}'", self.snapshot)
        }
    }

    /// The step after which the operation is completed and no longer undone: the first commit, or, where a saved
    /// domain goes on, the guest's first instruction. That one has to be begun only, since nobody can say afterwards
    /// whether the guest ran.
    pub fn point_of_no_return(&self) -> usize {
        let is_it = |step: &Step| match step {
            Step::Commit { .. } => true,
            Step::Start { .. } => self.is_final_once_started(),
            _ => false,
        };
        let found = self.steps.iter().position(is_it);
        found.unwrap_or(self.steps.len())
    }

    /// Whether the guest's first instruction, and no commit, is what cannot be taken back.
    pub fn is_final_once_started(&self) -> bool {
        self.operation == Operation::ManagedStart
    }

    /// The last step before which the operation can be taken back without a loss, if it is not carried
    /// out to its end.
    pub fn point_of_no_loss(&self) -> usize {
        let loses = |step: &Step| match step {
            Step::Destroy { memory, .. } => memory.loss().is_some(),
            _ => false,
        };
        let lossy = self.steps.iter().position(loses);
        lossy.map_or(self.point_of_no_return(), |at| {
            at.min(self.point_of_no_return())
        })
    }

    /// The snapshots that it deletes.
    pub fn deleted(&self) -> &[SnapshotId] {
        let marked = self.steps.iter().find_map(|step| match step {
            Step::Commit {
                change: StoreChange::MarkDeleting { ids, .. },
            } => Some(ids.as_slice()),
            _ => None,
        });
        marked.unwrap_or_default()
    }

    /// The pull that it begins, or goes on with.
    pub(crate) fn pulled(&self) -> Option<&Pull> {
        self.steps.iter().find_map(|step| match step {
            Step::Pull { step } => Some(step.pull()),
            _ => None,
        })
    }

    /// The pull for which it copies to the disk of a domain that is off.
    pub(crate) fn copied_off(&self) -> Option<&Pull> {
        self.steps.iter().find_map(|step| match step {
            Step::Pull {
                step: PullStep::CopyOff { pull, .. },
            } => Some(pull),
            _ => None,
        })
    }

    /// The steps that take back everything up to and including step `last`, newest first.
    pub fn undo_from(&self, last: usize) -> Vec<Step> {
        self.steps
            .iter()
            .take(last + 1)
            .rev()
            .flat_map(Step::taken_back_by)
            .collect()
    }
}
