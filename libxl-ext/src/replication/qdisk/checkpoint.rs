//! A checkpoint of both sides: one instant, at which the guest stands still.

use crate::error::{Error, ErrorKind, Result};
use crate::model::domain::DomainLife;
use crate::port::Ports;
use crate::replication::Registry;

/// Whoever writes to the disks.
pub trait Guest {
    /// Has it stand still, so that it writes nothing more. Tells whether it ran.
    ///
    /// # Errors
    /// If it may go on writing.
    fn pause(&self) -> Result<bool>;

    /// Lets it go on.
    ///
    /// # Errors
    /// If it may stand still for ever.
    fn resume(&self) -> Result<()>;
}

/// A Xen domain.
pub struct DomainGuest<'host> {
    /// The host that it runs on.
    pub ports: &'host Ports,
    /// Which one.
    pub life: DomainLife,
}

impl Guest for DomainGuest<'_> {
    fn pause(&self) -> Result<bool> {
        let domid = self.life.domid;
        let view = self.ports.hypervisor.look(domid)?;
        let Some(view) = view.filter(|view| view.life == self.life) else {
            return Err(Error::new(
                ErrorKind::Stale,
                format!("domain {domid} is gone, or another one"),
            ));
        };
        if !view.paused {
            self.ports.toolstack.pause(domid)?;
        }
        Ok(!view.paused)
    }

    fn resume(&self) -> Result<()> {
        self.ports.toolstack.unpause(self.life.domid)
    }
}

/// Makes the present what the secondary keeps: the guest stands still, nothing is under way any more, the secondary
/// takes note, the guest goes on. A guest that was paused before stays so.
///
/// # Errors
/// Those of either side; the guest goes on all the same. The checkpoint before counts then, unless the secondary's answer
/// was lost, when it is that one or this one, for all disks alike. If the guest does not go on, that is the error.
pub fn checkpoint(guest: &dyn Guest, primary: &Registry, secondary: &Registry) -> Result<()> {
    let ran = guest.pause()?;
    let made = primary
        .checkpoint_all()
        .and_then(|()| secondary.checkpoint_all());
    let resumed = if ran { guest.resume() } else { Ok(()) };
    match (made, resumed) {
        (made, Ok(())) => made,
        (made, Err(error)) => {
            let error = error.while_doing("the guest does not go on after a checkpoint");
            Err(match made {
                Ok(()) => error,
                Err(made) => error.hint(format!("the checkpoint failed too: {}", made.report())),
            })
        }
    }
}
