//! xl's processes, and what they do about a domain that has shut down to be rebooted.

use super::{Shared, World};
use crate::error::Result;
use crate::model::process::ProcessId;
use crate::port::Monitors;
use std::path::PathBuf;

/// A reboot: xl reads on which images the domain goes on, destroys it, and starts it anew some calls later. What is
/// stopped does none of that.
#[derive(Debug)]
pub(super) struct Reboot {
    process: ProcessId,
    held: bool,
    /// The call before which it begins, and how many calls later it ends.
    begins_at: usize,
    takes: usize,
    /// When it has begun: on which images it will go on.
    into: Option<Vec<PathBuf>>,
}

impl World {
    /// The domain has shut down to be rebooted; xl notices before the call of the given number, counted from now.
    pub(in crate::exec::tests) fn reboots(&mut self, begins_at: usize, takes: usize) {
        self.calls = 0;
        self.ended = self.domains.keys().copied().collect();
        self.reboot = self.the_domain().map(|domain| Reboot {
            process: domain.monitor,
            held: domain.monitor_held,
            begins_at,
            takes,
            into: None,
        });
    }

    /// The same, if there is nothing more that it waits for.
    pub(in crate::exec::tests) fn end_reboot(&mut self) {
        self.reboot_goes_on(usize::MAX);
        self.reboot_goes_on(usize::MAX);
    }

    pub(super) fn reboot_goes_on(&mut self, at: usize) {
        let Some(mut reboot) = self.reboot.take_if(|reboot| !reboot.held) else {
            return;
        };
        match reboot.into.take() {
            Some(images) if at >= reboot.begins_at.saturating_add(reboot.takes) => {
                self.start_on(images);
                return;
            }
            None if at >= reboot.begins_at => match self.ended.pop_first() {
                // Somebody else destroyed it: there is nothing to do.
                None => return,
                Some(domid) => {
                    let domain = self.domains.remove(&domid);
                    reboot.into = domain.map(|domain| domain.told);
                }
            },
            into => reboot.into = into,
        }
        self.reboot = Some(reboot);
    }

    fn monitor(&mut self, process: ProcessId, held: bool) {
        if let Some(reboot) = &mut self.reboot
            && reboot.process == process
        {
            reboot.held = held;
        }
        let domain = self
            .domains
            .values_mut()
            .find(|domain| domain.monitor == process);
        if let Some(domain) = domain {
            assert!(
                held || !domain.suspended,
                "the monitor sees the suspend and exits"
            );
            domain.monitor_held = held;
        }
    }
}

impl Monitors for Shared {
    fn find(&self, _domain: &str, _domid: Option<u32>) -> Result<Option<ProcessId>> {
        let world = self.0.borrow();
        let begun = world.reboot.as_ref().filter(|it| it.into.is_some());
        let begun = begun.map(|reboot| reboot.process);
        Ok(world.the_domain().map(|domain| domain.monitor).or(begun))
    }

    fn hold(&self, process: ProcessId) -> Result<()> {
        self.call(|world| {
            world.monitor(process, true);
            Ok(())
        })
    }

    fn release(&self, process: ProcessId) -> Result<()> {
        self.call(|world| {
            world.monitor(process, false);
            Ok(())
        })
    }
}
