//! Snapshots of domains: the calls that the command line and the C library make.
//!
//! Each one that changes something goes the same way: lock, recover what an earlier process left,
//! observe, plan, check, execute.

use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::exec::{self, Outcome, Recovered};
use crate::memory;
use crate::model::disk::DiskKind;
use crate::model::domain::Keeper;
use crate::model::record::{DomainRecord, SnapshotRecord};
use crate::observe::{Naming, Target, observe, resolve};
use crate::plan::{self, Fresh, Plan, Request};
use crate::port::Ports;
use crate::store::{DEFAULT_ROOT, DomainLock, LockWait, Store};
use crate::types::DomainSnapshot;
use crate::verify::{Finding, verify};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A Xen host and the store of its snapshots.
pub struct Host {
    ports: Ports,
    store: Store,
    keeper: Keeper,
    naming: Naming,
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
        let (target, lock, plan) = self.prepare(domain, request, observer)?;
        for note in &plan.notes {
            observer.note(note);
        }
        let Outcome { left_over, pause } =
            exec::run(&plan, &self.ports, &target.store, &lock, observer)?;
        Ok(Done {
            record: target.store.load()?,
            plan,
            left_over,
            pause,
        })
    }

    /// What [`Host::execute`] would do.
    ///
    /// # Errors
    /// The refusals of the planner.
    pub fn plan(&self, domain: &str, request: &Request, observer: &dyn Observer) -> Result<Plan> {
        self.prepare(domain, request, observer)
            .map(|(_, _, plan)| plan)
    }

    /// Everything up to the first change. The lock comes first: what is observed under it no other
    /// operation of ours can change.
    fn prepare(
        &self,
        domain: &str,
        request: &Request,
        observer: &dyn Observer,
    ) -> Result<(Target, DomainLock, Plan)> {
        let named = resolve(&self.ports, &self.store, domain, self.naming)?;
        let lock = named.store.lock(LockWait::No)?;
        self.recover_locked(&named, &lock, observer)?;
        // Whoever held the lock before, and recovery too, may have given the domain another domid.
        let target = named.look_again(&self.ports)?;
        let inventory = observe(&self.ports, &target)?;
        let mut plan = request.plan(&inventory, &Fresh::now())?;
        plan.keeper = self.keeper;
        plan::check(&plan, &inventory)?;
        Ok((target, lock, plan))
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

    /// The record of a domain that is about to be started: what an earlier command left is ended first, and no
    /// operation is in progress.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`], or what recovery and the store report.
    pub fn record_for_start(&self, domain: &str, observer: &dyn Observer) -> Result<DomainRecord> {
        let named = resolve(&self.ports, &self.store, domain, Naming::Name)?;
        let lock = named.store.lock(LockWait::No)?;
        self.recover_locked(&named, &lock, observer)?;
        named.store.load()
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
        let named = resolve(&self.ports, &self.store, domain, self.naming)?;
        // What is being changed is not as it was.
        let lock = named.store.lock(LockWait::No)?;
        self.recover_locked(&named, &lock, observer)?;
        let target = named.look_again(&self.ports)?;
        let inventory = observe(&self.ports, &target)?;
        if let Some(name) = name {
            inventory.record.find(name)?;
        }
        Ok(verify(&inventory, &target.store, name, observer))
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
        memory::export(&target.store.memory_path(snapshot.id), proof, to, observer)
    }

    /// V6's view of a snapshot, with the memory image's path filled in.
    pub fn domain_snapshot(&self, domain: &str, record: &SnapshotRecord) -> DomainSnapshot {
        let mut snapshot = record.snapshot.clone();
        if record.memory.is_some() {
            let path = self.store.domain(domain).memory_path(record.id);
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
        self.recover_locked(target, &lock, observer)
    }

    fn recover_locked(
        &self,
        target: &Target,
        lock: &DomainLock,
        observer: &dyn Observer,
    ) -> Result<()> {
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
        Ok(())
    }
}
