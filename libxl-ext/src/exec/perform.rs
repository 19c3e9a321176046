//! What each step does. Every step looks first, so that doing it again changes nothing.

use super::fault::{self, Stage, Way};
use super::journal::Journal;
use super::pull::Pulled;
use super::suspension::Suspension;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::memory::packed;
use crate::memory::{self, Form, Kept, own_file};
use crate::model::disk::Stamp;
use crate::model::domain::{DomainLife, DomainState};
use crate::model::name::SnapshotId;
use crate::model::record::{DiskProof, MemoryProof, SnapshotRecord};
use crate::plan::{Operation, Plan, Step, WAY_OUT};
use crate::port::{DomainView, Ports};
use crate::store::DomainStore;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// What was learned on the way and belongs into the record.
#[derive(Default)]
pub(super) struct Measured {
    pub(super) memory: Option<MemoryProof>,
    still_since: Option<Instant>,
    /// How long the guest stood still.
    pub(super) pause: Option<Duration>,
    pub(super) stamps: BTreeMap<Box<Path>, Stamp>,
    /// How far a pull is.
    pub(super) pulled: Option<Pulled>,
}

/// Everything that a step needs.
pub(super) struct Performer<'a> {
    pub(super) ports: &'a Ports,
    pub(super) store: &'a DomainStore,
    pub(super) observer: &'a dyn Observer,
    pub(super) plan: &'a Plan,
    /// Whether the guest may still be about to suspend, because it was asked to and nobody waited for
    /// it: we were killed, or libxl lost patience.
    pub(super) may_still_suspend: bool,
    /// When the process whose operation is being ended wrote last to the journal, if that was killed.
    pub(super) killed_at: Option<SystemTime>,
    /// Whether xenstore may say how far the operation is.
    pub(super) is_announced: Cell<bool>,
    /// Whether the images were found as they were left: what is written to them from then on is ours.
    pub(super) images_are_ours: Cell<bool>,
    /// Whether we may have written to images while an operation that was killed was ended.
    pub(super) has_written: Cell<bool>,
}

impl Performer<'_> {
    /// Does one step.
    pub(super) fn perform(&self, step: &Step, measured: &mut Measured) -> Result<()> {
        tracing::info!("domain '{}': {step}", self.plan.domain);
        self.observer.step(&step.to_string());
        match step {
            Step::Prove { id, disks } => self.prove(*id, disks),
            Step::CreateDirectory { id } => self.store.create_snapshot_directory(*id),
            Step::Wake { life } => self.wake(*life),
            Step::Pause { life } => self.pause(*life),
            Step::SaveMemory {
                life,
                id,
                estimate,
                live,
                file,
                packed,
                ..
            } => {
                let path = match file {
                    Some(file) => {
                        own_file::require_new(file)?;
                        own_file::partial(file, *id)
                    }
                    None => self.store.partial_memory_path(*id),
                };
                let packs = self.store.packs_directory();
                let form = if *packed {
                    let packs = &packs;
                    Form::Packed { packs, id: *id }
                } else {
                    Form::Stock
                };
                let (toolstack, target) = (&*self.ports.toolstack, (&*path, form));
                self.still_there(*life)?;
                self.suspension(*life).wait_for_disks(self.observer)?;
                let (domid, observer) = (life.domid, self.observer);
                let (proof, still_since) =
                    memory::write_image(toolstack, domid, target, *estimate, *live, observer)?;
                measured.memory = Some(proof);
                measured.still_since = still_since;
                Ok(())
            }
            Step::RequireAbsent { images } => images
                .iter()
                .try_for_each(|image| self.ports.images.require_absent(image)),
            Step::CreateLayers { layers } => self.create_layers(layers),
            Step::ExtractLayers { id, layers } => self.extract_layers(*id, layers),
            Step::SnapshotDisks {
                life,
                id,
                disks,
                layers,
            } => self.snapshot_disks(*life, *id, disks, layers, measured),
            Step::PointDisks { life, switches } => self.point_disks(*life, switches),
            Step::LeaveLayers { life, layers, wake } => self.leave_layers(*life, layers, *wake),
            Step::MergeLayer { merge } => self.merge_layer(merge),
            Step::RemoveLayers { layers } => self.remove_layers(layers),
            Step::SnapshotImages { id, disks } => disks
                .iter()
                .try_for_each(|disk| self.ports.images.create_snapshot(disk, &id.tag())),
            Step::SettleImages { id, disks, layers } => {
                self.settle_images(*id, disks, layers, measured)
            }
            Step::StampImages { disks } => self.stamp_images(disks, measured),
            Step::RequireOff => self.require_off(),
            Step::Resume { life, guest } => {
                let may_still = self.may_still_suspend;
                self.suspension(*life).resume(*guest, may_still)?;
                measured.pause = measured.still_since.map(|since| since.elapsed());
                Ok(())
            }
            Step::Seal { id, file } => match file {
                Some(file) => own_file::seal(file, *id),
                None => self.store.seal_memory(*id),
            },
            Step::SettleMemory { id, file } => own_file::settle(file, *id),
            Step::WithdrawMemory { id, file } => own_file::withdraw(file, *id),
            Step::RemoveMemory { id, file } => self.remove_memory(*id, file),
            Step::Destroy { life, .. } => self.destroy(*life),
            Step::ApplyImages { id, disks, .. } => self.apply_images(*id, disks),
            Step::Restore { id, uuid, switches } => self
                .restore(*id, *uuid, switches)
                .map_err(|error| self.of_image(error)),
            Step::BringBack {
                id,
                life,
                has_qemu,
                disks,
                others,
            } => {
                if self.is_intact(*life, *has_qemu)? {
                    return Ok(());
                }
                self.bring_back(*id, *life, disks, others)
            }
            Step::DestroyRest { life, has_qemu } => self.destroy_rest(*life, *has_qemu),
            Step::HoldMonitor { process } => self.ports.monitors.hold(*process),
            Step::ReleaseMonitor { process } => self.ports.monitors.release(*process),
            Step::DestroyRestored { uuid } => self.destroy_restored(*uuid),
            Step::Start { uuid, guest } => self.start(*uuid, *guest),
            Step::Commit { change } => self.commit(change, measured),
            Step::DeleteTags { id, disks } => self.delete_tags(*id, disks),
            Step::RemoveDirectory { id } => self.store.remove_snapshot_directory(*id),
            Step::DiscardPack { id } => packed::discard(&self.store.packs_directory(), *id),
            Step::CollectPacks => self.collect_packs(),
            Step::Announce => self.announce(),
            Step::Pull { step } => self.pull(step, measured),
        }
    }

    /// Takes back the steps up to and including `last`, of which the first `skip` undo steps were done
    /// by an earlier process.
    pub(super) fn take_back(&self, journal: &mut Journal, last: usize, skip: usize) -> Result<()> {
        // An undo is worth more than its journal: without room for entries it goes on regardless.
        if skip == 0 {
            let _ = journal.undoing(last);
        }
        for (at, step) in self.plan.undo_from(last).iter().enumerate().skip(skip) {
            fault::at_step(Way::Undo, at, step, Stage::Next);
            self.perform(step, &mut Measured::default())?;
            fault::at_step(Way::Undo, at, step, Stage::Performed);
            journal.moves_on(self.has_written.get());
            let _ = journal.undone(at + 1);
            fault::at_step(Way::Undo, at, step, Stage::Done);
        }
        Ok(())
    }

    /// Whether the store shows that the operation got past its point of no return.
    pub(super) fn committed(&self) -> Result<bool> {
        Ok(self.store.load()?.last_operation == Some(self.plan.id))
    }

    /// Tells other tools how far the operation is. Failures to do so are of no consequence.
    pub(super) fn post_progress(&self, done: usize) {
        let kind = self.plan.operation.as_str();
        let value = format!("{kind} {done} {} running", self.plan.steps.len());
        self.on_board("post", |domid| {
            self.is_announced.set(true);
            self.ports.board.post(domid, "job", &value)
        });
    }

    /// The operation has ended.
    pub(super) fn withdraw_progress(&self) {
        if self.is_announced.take() {
            self.on_board("withdraw", |domid| self.ports.board.withdraw(domid, "job"));
        }
    }

    fn on_board(&self, what: &str, act: impl FnOnce(u32) -> Result<()>) {
        let result = self.find_by_name().and_then(|view| match view {
            Some(view) => act(view.life.domid),
            None => Ok(()),
        });
        if let Err(error) = result {
            tracing::warn!("{what} in xenstore: {}", error.report());
        }
    }

    fn prove(&self, id: SnapshotId, disks: &[DiskProof]) -> Result<()> {
        let record = self.store.load()?;
        let missing =
            |of: &str| Error::new(ErrorKind::Corrupt, format!("{of} has no memory image"));
        match &record.managed {
            Some(managed) if managed.id == id => {
                let proof = managed.memory.as_ref();
                let proof = proof.ok_or_else(|| missing("what was saved"))?;
                let kept = self.store.kept_in_store(id);
                kept.recognise(proof, self.observer)
                    .map_err(|error| self.of_image(error))?;
            }
            _ => {
                let snapshot = self.recorded(id)?;
                match &snapshot.memory {
                    Some(proof) => {
                        let kept = self.store.kept_memory(&snapshot);
                        kept.prove(proof, self.observer)?;
                    }
                    None if snapshot.is_disk_only() => {}
                    None => return Err(missing(&format!("snapshot '{}'", snapshot.name()))),
                }
            }
        }
        disks
            .iter()
            .try_for_each(|proof| self.prove_disk(id, proof))
    }

    /// What can be done if the image of a saved domain is damaged.
    fn of_image(&self, error: Error) -> Error {
        if self.plan.operation != Operation::ManagedStart || error.kind() != ErrorKind::Corrupt {
            return error;
        }
        error
            .while_doing("the domain cannot go on from what was saved")
            .hint(WAY_OUT)
    }

    pub(super) fn recorded(&self, id: SnapshotId) -> Result<SnapshotRecord> {
        self.store.load()?.get(id).cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::Stale,
                format!("snapshot {id} is no longer recorded"),
            )
        })
    }

    /// Where a memory image is, be it one that is not recorded.
    pub(super) fn memory_image(&self, id: SnapshotId) -> Result<Kept> {
        let record = self.store.load()?;
        Ok(match record.get(id) {
            Some(snapshot) => self.store.kept_memory(snapshot),
            None => self.store.kept_in_store(id),
        })
    }

    /// Removes the packs that nothing needs. If that cannot be known, they stay.
    fn collect_packs(&self) -> Result<()> {
        let (images, packs) = (self.store.packed_images()?, self.store.packs_directory());
        if let Some(left) = packed::collect(&images, &packs)? {
            self.observer.note(&left);
        }
        Ok(())
    }

    /// A file of the user's own that is not what was written to it is not removed.
    fn remove_memory(&self, id: SnapshotId, file: &Path) -> Result<()> {
        let record = self.store.load()?;
        let Some(proof) = record.get(id).and_then(|snapshot| snapshot.memory.as_ref()) else {
            return Ok(());
        };
        if let Some(why) = own_file::remove_proven(file, proof, self.observer)? {
            let left = format!("{} is left where it is: {why}", file.display());
            tracing::warn!("{left}");
            self.observer.note(&left);
        }
        Ok(())
    }

    fn still_there(&self, life: DomainLife) -> Result<DomainView> {
        self.look(life)?.ok_or_else(|| {
            Error::new(
                ErrorKind::Stale,
                format!("domain {} is no longer there", life.domid),
            )
        })
    }

    /// The domain, if this life of it has not ended.
    pub(super) fn look(&self, life: DomainLife) -> Result<Option<DomainView>> {
        self.suspension(life).look()
    }

    fn suspension(&self, life: DomainLife) -> Suspension<'_> {
        Suspension {
            ports: self.ports,
            life,
        }
    }

    pub(super) fn wake(&self, life: DomainLife) -> Result<()> {
        self.suspension(life).wake()
    }

    fn pause(&self, life: DomainLife) -> Result<()> {
        match self.look(life)?.map(|view| view.state) {
            Some(DomainState::Running) => self.ports.toolstack.pause(life.domid),
            _ => Ok(()),
        }
    }

    fn announce(&self) -> Result<()> {
        let record = self.store.load()?;
        let name = record
            .current
            .and_then(|id| record.get(id))
            .map(|current| current.name().to_owned());
        self.on_board("announce", |domid| match &name {
            Some(name) => self.ports.board.post(domid, "current-snapshot", name),
            None => self.ports.board.withdraw(domid, "current-snapshot"),
        });
        Ok(())
    }

    pub(super) fn find_by_name(&self) -> Result<Option<DomainView>> {
        match self.ports.toolstack.domid_of(&self.plan.domain)? {
            Some(domid) => self.ports.hypervisor.look(domid),
            None => Ok(None),
        }
    }
}
