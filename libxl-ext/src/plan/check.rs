//! What every plan must satisfy, whichever planner wrote it. A plan that breaks a rule is a bug of the
//! planner and is refused before anything is touched.

mod commit;
mod deletion;

use super::chains::Chains;
use super::{Memory, Operation, Plan, PullStep, Step};
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::{DiskKind, DiskTarget};
use crate::model::domain::DomainState;
use crate::model::layer::{Into, Layer};
use crate::model::name::SnapshotId;
use crate::observe::Inventory;
use deletion::{Remains, bound_images};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Proves that `plan` loses nothing that `inventory` knows of.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] naming the rule that is broken and the step that breaks it.
pub fn check(plan: &Plan, inventory: &Inventory) -> Result<()> {
    let live = inventory.live.as_ref();
    let mut state = Checker {
        inventory,
        referred: inventory
            .record
            .snapshots
            .iter()
            .map(|snapshot| snapshot.id)
            .collect(),
        bound: inventory
            .record
            .snapshots
            .iter()
            .flat_map(bound_images)
            .collect(),
        applied: BTreeSet::new(),
        chains: Chains::of(&inventory.record),
        open: live
            .into_iter()
            .flat_map(|live| &live.disks)
            .filter(|disk| disk.is_writable())
            .filter_map(|disk| disk.pdev_path.as_deref().map(Path::new))
            .collect(),
        domain: if live.is_some() {
            Domain::Present
        } else {
            Domain::Absent
        },
        is_off: false,
        saved: BTreeSet::new(),
        sealed: BTreeSet::new(),
        covered: BTreeSet::new(),
        proven: BTreeSet::new(),
        marked: BTreeMap::new(),
        managed: inventory.record.managed.as_ref().map(|it| it.id),
        dropped: BTreeSet::new(),
        stamped: BTreeSet::new(),
        monitor_held: false,
        committed: false,
        operation: plan.operation,
    };
    for (at, step) in plan.steps.iter().enumerate() {
        state.step(step).map_err(|rule| {
            Error::new(
                ErrorKind::InvalidRequest,
                format!("the plan is unsound: step {} ({step}) {rule}", at + 1),
            )
            .hint("this is a bug of libxl-ext; nothing was changed")
        })?;
    }
    let ends_well = if state.domain == Domain::Suspended {
        Err("the domain would be left suspended")
    } else if state.monitor_held {
        Err("xl's monitor would be left stopped")
    } else if state.domain == Domain::Restored {
        Err("nobody says how the restored domain goes on")
    } else if !state.marked.is_empty() {
        Err("a deletion would be left unfinished")
    } else if let Err(rule) = state.chains.require_settled() {
        Err(rule)
    } else if !state.committed && !plan.steps.is_empty() {
        Err("nothing would be recorded")
    } else {
        Ok(())
    };
    ends_well.map_err(|rule| {
        Error::new(
            ErrorKind::InvalidRequest,
            format!("the plan is unsound: {rule}"),
        )
    })
}

/// Where the domain is after the steps so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Domain {
    /// It was not there to begin with.
    Absent,
    /// It is as it was found.
    Present,
    /// It waits to go on.
    Suspended,
    /// We ended it.
    Destroyed,
    /// Another one is in its place, and has not run.
    Restored,
    /// The other one goes on.
    Started,
}

impl Domain {
    /// No QEMU has its images open.
    fn is_gone(self) -> bool {
        matches!(self, Self::Absent | Self::Destroyed)
    }
}

/// What is true after the steps so far.
struct Checker<'a> {
    inventory: &'a Inventory,
    /// Snapshots that the record will still refer to.
    referred: BTreeSet<SnapshotId>,
    /// The images that belong to a snapshot's memory, and those that were set to it.
    bound: BTreeSet<(SnapshotId, Box<Path>)>,
    applied: BTreeSet<(SnapshotId, Box<Path>)>,
    /// The layers, and what becomes of them.
    chains: Chains,
    /// Images that the domain that was found may write to.
    open: BTreeSet<&'a Path>,
    domain: Domain,
    /// Whether nobody is about to start one in its place.
    is_off: bool,
    saved: BTreeSet<SnapshotId>,
    /// What is durable of them: the memory, or the disks of a domain that is off.
    sealed: BTreeSet<SnapshotId>,
    /// Content that is kept: this snapshot holds this image.
    covered: BTreeSet<(SnapshotId, Box<Path>)>,
    proven: BTreeSet<SnapshotId>,
    /// Snapshots whose deletion has begun, with what is still there of them.
    marked: BTreeMap<SnapshotId, Remains>,
    /// The saved state that the record will say that the domain goes on from.
    managed: Option<SnapshotId>,
    /// Those that it does not go on from any more.
    dropped: BTreeSet<SnapshotId>,
    /// Images of which it is known when they were last written to, by a domain that is gone.
    stamped: BTreeSet<Box<Path>>,
    monitor_held: bool,
    committed: bool,
    operation: Operation,
}

impl Checker<'_> {
    fn step(&mut self, step: &Step) -> Result<(), &'static str> {
        match step {
            Step::Prove { id, .. } => {
                self.proven.insert(*id);
            }
            Step::SaveMemory { id, .. } => {
                require(
                    self.domain == Domain::Present,
                    "saves a domain that is gone",
                )?;
                require(
                    !self.referred.contains(id),
                    "overwrites a snapshot's memory",
                )?;
                self.domain = Domain::Suspended;
                self.saved.insert(*id);
            }
            Step::RequireAbsent { images } => self.chains.require_absent(images),
            Step::CreateLayers { layers } => {
                layers.iter().try_for_each(|layer| self.make(layer, None))?;
            }
            Step::ExtractLayers { id, layers } => {
                require(
                    self.proven.contains(id),
                    "copies a snapshot that was not proven whole",
                )?;
                layers
                    .iter()
                    .try_for_each(|made| self.make(&made.layer, Some(&*made.from.image)))?;
            }
            Step::PointDisks { switches, .. } => self.chains.point(switches),
            Step::MergeLayer { merge } => {
                require(
                    self.committed,
                    "merges images before the point of no return",
                )?;
                self.chains.merge(merge)?;
                let is_disk =
                    |image: &Path| self.open.contains(image) && !self.chains.was_left_for(image);
                // One whose merge was begun may have been left already.
                let begun = merge.layer.merging == Some(Into::Below);
                let below = merge.layer.backing.as_ref();
                require(
                    begun || !below.is_some_and(|below| is_disk(&below.image)),
                    "merges into or out of an image that the domain writes to itself",
                )?;
            }
            Step::LeaveLayers { layers, .. } => self.chains.leave(layers)?,
            Step::RemoveLayers { layers } => {
                require(
                    self.committed,
                    "removes images before the point of no return",
                )?;
                for layer in layers {
                    require(
                        !matches!(self.domain, Domain::Present | Domain::Suspended)
                            || !self.open.contains(&*layer.image)
                            || self.chains.has_departed(&layer.image),
                        "removes an image that the domain has open",
                    )?;
                    self.chains.remove(&layer.image)?;
                }
            }
            Step::SnapshotDisks {
                id, disks, layers, ..
            } => {
                require(
                    !self.domain.is_gone(),
                    "asks the QEMU of a domain that is gone",
                )?;
                require(
                    self.domain == Domain::Suspended || self.has_ended(),
                    "snapshots disks that the guest goes on writing to",
                )?;
                require(
                    self.first_of(*id),
                    "splits one snapshot over two transactions",
                )?;
                self.cover(*id, disks);
                self.chains.go_on_in(layers)?;
            }
            Step::SnapshotImages { id, disks } => {
                require(
                    self.domain.is_gone()
                        || disks.iter().all(|disk| !self.open.contains(&*disk.image)),
                    "changes images under a domain that has them open",
                )?;
                if self.domain.is_gone() {
                    self.require_off()?;
                }
                self.cover(*id, disks);
            }
            Step::StampImages { disks } => {
                require(
                    self.domain.is_gone(),
                    "takes images for settled under a domain that has them open",
                )?;
                self.stamped
                    .extend(disks.iter().map(|disk| disk.image.clone()));
            }
            Step::SettleImages { id, layers, .. } => {
                require(
                    self.domain.is_gone(),
                    "takes images for settled under a domain that has them open",
                )?;
                self.chains.set_aside(layers)?;
                self.is_off = true;
                self.sealed.insert(*id);
            }
            Step::RequireOff => {
                require(
                    self.domain.is_gone(),
                    "takes a domain for off that is there",
                )?;
                self.is_off = true;
            }
            Step::Resume { .. } => {
                self.chains.require_pointed()?;
                self.domain = Domain::Present;
            }
            Step::Seal { id, .. } => {
                require(self.saved.contains(id), "seals memory that was not saved")?;
                self.sealed.insert(*id);
            }
            Step::Destroy { memory, .. } => {
                require(
                    !self.proven.is_empty() || self.operation == Operation::ManagedSave,
                    "destroys before a snapshot was proven whole",
                )?;
                let (holds, otherwise) = match memory {
                    Memory::Kept { id, .. } => (
                        self.sealed.contains(id),
                        "destroys before the present memory is durable",
                    ),
                    Memory::Ended => (
                        self.has_ended(),
                        "destroys a guest that could go on, and keeps no memory of it",
                    ),
                    Memory::GivenUp { .. } => {
                        (self.saved.is_empty(), "gives up a memory that was saved")
                    }
                };
                require(holds, otherwise)?;
                // A monitor that was held over the suspend finds nothing to act on.
                self.is_off = matches!(memory, Memory::Kept { .. });
                self.domain = Domain::Destroyed;
            }
            Step::ApplyImages {
                id,
                instead_of,
                disks,
            } => {
                require(
                    self.domain.is_gone(),
                    "changes images under a domain that has them open",
                )?;
                self.require_off()?;
                require(
                    self.proven.contains(id),
                    "applies a snapshot that was not proven whole",
                )?;
                require(
                    disks
                        .iter()
                        .all(|disk| !self.inventory.record.is_frozen(&disk.image)),
                    "changes an image that others stand on",
                )?;
                require(
                    disks
                        .iter()
                        .all(|disk| self.covered.contains(&(*instead_of, disk.image.clone()))),
                    "overwrites disk content that no snapshot keeps",
                )?;
                self.applied
                    .extend(disks.iter().map(|disk| (*id, disk.image.clone())));
            }
            Step::Restore { id, switches, .. } => {
                require(
                    self.domain.is_gone(),
                    "restores beside a domain that is there",
                )?;
                self.require_off()?;
                require(
                    self.proven.contains(id),
                    "restores a snapshot that was not proven whole",
                )?;
                let record = self.inventory.record.get(*id);
                let mut disks = record.into_iter().flat_map(|record| &record.disks);
                require(
                    disks.all(|proof| {
                        let image = &proof.target.image;
                        match proof.kind {
                            DiskKind::Internal if self.applied.contains(&(*id, image.clone())) => {
                                true
                            }
                            _ => self.chains.made_of(switches, proof),
                        }
                    }),
                    "restores memory onto disks of another instant",
                )?;
                self.domain = Domain::Restored;
            }
            Step::Start { .. } => {
                require(
                    self.committed || self.operation == Operation::ManagedStart,
                    "lets a guest run that may still be taken back",
                )?;
                require(
                    self.domain == Domain::Restored,
                    "lets a guest run that was not restored",
                )?;
                self.domain = Domain::Started;
            }
            Step::Commit { change } => self.commit(change)?,
            Step::DeleteTags { id, disks } => {
                self.may_delete(*id)?;
                if let Some(remains) = self.marked.get_mut(id) {
                    for disk in disks {
                        remains.images.remove(&disk.image);
                    }
                }
            }
            Step::RemoveDirectory { id } if self.dropped.contains(id) => {}
            Step::RemoveDirectory { id } => {
                require(
                    self.managed != Some(*id),
                    "deletes what the domain is to go on from",
                )?;
                self.may_delete(*id)?;
                if let Some(remains) = self.marked.get_mut(id) {
                    remains.directory = false;
                }
            }
            Step::RemoveMemory { id, .. } => {
                self.may_delete(*id)?;
                if let Some(remains) = self.marked.get_mut(id) {
                    remains.memory_file = false;
                }
            }
            Step::SettleMemory { id, .. } => {
                require(
                    self.committed && self.referred.contains(id),
                    "gives up the way to take a memory image back",
                )?;
            }
            Step::BringBack { .. }
            | Step::WithdrawMemory { .. }
            | Step::DiscardPack { .. }
            | Step::DestroyRest { .. }
            | Step::DestroyRestored { .. }
            | Step::Pause { .. } => {
                return Err("belongs to an undo");
            }
            Step::HoldMonitor { .. } => {
                require(!self.monitor_held, "stops a monitor that is stopped")?;
                self.monitor_held = true;
            }
            Step::ReleaseMonitor { .. } => {
                require(
                    self.domain != Domain::Suspended,
                    "lets the monitor see the suspend",
                )?;
                self.chains.require_pointed()?;
                self.monitor_held = false;
            }
            Step::CollectPacks => {
                require(self.committed, "deletes before the point of no return")?;
            }
            Step::Pull { step } => {
                if matches!(step, PullStep::CopyOff { .. }) {
                    require(
                        self.domain.is_gone(),
                        "copies into an image that a domain has open",
                    )?;
                    self.require_off()?;
                    require(
                        self.managed.is_none(),
                        "changes the disks of a saved domain",
                    )?;
                }
                self.chains.pull(step)?;
            }
            Step::CreateDirectory { .. } | Step::Wake { .. } | Step::Announce => {}
        }
        Ok(())
    }

    fn require_off(&self) -> Result<(), &'static str> {
        require(
            self.is_off,
            "changes the disks of a domain that somebody may be about to start",
        )
    }

    /// The domain that was found could not go on.
    fn has_ended(&self) -> bool {
        let state = self.inventory.live.as_ref().map(|live| live.state);
        matches!(state, Some(DomainState::Crashed | DomainState::Shutdown))
    }

    fn make(&mut self, layer: &Layer, from: Option<&Path>) -> Result<(), &'static str> {
        require(
            !self.inventory.images.contains_key(&*layer.image),
            "overwrites an image that is there",
        )?;
        self.chains.make(layer, from)
    }

    fn first_of(&self, id: SnapshotId) -> bool {
        self.covered.iter().all(|(covered, _)| *covered != id)
    }

    fn cover(&mut self, id: SnapshotId, disks: &[DiskTarget]) {
        self.covered
            .extend(disks.iter().map(|disk| (id, disk.image.clone())));
    }
}

pub(super) fn require(holds: bool, otherwise: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(otherwise) }
}
