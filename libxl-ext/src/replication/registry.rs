//! The replication states of one toolstack context, and the calls that go to all of them.

use super::{Mode, ReplicationOps};
use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Which state it is: `ReplicationState *` of QEMU's `replication.h`. No two states of a process have the
/// same, also not one after the other, so that one that was kept for too long is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateId(NonZeroUsize);

impl StateId {
    /// One that no state has had.
    pub(crate) fn unused() -> Self {
        static LAST: AtomicUsize = AtomicUsize::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        Self(NonZeroUsize::new(number).expect("fewer states than addresses are made"))
    }

    /// The number that stands for it outside of Rust.
    pub(crate) const fn number(self) -> usize {
        self.0.get()
    }

    /// The state of a number, if any can have it.
    pub(crate) fn of_number(number: usize) -> Option<Self> {
        NonZeroUsize::new(number).map(Self)
    }
}

impl fmt::Display for StateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What is known of a state. The stages of QEMU's driver are its model: none, running, done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It does not replicate, and may be started.
    Stopped,
    /// It replicates.
    Running,
    /// A stop failed, or a call never returned, so nobody knows whether it replicates. It can be stopped
    /// again in the same way: disks of which some fail over and others do not are of two instants.
    Uncertain {
        /// Which way that is.
        failover: bool,
    },
    /// The guest of this side goes on alone. It cannot be started again.
    FailedOver,
}

impl Phase {
    /// Whether it replicates, as far as anybody knows.
    pub(super) const fn may_run(self) -> bool {
        matches!(self, Self::Running | Self::Uncertain { .. })
    }
}

struct State {
    id: StateId,
    /// What it is called in messages.
    name: String,
    phase: Phase,
    ops: Box<dyn ReplicationOps>,
}

impl State {
    /// On failure nothing of it runs, as [`ReplicationOps::start`] promises.
    fn start(&mut self, mode: Mode) -> Result<()> {
        // Until it has returned: it might panic.
        self.phase = Phase::Uncertain { failover: false };
        let started = self.ops.start(mode);
        self.phase = match started {
            Ok(()) => Phase::Running,
            Err(_) => Phase::Stopped,
        };
        started.map_err(|error| {
            let name = &self.name;
            error.while_doing(format!("replication '{name}' did not start as {mode}"))
        })
    }

    fn stop(&mut self, failover: bool) -> Result<()> {
        self.phase = Phase::Uncertain { failover };
        self.ops.stop(failover).map_err(|error| {
            let name = &self.name;
            error.while_doing(if failover {
                format!("replication '{name}' did not fail over")
            } else {
                format!("replication '{name}' did not stop")
            })
        })?;
        self.phase = if failover {
            Phase::FailedOver
        } else {
            Phase::Stopped
        };
        Ok(())
    }

    /// Why it cannot do what is asked, and what can be done instead.
    fn refuse(&self) -> Error {
        let name = &self.name;
        match self.phase {
            Phase::Stopped => refused(format!("replication '{name}' is not running"))
                .hint("start replication first"),
            Phase::Running => {
                refused(format!("replication '{name}' is running")).hint("stop replication first")
            }
            Phase::Uncertain { failover: false } => {
                refused(format!("it is not known whether replication '{name}' runs"))
                    .hint("stop replication, without failover, or remove this one")
            }
            Phase::Uncertain { failover: true } => {
                refused(format!("replication '{name}' failed over in part"))
                    .hint("stop replication, with failover, or remove this one")
            }
            Phase::FailedOver => refused(format!("replication '{name}' has failed over"))
                .hint("remove it; what it replicated can be replicated by a new one"),
        }
    }
}

fn refused(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::DomainState, why)
}

fn nothing_registered() -> Error {
    refused("nothing is registered for replication").hint("register what is to be replicated first")
}

/// The states of one toolstack context: QEMU's `replication_states`, which is one list for the process.
///
/// All calls go to the states in the order in which these were made. No lock is held while an operation of a
/// state runs; another call to the registry meanwhile, from the operation itself or from another thread,
/// is refused with [`ErrorKind::Locked`] instead of waiting.
///
/// A registry that is dropped calls nobody: what runs then goes on.
pub struct Registry {
    /// `None` while a call has them.
    states: Mutex<Option<Vec<State>>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

/// The states, as long as a call has them. They are given back also if an operation panics.
struct Call<'registry> {
    registry: &'registry Registry,
    states: Vec<State>,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        *self.registry.locked() = Some(std::mem::take(&mut self.states));
    }
}

impl Call<'_> {
    fn position(&self, id: StateId) -> Result<usize> {
        let position = self.states.iter().position(|state| state.id == id);
        position.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidRequest,
                format!("there is no replication {id}"),
            )
            .hint("it was removed, or belongs to another ctx")
        })
    }

    /// Refuses unless there are states and each is in this phase.
    fn require_all(&self, phase: Phase) -> Result<()> {
        match self.states.iter().find(|state| state.phase != phase) {
            Some(other) => Err(other.refuse()),
            None if self.states.is_empty() => Err(nothing_registered()),
            None => Ok(()),
        }
    }

    /// Why none of the states can be asked or stopped.
    fn none_runs(&self) -> Error {
        match self.states.first() {
            Some(state) => state.refuse(),
            None => nothing_registered(),
        }
    }
}

impl Registry {
    /// One without states.
    pub const fn new() -> Self {
        Self {
            states: Mutex::new(Some(Vec::new())),
        }
    }

    fn locked(&self) -> MutexGuard<'_, Option<Vec<State>>> {
        // Nothing that can panic runs while it is held.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> Result<Call<'_>> {
        let states = self.locked().take().ok_or_else(|| {
            Error::new(
                ErrorKind::Locked,
                "another call of replication is in progress",
            )
            .hint("try again when it has returned; an operation of a replication must not make one")
        })?;
        Ok(Call {
            registry: self,
            states,
        })
    }

    /// Makes a state, stopped, behind the others: `replication_new`. `name` says in messages what is
    /// replicated, such as a disk.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] while others run: it would miss their start.
    pub fn new_state(
        &self,
        name: impl Into<String>,
        ops: Box<dyn ReplicationOps>,
    ) -> Result<StateId> {
        let id = StateId::unused();
        self.insert(id, name.into(), ops)?;
        Ok(id)
    }

    /// The same, under an id that is known before.
    pub(crate) fn insert(
        &self,
        id: StateId,
        name: String,
        ops: Box<dyn ReplicationOps>,
    ) -> Result<()> {
        let mut call = self.begin()?;
        if let Some(other) = call.states.iter().find(|state| state.phase.may_run()) {
            let why = format!("replication '{name}' cannot be added to a set that runs");
            return Err(other.refuse().while_doing(why));
        }
        call.states.push(State {
            id,
            name,
            phase: Phase::Stopped,
            ops,
        });
        Ok(())
    }

    /// Removes a state: `replication_remove`. One of which nobody knows whether it runs can be removed, since
    /// there may be no other way to be rid of it.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] while it runs, [`ErrorKind::InvalidRequest`] if there is none of this id.
    pub fn remove(&self, id: StateId) -> Result<()> {
        let mut call = self.begin()?;
        let at = call.position(id)?;
        if call.states[at].phase == Phase::Running {
            return Err(call.states[at].refuse());
        }
        let removed = call.states.remove(at);
        drop(call);
        // Only now, since nobody knows what dropping the operations does.
        drop(removed);
        Ok(())
    }

    /// The phase of a state.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] if there is none of this id.
    pub fn phase(&self, id: StateId) -> Result<Phase> {
        let call = self.begin()?;
        let at = call.position(id)?;
        Ok(call.states[at].phase)
    }

    /// Starts all states, or none: `replication_start_all`. If one fails, those before it are stopped again,
    /// without failover and the last one first.
    ///
    /// The guest must not run meanwhile; the secondary's start comes before the primary's.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] if there are no states or one of them is not stopped; else the error of the
    /// one that failed, with what could not be stopped again as its way out.
    pub fn start_all(&self, mode: Mode) -> Result<()> {
        let mut call = self.begin()?;
        call.require_all(Phase::Stopped)?;
        for at in 0..call.states.len() {
            if let Err(error) = call.states[at].start(mode) {
                let mut left = Vec::new();
                for started in call.states[..at].iter_mut().rev() {
                    left.extend(started.stop(false).err());
                }
                return Err(with_others(
                    error,
                    &left,
                    "what was started is not all stopped",
                ));
            }
        }
        Ok(())
    }

    /// Makes a checkpoint of all states, up to the first that fails: `replication_do_checkpoint_all`. It comes
    /// after all of the guest's state has been transferred to the secondary.
    ///
    /// If one fails, the states are of two instants: those before it have made the checkpoint. So the guest must
    /// not go on, nor the secondary fail over, before another checkpoint has succeeded.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] if there are no states or one of them does not run; else the error of the one
    /// that failed.
    pub fn checkpoint_all(&self) -> Result<()> {
        let mut call = self.begin()?;
        call.require_all(Phase::Running)?;
        for state in &mut call.states {
            let made = state.ops.checkpoint();
            let name = &state.name;
            made.map_err(|error| {
                error.while_doing(format!("no checkpoint of replication '{name}'"))
            })?;
        }
        Ok(())
    }

    /// Asks all states that are not stopped whether an error has occurred, up to the first that tells one:
    /// `replication_get_error_all`. Also those that have failed over, since what that takes may go on.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] if all are stopped, or there are none; else the first error that was told.
    pub fn error_all(&self) -> Result<()> {
        let mut call = self.begin()?;
        if call
            .states
            .iter()
            .all(|state| state.phase == Phase::Stopped)
        {
            return Err(call.none_runs());
        }
        for state in &mut call.states {
            if state.phase != Phase::Stopped {
                let told = state.ops.error();
                let name = &state.name;
                told.map_err(|error| {
                    error.while_doing(format!("replication '{name}' has an error"))
                })?;
            }
        }
        Ok(())
    }

    /// Stops all states, with or without failover: `replication_stop_all`. One that fails does not keep the
    /// others from being stopped; the same call again stops what failed.
    ///
    /// Without failover the guest must not run meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] if nothing runs, or if a stop of the other kind was begun and has failed; else
    /// the first error, with the others as its way out.
    pub fn stop_all(&self, failover: bool) -> Result<()> {
        let mut call = self.begin()?;
        let other_kind = Phase::Uncertain {
            failover: !failover,
        };
        if let Some(other) = call.states.iter().find(|state| state.phase == other_kind) {
            return Err(other.refuse());
        }
        if !call.states.iter().any(|state| state.phase.may_run()) {
            return Err(call.none_runs());
        }
        let mut errors = Vec::new();
        for state in &mut call.states {
            if state.phase.may_run() {
                errors.extend(state.stop(failover).err());
            }
        }
        let mut errors = errors.into_iter();
        match errors.next() {
            None => Ok(()),
            Some(first) => Err(with_others(first, errors.as_slice(), "others failed too")),
        }
    }
}

/// The first error, and in its way out what is to be known of the others.
fn with_others(first: Error, others: &[Error], what: &str) -> Error {
    if others.is_empty() {
        return first;
    }
    let others: Vec<String> = others.iter().map(Error::report).collect();
    first.hint(format!("{what}: {}", others.join("; ")))
}
