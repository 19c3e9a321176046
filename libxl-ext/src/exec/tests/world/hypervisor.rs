//! What the hypervisor knows of the domains.

use super::{Domain, Shared, World};
use crate::error::Result;
use crate::model::domain::{DomainLife, DomainState};
use crate::port::{DomainView, Hypervisor};
use uuid::Uuid;

impl World {
    fn state_of(&self, domid: u32, domain: &Domain) -> DomainState {
        if self.ended.contains(&domid) {
            DomainState::Shutdown
        } else {
            domain.state()
        }
    }

    fn view(&self, domid: u32) -> Option<DomainView> {
        self.domains.get(&domid).map(|domain| DomainView {
            life: DomainLife {
                domid,
                uuid: domain.uuid,
            },
            state: self.state_of(domid, domain),
            paused: domain.pauses > 0,
            memory_bytes: self.memory_bytes,
            has_run: domain.has_run,
        })
    }
}

impl Hypervisor for Shared {
    fn look(&self, domid: u32) -> Result<Option<DomainView>> {
        self.call(|world| Ok(world.view(domid)))
    }

    fn all(&self) -> Result<Vec<DomainView>> {
        self.call(|world| {
            let domids = world.domains.keys();
            Ok(domids.filter_map(|domid| world.view(*domid)).collect())
        })
    }

    fn find(&self, uuid: Uuid) -> Result<Option<DomainView>> {
        self.call(|world| {
            let found = world.domains.iter().find(|(_, domain)| domain.uuid == uuid);
            Ok(found.and_then(|(domid, _)| world.view(*domid)))
        })
    }
}
