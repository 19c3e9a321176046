//! A checkpoint of both sides: one instant, at which the guest stands still.

use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::exec::Suspension;
use crate::memory::{self, Taker};
use crate::model::domain::{DomainLife, DomainState, GuestState, GuestType};
use crate::model::replica::Standing;
use crate::port::{DomainView, Ports};
use crate::replication::Registry;
use std::time::Instant;
use uuid::Uuid;

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

    /// The same guest, if its memory can be taken.
    fn with_memory(&self) -> Option<&dyn MemoryGuest> {
        None
    }
}

/// A guest whose memory can be taken.
pub trait MemoryGuest {
    /// What is to be known before its memory is taken.
    ///
    /// # Errors
    /// If it is in a state in which that cannot be taken.
    fn memory(&self) -> Result<GuestMemory>;

    /// Has it stand still by a suspend, and hands its memory to `each`, in order. Tells since when it stands still, if
    /// that is known. It may be suspended after an error too, or be about to be.
    ///
    /// # Errors
    /// Those of `each`; if it does not answer, or its memory cannot be had.
    fn suspend(&self, memory: &GuestMemory, each: Each<'_>) -> Result<Option<Instant>>;

    /// Lets it go on after that, as it was before; `may_still` if nobody waited for its suspend.
    ///
    /// # Errors
    /// If it may stand still for ever.
    fn go_on(&self, standing: Standing, may_still: bool) -> Result<()>;
}

/// Who takes memory, piece by piece.
pub type Each<'a> = &'a mut (dyn FnMut(&[u8]) -> Result<()> + Send);

/// What is to be known of a guest whose memory is taken.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    /// libxl's configuration of the domain, in JSON.
    pub configuration: String,
    /// The guest's type.
    pub guest_type: GuestType,
    /// UUID of the domain.
    pub uuid: Uuid,
    /// Most bytes that it can be.
    pub at_most: u64,
    /// What is to be done for it to go on.
    pub standing: Standing,
}

/// A Xen domain.
pub struct DomainGuest<'host> {
    /// The host that it runs on.
    pub ports: &'host Ports,
    /// Its name.
    pub name: &'host str,
    /// Which one.
    pub life: DomainLife,
    /// Who may want an end while its memory is taken.
    pub observer: &'host dyn Observer,
}

impl DomainGuest<'_> {
    fn suspension(&self) -> Suspension<'_> {
        Suspension {
            ports: self.ports,
            life: self.life,
        }
    }

    fn view(&self) -> Result<DomainView> {
        self.suspension().look()?.ok_or_else(|| {
            let what = format!("domain {} is gone, or another one", self.life.domid);
            Error::new(ErrorKind::Stale, what)
        })
    }
}

impl Guest for DomainGuest<'_> {
    fn pause(&self) -> Result<bool> {
        let view = self.view()?;
        if !view.paused {
            self.ports.toolstack.pause(self.life.domid)?;
        }
        Ok(!view.paused)
    }

    fn resume(&self) -> Result<()> {
        self.ports.toolstack.unpause(self.life.domid)
    }

    fn with_memory(&self) -> Option<&dyn MemoryGuest> {
        Some(self)
    }
}

impl MemoryGuest for DomainGuest<'_> {
    fn memory(&self) -> Result<GuestMemory> {
        let view = self.view()?;
        let domid = self.life.domid;
        let guest = match view.state {
            DomainState::Running => GuestState::Running,
            DomainState::Paused => GuestState::Paused,
            state => {
                let what = format!("domain '{}' (domid {domid}) is {state}", self.name);
                return Err(Error::new(ErrorKind::DomainState, what)
                    .hint("only a running or paused domain can give its memory"));
            }
        };
        let configuration = self.ports.toolstack.configuration(domid)?;
        Ok(GuestMemory {
            configuration: configuration.json,
            guest_type: configuration.guest_type,
            uuid: self.life.uuid,
            at_most: memory::at_most(view.memory_bytes, true),
            standing: Standing {
                guest,
                // One that was not there at the start may have come: a domain that was restored gets another.
                monitor: self.ports.monitors.find(self.name, Some(domid))?,
            },
        })
    }

    fn suspend(&self, memory: &GuestMemory, each: Each<'_>) -> Result<Option<Instant>> {
        let suspension = self.suspension();
        // xl's monitor takes a suspend for the domain's end.
        if let Some(monitor) = memory.standing.monitor {
            self.ports.monitors.hold(monitor)?;
        }
        suspension.wait_for_disks(self.observer)?;
        if memory.standing.guest == GuestState::Paused {
            // A guest suspends itself.
            suspension.wake()?;
        }
        let taker = Handed { each, bytes: 0 };
        let (toolstack, domid) = (&*self.ports.toolstack, self.life.domid);
        let saved = memory::save_to(
            toolstack,
            domid,
            taker,
            memory.at_most,
            false,
            self.observer,
        );
        saved.map(|(_, since)| since)
    }

    fn go_on(&self, standing: Standing, may_still: bool) -> Result<()> {
        self.suspension().resume(standing.guest, may_still)?;
        match standing.monitor {
            Some(monitor) => self.ports.monitors.release(monitor),
            None => Ok(()),
        }
    }
}

/// What goes on to somebody else.
struct Handed<'a> {
    each: Each<'a>,
    bytes: u64,
}

impl Taker for Handed<'_> {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        (self.each)(bytes)
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Makes the present what the secondary keeps: the guest stands still, nothing is under way any more, the secondary
/// takes note, the guest goes on. A guest that was paused before stays so.
///
/// # Errors
/// Those of either side; the guest goes on all the same, after `cut`, which has to see to it that nothing that it writes
/// reaches the secondary any more. The checkpoint before counts then, unless the secondary's answer
/// was lost, when it is that one or this one, for all disks alike. If the guest does not go on, that is the error.
pub fn checkpoint(
    guest: &dyn Guest,
    primary: &Registry,
    secondary: &Registry,
    cut: impl FnOnce(),
) -> Result<()> {
    let ran = guest.pause()?;
    let made = primary
        .checkpoint_all()
        .and_then(|()| secondary.checkpoint_all());
    if made.is_err() {
        cut();
    }
    let resumed = if ran { guest.resume() } else { Ok(()) };
    both(made, resumed)
}

/// What came of a checkpoint, and of letting the guest go on.
pub(in crate::replication) fn both<T>(made: Result<T>, resumed: Result<()>) -> Result<T> {
    match (made, resumed) {
        (made, Ok(())) => made,
        (made, Err(error)) => {
            let error = error.while_doing("the guest does not go on after a checkpoint");
            Err(match made {
                Ok(_) => error,
                Err(made) => error.hint(format!("the checkpoint failed too: {}", made.report())),
            })
        }
    }
}
