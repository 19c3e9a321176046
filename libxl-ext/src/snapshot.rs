//! Snapshots of domains: the calls that the command line and the C library make.
//!
//! Each one that changes something goes the same way: lock, recover what an earlier process left,
//! observe, plan, check, execute.

mod contents;
mod managed;
mod pull;
mod replication;

pub use managed::{ManagedSave, RunningDomain};
pub use pull::{PullInfo, PullProgress};
pub use replication::{CheckpointMemory, ReplicationInfo, ReplicationRequest};

use crate::bundle::{self, Exported, ImportRequest, Imported};
use crate::check::{self, Findings};
use crate::diff::{self, Difference};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::exec::{self, Outcome, Recovered};
use crate::model::disk::{DeviceDisk, DiskKind};
use crate::model::domain::Keeper;
use crate::model::layer::{Backing, Layer};
use crate::model::name::{SnapshotId, SnapshotName};
use crate::model::record::{DomainRecord, SnapshotRecord};
use crate::observe::{self, Inventory, MemoryRoom, Naming, Target, observe, observe_for, resolve};
use crate::plan::{self, CreateRequest, Fresh, Plan, Request, RevertRequest};
use crate::port::Ports;
use crate::store::{DEFAULT_ROOT, DomainLock, LockWait, RecordFile, Store};
use crate::types::DomainSnapshot;
use crate::verify::{Finding, verify};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A Xen host and the store of its snapshots.
pub struct Host {
    ports: Ports,
    store: Store,
    keeper: Keeper,
    naming: Naming,
}

/// What was found of a domain, whose lock is held.
pub struct Inspection<'a> {
    host: &'a Host,
    target: Target,
    lock: DomainLock,
    found: Findings,
}

impl Inspection<'_> {
    /// What was found, and what would mend it.
    pub fn found(&self) -> &Findings {
        &self.found
    }

    /// Does what mends it, and returns what is found afterwards.
    ///
    /// # Errors
    /// That of the first repair that fails; doing it again goes on.
    pub fn repair(self, observer: &dyn Observer) -> Result<Findings> {
        check::perform(
            &self.found.repairs,
            &self.target.store,
            &self.lock,
            observer,
        )?;
        let ports = &self.host.ports;
        let survey = check::survey(ports, &self.target, observer)?;
        Ok(check::find(&survey))
    }
}

/// What an operation did.
#[derive(Debug)]
pub struct Done {
    /// The plan that was carried out.
    pub plan: Plan,
    /// The record afterwards.
    pub record: DomainRecord,
    /// What went wrong after the operation was completed, in what only tidies up.
    pub left_over: Option<Error>,
    /// How long the guest stood still for a snapshot, from when libxl saw it suspended until it could go on.
    pub pause: Option<Duration>,
}

impl Host {
    /// The host that we run on, with its snapshots below [`DEFAULT_ROOT`].
    ///
    /// # Errors
    /// If this is not domain 0 of a Xen host, or the caller is not root.
    pub fn connect() -> Result<Self> {
        Ok(Self::new(Ports::connect()?, Store::new(DEFAULT_ROOT)))
    }

    /// As [`Host::connect`], for a domain that is about to be started from what was saved: `xl` is started meanwhile. It
    /// waits until [`Host::execute`] needs it, and ends if nothing comes of that.
    ///
    /// # Errors
    /// As [`Host::connect`].
    pub fn connect_to_start() -> Result<Self> {
        let ports = Ports::connect_to_restore(Keeper::Xl)?;
        Ok(Self::new(ports, Store::new(DEFAULT_ROOT)))
    }

    /// A host with the given ports and store.
    pub fn new(ports: Ports, store: Store) -> Self {
        Self {
            ports,
            store,
            keeper: Keeper::Xl,
            naming: Naming::DomidOrName,
        }
    }

    /// For a toolstack: domains are named by name only, and the restored ones are its own to keep.
    #[must_use]
    pub fn for_toolstack(mut self) -> Self {
        self.keeper = Keeper::Caller;
        self.naming = Naming::Name;
        self
    }

    /// Keeps snapshots below another directory.
    #[must_use]
    pub fn with_store(mut self, root: impl Into<PathBuf>) -> Self {
        self.store = Store::new(root);
        self
    }

    /// Does what `request` asks for. (V6: `libxl_domain_snapshot_create`, `_revert`, `_delete`.)
    ///
    /// # Errors
    /// The refusals of the planner ([`plan::create`], [`plan::revert`], [`plan::delete`]). A failure while
    /// it is carried out leaves everything as it was; only a deletion that fails in the middle is finished
    /// by the next one, and a domain whose memory was given up ([`plan::RevertRequest::force`]) stays
    /// destroyed.
    pub fn execute(
        &self,
        domain: &str,
        request: &Request,
        observer: &dyn Observer,
    ) -> Result<Done> {
        if !matches!(request, Request::ManagedStart(_)) {
            return self.execute_now(domain, request, observer);
        }
        self.ports.restorer.make_ready(self.keeper);
        let done = self.execute_now(domain, request, observer);
        self.ports.restorer.stand_down();
        done
    }

    fn execute_now(
        &self,
        domain: &str,
        request: &Request,
        observer: &dyn Observer,
    ) -> Result<Done> {
        let (target, lock) = self.open(domain, request, observer)?;
        if matches!(request, Request::ManagedSaveRemove) {
            self.mend_record(&target, &lock, observer)?;
        }
        if matches!(request, Request::ManagedStart(_)) {
            self.require_startable(&target)?;
        }
        let plan = self.plan_for(&target, request)?;
        self.carry_out(&target, &lock, plan, observer)
    }

    /// What [`Host::execute`] would do.
    ///
    /// # Errors
    /// The refusals of the planner.
    pub fn plan(&self, domain: &str, request: &Request, observer: &dyn Observer) -> Result<Plan> {
        // The lock is held until all is planned.
        let (target, _lock) = self.open(domain, request, observer)?;
        self.plan_for(&target, request)
    }

    /// Reverts as [`Host::execute`] does, and keeps the present state as a snapshot: its memory too, unless the domain
    /// is off. Returns what both did, the snapshot first. No other operation comes between the two.
    ///
    /// # Errors
    /// As [`Host::execute`]. If the revert can be seen to be impossible, there is no snapshot; if it fails once that
    /// is taken, the snapshot stays, and the error says so.
    pub fn revert_keeping(
        &self,
        domain: &str,
        revert: &RevertRequest,
        keep: Option<SnapshotName>,
        observer: &dyn Observer,
    ) -> Result<(Done, Done)> {
        let revert = Request::Revert(revert.clone());
        let (target, lock) = self.open(domain, &revert, observer)?;
        self.plan_for(&target, &revert)?;
        let plan = self.plan_for(&target, &keeping(&target, keep))?;
        let kept = self.carry_out(&target, &lock, plan, observer)?;
        let reverted = target.look_again(&self.ports).and_then(|target| {
            let plan = self.plan_for(&target, &revert)?;
            self.carry_out(&target, &lock, plan, observer)
        });
        let reverted = reverted.map_err(|error| {
            error.while_doing(format!(
                "the state of domain '{}' before the revert is kept as snapshot '{}'",
                kept.plan.domain, kept.plan.snapshot
            ))
        })?;
        Ok((kept, reverted))
    }

    /// What [`Host::revert_keeping`] would do: the snapshot, and the revert as it would be without that.
    ///
    /// # Errors
    /// The refusals of the planner.
    pub fn plan_keeping(
        &self,
        domain: &str,
        revert: &RevertRequest,
        keep: Option<SnapshotName>,
        observer: &dyn Observer,
    ) -> Result<(Plan, Plan)> {
        let revert = Request::Revert(revert.clone());
        let (target, _lock) = self.open(domain, &revert, observer)?;
        let reverted = self.plan_for(&target, &revert)?;
        let kept = self.plan_for(&target, &keeping(&target, keep))?;
        Ok((kept, reverted))
    }

    /// The lock comes first: what is observed under it no other operation of ours can change.
    fn open(
        &self,
        domain: &str,
        request: &Request,
        observer: &dyn Observer,
    ) -> Result<(Target, DomainLock)> {
        let named = match request.asked().configuration {
            // It brings what is to be known of the domain.
            Some(_) => observe::named(&self.ports, &self.store, domain)?,
            None => resolve(&self.ports, &self.store, domain, self.naming)?,
        };
        self.take(named, observer)
    }

    /// Takes the lock of a domain and ends what an earlier process left unfinished.
    fn take(&self, named: Target, observer: &dyn Observer) -> Result<(Target, DomainLock)> {
        let lock = named.store.lock(LockWait::No)?;
        self.recover_locked(&named, &lock, observer)?;
        // Whoever held the lock before, and recovery too, may have given the domain another domid.
        let target = named.look_again(&self.ports)?;
        Self::void_what_was_saved(&target)?;
        Ok((target, lock))
    }

    /// The same, of a domain as it is observed then: what is being changed is not as it was.
    fn take_and_observe(
        &self,
        domain: &str,
        observer: &dyn Observer,
    ) -> Result<(Target, DomainLock, Inventory)> {
        let named = resolve(&self.ports, &self.store, domain, self.naming)?;
        let (target, lock) = self.take(named, observer)?;
        let inventory = observe(&self.ports, &target)?;
        Ok((target, lock, inventory))
    }

    /// Everything up to the first change, under the lock.
    fn plan_for(&self, target: &Target, request: &Request) -> Result<Plan> {
        let inventory = match request {
            // Whatever is the matter with the domain and its images is no reason to keep what was saved.
            Request::ManagedSaveRemove => observe::of_record(target, target.store.load()?),
            _ => observe_for(&self.ports, target, request.asked())?,
        };
        let mut plan = request.plan(&inventory, &Fresh::now())?;
        plan.keeper = self.keeper;
        plan::check(&plan, &inventory)?;
        Ok(plan)
    }

    fn carry_out(
        &self,
        target: &Target,
        lock: &DomainLock,
        plan: Plan,
        observer: &dyn Observer,
    ) -> Result<Done> {
        for note in &plan.notes {
            observer.note(note);
        }
        let Outcome { left_over, pause } =
            exec::run(&plan, &self.ports, &target.store, lock, observer)?;
        Ok(Done {
            record: target.store.load()?,
            plan,
            left_over,
            pause,
        })
    }

    /// All snapshots of a domain, running or not.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchDomain`], or what the store reports.
    pub fn snapshots(&self, domain: &str, observer: &dyn Observer) -> Result<DomainRecord> {
        let target = resolve(&self.ports, &self.store, domain, self.naming)?;
        self.recover(&target, observer)?;
        target.store.load()
    }

    /// The layers that the disks of a domain are that is about to be started, where its configuration names others
    /// of their images; `None` if it was saved, and is to go on from that ([`Request::ManagedStart`]). What an earlier
    /// command left is ended first, and no operation is in progress.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`]; [`ErrorKind::Stale`] for a disk of which an image below was changed by somebody else, or
    /// on which snapshots stand; what recovery, the store and the images report.
    pub fn layers_for_start(
        &self,
        domain: &str,
        disks: &[DeviceDisk],
        observer: &dyn Observer,
    ) -> Result<Option<Vec<Option<Layer>>>> {
        let named = resolve(&self.ports, &self.store, domain, Naming::Name)?;
        let lock = named.store.lock(LockWait::No)?;
        self.recover_locked(&named, &lock, observer)?;
        self.require_startable(&named)?;
        let record = named.store.load()?;
        if record.managed.is_some() {
            return Ok(None);
        }
        let found = disks.iter().map(|disk| {
            let layer = observe::active_layer_of(&record, disk)?;
            if let Some(layer) = layer {
                self.require_chain(&record, layer)?;
            }
            Ok(layer
                .filter(|layer| !observe::is_named_by(layer, disk))
                .cloned())
        });
        found.collect::<Result<_>>().map(Some)
    }

    fn require_chain(&self, record: &DomainRecord, disk: &Layer) -> Result<()> {
        let own = Backing::from(&disk.target());
        let chain = record.chain(&disk.image).into_iter();
        let below = chain.filter_map(|image| record.layer(image)?.backing.clone());
        let mut seen = BTreeMap::new();
        for Backing { image, format } in [own].into_iter().chain(below) {
            if let Some(facts) = self.ports.images.facts(&image, format)? {
                seen.insert(image, facts);
            }
        }
        record.require_chain(&disk.target(), |image| seen.get(image))
    }

    /// Looks whether snapshots are what they were: memory images by checksum, disks by what they are known by,
    /// layers by what they stand on. Without a `name` all of them, and the disks themselves. Nothing is
    /// changed, but that recovery goes first.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchSnapshot`], [`ErrorKind::Locked`], or what the store and the ports report. What is
    /// found is no error.
    pub fn verify(
        &self,
        domain: &str,
        name: Option<&str>,
        observer: &dyn Observer,
    ) -> Result<Vec<Finding>> {
        let (target, _lock, inventory) = self.take_and_observe(domain, observer)?;
        if let Some(name) = name {
            inventory.record.find(name)?;
        }
        Ok(verify(
            &self.ports,
            &inventory,
            &target.store,
            name,
            observer,
        ))
    }

    /// Looks whether the record says what is there, and what is there is recorded. Nothing is changed; with
    /// `recover`, what an earlier process left is ended first. The lock is held as long as the answer.
    ///
    /// # Errors
    /// [`ErrorKind::NewerVersion`], [`ErrorKind::Locked`], or what the ports report. What is found is no error.
    pub fn inspect(
        &self,
        domain: &str,
        recover: bool,
        observer: &dyn Observer,
    ) -> Result<Inspection<'_>> {
        let named = match resolve(&self.ports, &self.store, domain, self.naming) {
            // A domain whose record is gone may have everything else.
            Err(error) if error.kind() == ErrorKind::NoSuchDomain => {
                let store = self.store.domain(domain);
                if !store.directory().is_dir() {
                    return Err(error);
                }
                Target {
                    name: domain.to_owned(),
                    store,
                    view: None,
                }
            }
            named => named?,
        };
        let lock = named.store.lock(LockWait::No)?;
        // Recovery asks the record how far the operation got.
        let can_recover = !matches!(named.store.read()?, RecordFile::Damaged(_));
        if recover && can_recover {
            self.recover_locked(&named, &lock, observer)?;
        }
        let target = named.look_again(&self.ports)?;
        let survey = check::survey(&self.ports, &target, observer)?;
        Ok(Inspection {
            host: self,
            found: check::find(&survey),
            target,
            lock,
        })
    }

    /// Copies a snapshot's memory image to a new file that stock `xl restore` takes.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchSnapshot`], [`ErrorKind::Corrupt`], or what the file system says.
    pub fn export_memory(
        &self,
        domain: &str,
        name: &str,
        to: &Path,
        observer: &dyn Observer,
    ) -> Result<()> {
        let target = resolve(&self.ports, &self.store, domain, self.naming)?;
        self.recover(&target, observer)?;
        let record = target.store.load()?;
        let snapshot = record.find(name)?;
        let proof = snapshot.memory.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidRequest,
                format!("snapshot '{name}' holds no memory"),
            )
        })?;
        for disk in snapshot
            .disks
            .iter()
            .filter(|disk| disk.kind == DiskKind::External)
        {
            observer.note(&format!(
                "the file names {}, which the snapshot stands on: before a restore from it, let its \
                 configuration name a new image on top of that",
                disk.target
            ));
        }
        let kept = target.store.kept_memory(snapshot);
        kept.export(proof, to, observer)
    }

    /// What changed from one snapshot to another. All of both is read, and nothing changed.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchSnapshot`], [`ErrorKind::Locked`]; [`ErrorKind::Corrupt`] for a snapshot that is not what it
    /// was; what the ports report.
    pub fn diff(
        &self,
        domain: &str,
        [from, to]: [&str; 2],
        observer: &dyn Observer,
    ) -> Result<Difference> {
        let (target, _lock, inventory) = self.take_and_observe(domain, observer)?;
        let find = |name| inventory.record.find(name);
        diff::diff(
            &self.ports,
            &inventory,
            &target.store,
            [find(from)?, find(to)?],
            observer,
        )
    }

    /// Writes all snapshots of a domain that is not running, with their images, to one new file.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] while the domain is there, or anybody has its images open;
    /// [`ErrorKind::Corrupt`] for snapshots that are not what they were; [`ErrorKind::Unsupported`] for images that
    /// cannot be taken along; what the file system says. No file is left then.
    pub fn export(&self, domain: &str, to: &Path, observer: &dyn Observer) -> Result<Exported> {
        let (target, _lock, inventory) = self.take_and_observe(domain, observer)?;
        bundle::export(&self.ports, &inventory, &target.store, to, observer)
    }

    /// Makes of such a file the snapshots of a domain that there is not yet.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] and [`ErrorKind::NewerVersion`] for a file that cannot be believed,
    /// [`ErrorKind::InvalidRequest`] for a name that is taken; what the file system says. Nothing is left then.
    pub fn import(
        &self,
        from: &Path,
        request: &ImportRequest,
        observer: &dyn Observer,
    ) -> Result<Imported> {
        bundle::import(&self.ports, &self.store, from, request, observer)
    }

    /// The room that each memory image of a domain takes.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the store cannot be listed.
    pub fn memory_rooms(&self, record: &DomainRecord) -> Result<BTreeMap<SnapshotId, MemoryRoom>> {
        observe::memory_rooms(&self.store.domain(&record.domain), record)
    }

    /// V6's view of a snapshot, with the memory image's path filled in; in which form it is there, `memory` of the
    /// record says.
    pub fn domain_snapshot(&self, domain: &str, record: &SnapshotRecord) -> DomainSnapshot {
        let mut snapshot = record.snapshot.clone();
        if record.memory.is_some() {
            let path = self.store.domain(domain).memory_of(record);
            snapshot.memory_file = Some(path.to_string_lossy().into_owned());
        }
        snapshot
    }

    /// Ends what an earlier process left unfinished. An operation that is in progress is left alone.
    fn recover(&self, target: &Target, observer: &dyn Observer) -> Result<()> {
        if !target.store.has_journal() {
            return Ok(());
        }
        let lock: DomainLock = match target.store.lock(LockWait::No) {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::Locked => {
                observer.note(&error.report());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.recover_locked(target, &lock, observer).map(drop)
    }

    /// The same under its lock. Returns the pulls that could not be settled.
    fn recover_locked(
        &self,
        target: &Target,
        lock: &DomainLock,
        observer: &dyn Observer,
    ) -> Result<pull::Unsettled> {
        match exec::recover(&self.ports, &target.store, lock, observer)? {
            Recovered::Nothing => {}
            Recovered::Finished(what) => {
                observer.note(&format!("{what}, which had been interrupted, was finished"));
            }
            Recovered::TakenBack(what) => {
                observer.note(&format!(
                    "{what}, which had been interrupted, was taken back"
                ));
            }
        }
        self.let_go_on(target, observer)?;
        Ok(self.settle_pulls(target, lock, observer))
    }
}

/// The request that keeps the present state of a domain.
fn keeping(target: &Target, name: Option<SnapshotName>) -> Request {
    Request::Create(CreateRequest {
        name,
        disk_only: target.view.is_none(),
        ..CreateRequest::default()
    })
}
