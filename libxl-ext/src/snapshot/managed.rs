//! What is asked about saved domains, and about those that run and could be saved.

use super::Host;
use crate::check;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::exec;
use crate::model::domain::DomainState;
use crate::model::record::{DomainRecord, ManagedImage};
use crate::observe::{MemoryRoom, Naming, Target, memory_rooms, observe, resolve};
use crate::plan::{self, Fresh};
use crate::store::{DomainLock, RecordFile};
use serde::Serialize;
use std::fmt::Display;
use std::path::Path;

/// A domain that was saved, and goes on from there when it is started.
#[derive(Clone, Debug, Serialize)]
pub struct ManagedSave {
    /// The domain.
    pub domain: String,
    /// What was saved.
    pub image: ManagedImage,
    /// Room that its memory image takes.
    pub room: MemoryRoom,
    /// Why it cannot go on from there, as far as that can be told without reading the memory.
    pub stale: Option<String>,
}

/// A domain that is there, but domain 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunningDomain {
    /// Its number.
    pub domid: u32,
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: DomainState,
    /// Memory that it has now, in bytes.
    pub memory_bytes: u64,
}

impl Host {
    /// What was saved of a domain, if it was. Nobody knows of the domains that are off, so a name of which nothing is
    /// kept is that of a domain that was not saved.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`], or what recovery, the store and the ports report.
    pub fn managed_save(
        &self,
        domain: &str,
        observer: &dyn Observer,
    ) -> Result<Option<ManagedSave>> {
        self.saved_of(domain, self.naming, observer)
    }

    /// Copies the memory of a domain that was saved to a new file that stock `xl restore` takes. What was saved stays, and
    /// is void once the domain runs, whoever restored it.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchSnapshot`] if it was not saved, [`ErrorKind::Corrupt`] if the image or a disk is not what it was,
    /// [`ErrorKind::DomainState`] if the domain runs, or what the file system says.
    pub fn export_managed_save(
        &self,
        domain: &str,
        to: &Path,
        observer: &dyn Observer,
    ) -> Result<()> {
        let (target, _lock, inventory) = self.take_and_observe(domain, observer)?;
        let image = plan::usable(&inventory)?;
        let proof = image.memory.as_ref().ok_or_else(|| {
            let context = format!("what was saved of domain '{domain}' has no memory image");
            Error::new(ErrorKind::Corrupt, context)
        })?;
        let kept = target.store.kept_in_store(image.id);
        kept.export(proof, to, observer)
    }

    fn saved_of(
        &self,
        domain: &str,
        naming: Naming,
        observer: &dyn Observer,
    ) -> Result<Option<ManagedSave>> {
        let named = match resolve(&self.ports, &self.store, domain, naming) {
            Err(error) if error.kind() == ErrorKind::NoSuchDomain => return Ok(None),
            named => named?,
        };
        if !named.store.exists() {
            return Ok(None);
        }
        // The lock is held until all is looked at.
        let (target, _lock) = self.take(named, observer)?;
        let record = target.store.load()?;
        let Some(image) = record.managed.clone() else {
            return Ok(None);
        };
        let rooms = memory_rooms(&target.store, &record)?;
        let stale = match observe(&self.ports, &target) {
            Ok(inventory) => plan::stale(&inventory),
            // Whatever it is: as long as it is so, the domain cannot be started.
            Err(error) => Some(error),
        };
        Ok(Some(ManagedSave {
            domain: target.name,
            room: rooms.get(&image.id).copied().unwrap_or_default(),
            image,
            stale: stale.map(|error| error.report()),
        }))
    }

    /// Every domain that was saved, and the errors of those of which that cannot be told. What was interrupted is
    /// recovered first, also of a domain of which only that is known.
    pub fn managed_saves(&self, observer: &dyn Observer) -> (Vec<ManagedSave>, Vec<Error>) {
        let mut saved = Vec::new();
        let mut failed = Vec::new();
        let mut kept: Vec<_> = self.store.records().collect();
        let name = |record: &Result<Option<DomainRecord>>| {
            let record = record.as_ref().ok()?.as_ref()?;
            Some(record.domain.clone())
        };
        kept.sort_by_cached_key(|(_, record)| name(record));
        for (directory, record) in kept {
            let domain = match record {
                Ok(Some(record)) => Ok(Some(record.domain)),
                Ok(None) => exec::domain_in_progress(&directory),
                Err(error) => Err(error),
            };
            let what = |of: &dyn Display| format!("look what was saved of domain '{of}'");
            match domain {
                Ok(None) => {}
                // Names, also if they are digits.
                Ok(Some(domain)) => match self.saved_of(&domain, Naming::Name, observer) {
                    Ok(found) => saved.extend(found),
                    Err(error) => failed.push(error.while_doing(what(&domain))),
                },
                Err(error) => failed.push(error.while_doing(what(&directory.display()))),
            }
        }
        (saved, failed)
    }

    /// Every domain that is there and has a name, but domain 0, in the order of their numbers. One that is being made
    /// or destroyed is left out.
    ///
    /// # Errors
    /// If the hypervisor or libxl cannot be asked.
    pub fn running(&self) -> Result<Vec<RunningDomain>> {
        let mut all = Vec::new();
        for view in self.ports.hypervisor.all()? {
            if view.life.domid == 0 || view.state == DomainState::Dying {
                continue;
            }
            if let Some(name) = self.ports.toolstack.name_of(view.life.domid)? {
                all.push(RunningDomain {
                    domid: view.life.domid,
                    name,
                    state: view.state,
                    memory_bytes: view.memory_bytes,
                });
            }
        }
        Ok(all)
    }

    /// The number of the domain of a name, if there is one.
    ///
    /// # Errors
    /// If libxl cannot be asked.
    pub fn domid_of(&self, name: &str) -> Result<Option<u32>> {
        self.ports.toolstack.domid_of(name)
    }

    /// Bytes that can still be written below the store.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn free_bytes(&self) -> Result<u64> {
        self.store.free_bytes()
    }

    /// A domain that was saved and runs was started by other means. That is written down, since its disks need not tell
    /// it later: block devices have no last write, and what ran need not have written.
    pub(super) fn void_what_was_saved(target: &Target) -> Result<()> {
        if target.view.is_none_or(|it| it.state == DomainState::Dying) {
            return Ok(());
        }
        let RecordFile::Whole(mut record) = target.store.read()? else {
            return Ok(());
        };
        let saved = record.managed.as_mut();
        let Some(image) = saved.filter(|image| image.seen_running.is_none()) else {
            return Ok(());
        };
        image.seen_running = Some(Fresh::now().now);
        record.generation += 1;
        target.store.save(&record)
    }

    /// Makes a damaged record anew, so that what was saved can be removed whatever is damaged.
    pub(super) fn mend_record(
        &self,
        target: &Target,
        lock: &DomainLock,
        observer: &dyn Observer,
    ) -> Result<()> {
        if !matches!(target.store.read()?, RecordFile::Damaged(_)) {
            return Ok(());
        }
        let survey = check::survey(&self.ports, target, observer)?;
        let found = check::find(&survey);
        check::perform(&found.repairs, &target.store, lock, observer)?;
        observer
            .note("the record of the domain was damaged; it is made anew of what else is there");
        Ok(())
    }
}
