//! What the steps do that end a domain, bring it back, or put a restored one in its place.

use super::perform::Performer;
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::DiskTarget;
use crate::model::domain::{DomainLife, DomainState, GuestState};
use crate::model::name::SnapshotId;
use crate::plan::{Memory, Step, Switch};
use crate::port::DomainView;
use std::path::Path;

impl Performer<'_> {
    pub(super) fn destroy(&self, life: DomainLife) -> Result<()> {
        match self.look(life)? {
            Some(_) => self.ports.toolstack.destroy(life.domid),
            None => Ok(()),
        }
    }

    pub(super) fn restore(
        &self,
        id: SnapshotId,
        uuid: uuid::Uuid,
        switches: &[Switch],
    ) -> Result<()> {
        // What an earlier attempt left half-built.
        self.destroy_restored(uuid)?;
        if let Some(view) = self.find_by_name()? {
            return Err(self.usurped(view));
        }
        self.ports.restorer.restore_paused(
            &self.memory_image(id)?,
            self.plan.keeper,
            switches,
            self.observer,
        )?;
        match self.find_by_uuid(uuid)? {
            Some(view) if view.state == DomainState::Paused => Ok(()),
            Some(view) => Err(Error::new(
                ErrorKind::Toolstack,
                format!(
                    "the restored domain {} is {} instead of paused",
                    view.life.domid, view.state
                ),
            )),
            None => Err(Error::new(
                ErrorKind::Toolstack,
                format!("the restore reported success and there is no domain with UUID {uuid}"),
            )),
        }
    }

    pub(super) fn bring_back(
        &self,
        id: SnapshotId,
        life: DomainLife,
        disks: &[DiskTarget],
        others: &[Box<Path>],
    ) -> Result<()> {
        // Before a QEMU that is ended below flushes them.
        self.refuse_if_written_since(others.iter())?;
        // The rest of a destruction that was interrupted, and what an earlier attempt left half-built:
        // both have the images open.
        self.destroy(life)?;
        self.destroy_restored(life.uuid)?;
        self.apply_images(id, disks)?;
        self.restore(id, life.uuid, &[])
    }

    pub(super) fn destroy_rest(&self, life: DomainLife, has_qemu: bool) -> Result<()> {
        // A domain that was renamed in the meantime is somebody's, whatever else is the matter with it.
        let name = self.ports.toolstack.name_of(life.domid)?;
        let is_renamed = name.is_some_and(|name| name != self.plan.domain);
        if is_renamed || self.is_intact(life, has_qemu)? {
            return Ok(());
        }
        self.destroy(life)
    }

    /// What became of the memory of a domain that a step up to and including `last` destroyed.
    pub(super) fn destroyed(&self, last: usize) -> Option<&Memory> {
        let mut begun = self.plan.steps.iter().take(last + 1);
        let (life, memory) = begun.find_map(|step| match step {
            Step::Destroy { life, memory, .. } => Some((*life, memory)),
            _ => None,
        })?;
        let view = self.look(life).ok().flatten();
        let is_there = view.is_some_and(|view| view.state != DomainState::Dying);
        (!is_there).then_some(memory)
    }

    /// Whether nobody has begun to destroy the domain: libxl ends its QEMU and takes its name before the
    /// hypervisor ends the domain.
    pub(super) fn is_intact(&self, life: DomainLife, has_qemu: bool) -> Result<bool> {
        let alive = self
            .look(life)?
            .is_some_and(|view| view.state != DomainState::Dying);
        let named = self.ports.toolstack.domid_of(&self.plan.domain)? == Some(life.domid);
        Ok(alive && named && (!has_qemu || self.ports.block.nodes(life).is_ok()))
    }

    /// A restored domain is paused until it is started, so one that is not paused is somebody else's.
    /// Only what we can have made: a domain that was given another name, or has run, is somebody's.
    pub(super) fn destroy_restored(&self, uuid: uuid::Uuid) -> Result<()> {
        while let Some(view) = self.find_by_uuid(uuid)? {
            let name = self.ports.toolstack.name_of(view.life.domid)?;
            let is_named_so = name.is_none_or(|name| name == self.plan.domain);
            if view.state != DomainState::Paused || view.has_run || !is_named_so {
                return Err(self.usurped(view));
            }
            self.destroy(view.life)?;
        }
        Ok(())
    }

    pub(super) fn usurped(&self, view: DomainView) -> Error {
        Error::new(
            ErrorKind::NeedsRepair,
            format!(
                "domain {} was started in the place of '{}' in the meantime",
                view.life.domid, self.plan.domain
            ),
        )
        .hint(self.ways_out())
    }

    pub(super) fn ways_out(&self) -> String {
        format!(
            "to keep the disks as they are now, remove {}; to go back to the state before the \
             interrupted command, shut the domain down, `touch` that file and give any command",
            self.store.journal_path().display()
        )
    }

    pub(super) fn start(&self, uuid: uuid::Uuid, guest: GuestState) -> Result<()> {
        let Some(view) = self.find_by_uuid(uuid)? else {
            return Ok(());
        };
        match (guest, view.state) {
            (GuestState::Running, DomainState::Paused) => {
                self.ports.toolstack.unpause(view.life.domid)
            }
            _ => Ok(()),
        }
    }

    fn find_by_uuid(&self, uuid: uuid::Uuid) -> Result<Option<DomainView>> {
        self.ports.hypervisor.find(uuid)
    }
}
