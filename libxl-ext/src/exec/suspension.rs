//! A domain's way into a suspend and out of it, whoever wants its memory: an operation, or a checkpoint of its
//! replication.

use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::model::domain::{DomainLife, DomainState, GuestState};
use crate::port::{DomainView, Ports};
use std::time::{Duration, Instant};

/// How long a guest that was asked to suspend when we were killed may take to do so.
const SETTLE_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 8 });

/// How often it is looked, and at which distance, whether a guest has connected to its disks: for half a minute. One
/// that has not by then has no drivers for them, as an HVM guest with emulated ones.
const CONNECT_LOOKS: u32 = 150;
const CONNECT_LOOKS_EVERY: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 200 });

/// How often a domain may have been paused for us to let it run.
const PAUSES_MAX: usize = 32;

/// One life of a domain that is to suspend, or has.
pub(crate) struct Suspension<'a> {
    /// The host that it runs on.
    pub(crate) ports: &'a Ports,
    /// Which one.
    pub(crate) life: DomainLife,
}

impl Suspension<'_> {
    /// The domain, if this life of it has not ended.
    pub(crate) fn look(&self) -> Result<Option<DomainView>> {
        let view = self.ports.hypervisor.look(self.life.domid)?;
        Ok(view.filter(|view| view.life == self.life))
    }

    /// Lets a paused domain run, however often it was paused.
    pub(crate) fn wake(&self) -> Result<()> {
        // Xen counts the pauses of a domain.
        for _ in 0..PAUSES_MAX {
            if !self.look()?.is_some_and(|view| view.paused) {
                break;
            }
            self.ports.toolstack.unpause(self.life.domid)?;
        }
        Ok(())
    }

    /// A guest that was restored connects to its disks anew once it runs. Until then its processes that wait for a
    /// disk cannot be frozen, and what would connect it is what the suspend request occupies: Linux agrees to the
    /// suspend, gives up after 20 s, and goes on as if nobody had asked.
    pub(crate) fn wait_for_disks(&self, observer: &dyn Observer) -> Result<()> {
        let domid = self.life.domid;
        for _ in 0..CONNECT_LOOKS {
            if self.ports.toolstack.disks_are_connected(domid)? {
                return Ok(());
            }
            if observer.wants_abort() {
                return Err(Error::new(
                    ErrorKind::Aborted,
                    "stopped while the guest connected to its disks",
                ));
            }
            std::thread::sleep(CONNECT_LOOKS_EVERY);
        }
        tracing::warn!(
            "domain {domid} has not connected to all of its disks; it is asked to suspend all the same"
        );
        Ok(())
    }

    /// Lets a domain go on that was suspended. It may also be about to be (`may_still`), because it was asked to and
    /// nobody waited for it: we were killed, or libxl lost patience.
    pub(crate) fn resume(&self, guest: GuestState, may_still: bool) -> Result<()> {
        let Some(view) = self.settled(may_still)? else {
            return Ok(());
        };
        if guest == GuestState::Paused && !view.paused {
            // Paused first, it does not run between the two.
            self.ports.toolstack.pause(self.life.domid)?;
        }
        if view.state == DomainState::Suspended {
            self.ports.toolstack.resume(self.life.domid)?;
        }
        // An attempt to destroy a domain begins with a pause.
        if guest == GuestState::Running {
            self.wake()
        } else {
            Ok(())
        }
    }

    fn settled(&self, may_still: bool) -> Result<Option<DomainView>> {
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            let view = self.look()?;
            let may_change = view.is_some_and(|view| view.state == DomainState::Running);
            if !may_still || !may_change || Instant::now() >= deadline {
                return Ok(view);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
