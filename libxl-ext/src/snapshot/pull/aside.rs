//! A pull stands aside while its domain is suspended.
//!
//! Stock `xl migrate` starts the other domain's QEMU before it ends this one's, and nobody tells either: both would write to
//! the image. Whoever waits for a pull sees it in time, since the hypervisor is quickly asked, and the other QEMU is there only
//! when the rest of the memory is.

use super::{Host, abort_wanted};
use crate::error::Result;
use crate::event::Observer;
use crate::model::domain::{DomainLife, DomainState};
use crate::model::pull::Pull;
use crate::port::{Word, Worker};
use std::time::{Duration, Instant};

/// How often the hypervisor is asked.
const ASK_EVERY: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 30 });

impl Host {
    /// Waits so long, and as long as the domain is suspended: its QEMU does not go on with the pull meanwhile.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Aborted`] if the observer does not want to wait any longer.
    pub(super) fn wait_beside(
        &self,
        (domain, pull): (&str, Option<&Pull>),
        disk: &str,
        pause: Duration,
        observer: &dyn Observer,
    ) -> Result<()> {
        let next = Instant::now() + pause;
        let mut is_aside = false;
        loop {
            abort_wanted(domain, disk, observer)?;
            let its_own = pull.and_then(|pull| Some((pull, pull.life?)));
            if let Some((pull, life)) = its_own {
                match (self.state_of(life), is_aside) {
                    (Some(DomainState::Suspended), false) => {
                        is_aside = self.say_beside(life, pull, Word::Rest);
                    }
                    (Some(DomainState::Running | DomainState::Paused), true) => {
                        is_aside = !self.say_beside(life, pull, Word::GoOn);
                    }
                    (Some(DomainState::Suspended), true) | (_, false) => {}
                    // Its QEMU goes with it.
                    (_, true) => return Ok(()),
                }
            }
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() && !is_aside {
                return Ok(());
            }
            std::thread::sleep(if is_aside {
                ASK_EVERY
            } else {
                left.min(ASK_EVERY)
            });
        }
    }

    /// What is the matter with the domain, if it is there.
    fn state_of(&self, life: DomainLife) -> Option<DomainState> {
        let view = self.ports.hypervisor.look(life.domid);
        let view = view.unwrap_or_else(|error| {
            tracing::warn!("{}", error.report());
            None
        });
        view.filter(|view| view.life == life).map(|view| view.state)
    }

    /// Whether QEMU heard it.
    fn say_beside(&self, life: DomainLife, pull: &Pull, word: Word) -> bool {
        let by = Worker::Qemu(life);
        let said = self.ports.pulls.tell(&by, &pull.disk.image, word);
        if let Err(error) = &said {
            tracing::warn!("{}", error.report());
        }
        said.is_ok()
    }
}
