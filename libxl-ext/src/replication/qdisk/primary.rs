//! The side on which the guest runs.

use super::secondary::wrong_mode;
use super::{Limits, NbdAddress};
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::DiskTarget;
use crate::model::replication;
use crate::port::{ExportFacts, Mirror, MirrorState, Worker, ask_export, feel_pulse};
use crate::replication::{Mode, Registry, ReplicationOps, StateId};
use std::time::{Duration, Instant};

/// Between two looks at the first copy.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long something may be on its way before the peer is asked whether it is there.
const SETTLE: Duration = Duration::from_millis(500);

/// How often the disk is drained, at most, until nothing comes any more.
const DRAINS: usize = 10;

/// A disk of a domain that runs, and the secondary's disk of the same name.
///
/// The domain's QEMU goes on mirroring when this is dropped.
pub struct PrimaryDisk {
    disk: DiskTarget,
    mirror: Mirror,
    address: NbdAddress,
    limits: Limits,
    pulse: Pulse,
    is_on: bool,
}

/// Who notices that the secondary is silent while the guest is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulse {
    /// Whoever asks a disk whether an error has occurred: it greets the secondary's NBD server then.
    FeltWhenAsked,
    /// Somebody else.
    FeltElsewhere,
}

/// Registers the disks of a domain's QEMU for replication to a secondary that has been started, after a look at all of them:
/// each is there on both sides, in the same length. Nothing is begun yet.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] if the disks cannot be told apart or their lengths differ; [`ErrorKind::Toolstack`] if
/// either side cannot be asked. None is registered then.
pub fn register(
    registry: &Registry,
    qemu: &Worker,
    disks: &[DiskTarget],
    address: &NbdAddress,
    limits: Limits,
    pulse: Pulse,
) -> Result<Vec<StateId>> {
    replication::check(disks, address)?;
    let mut found = Vec::new();
    for disk in disks {
        let disk = PrimaryDisk {
            mirror: Mirror::new(qemu.clone(), disk.clone(), limits.answer),
            disk: disk.clone(),
            address: address.clone(),
            limits,
            pulse,
            is_on: false,
        };
        disk.check()?;
        found.push(disk);
    }
    let mut registered = Vec::new();
    for disk in found {
        let name = disk.disk.vdev.clone();
        match registry.new_state(name, Box::new(disk)) {
            Ok(id) => registered.push(id),
            Err(error) => {
                for id in registered {
                    // It was made just now, and runs as little as the others.
                    let _ = registry.remove(id);
                }
                return Err(error);
            }
        }
    }
    Ok(registered)
}

/// Ends whatever is left of mirrors that a process began that is gone. It is no error if there is nothing, or no QEMU.
pub(crate) fn end_mirrors(qemu: &Worker, disks: &[DiskTarget], limits: Limits) -> Result<()> {
    disks
        .iter()
        .try_for_each(|disk| Mirror::new(qemu.clone(), disk.clone(), limits.answer).cut())
}

/// Length of a disk that a domain's QEMU has open, in bytes.
pub(crate) fn length_of(qemu: &Worker, disk: &DiskTarget, limits: Limits) -> Result<u64> {
    Mirror::new(qemu.clone(), disk.clone(), limits.answer).length()
}

impl PrimaryDisk {
    /// Whether the secondary's disk can be this one's copy. A shorter one would make QEMU abort at the first write past its
    /// end.
    fn check(&self) -> Result<()> {
        let Self { disk, address, .. } = self;
        let length = self.mirror.length()?;
        let facts: ExportFacts = ask_export(address, &disk.vdev, self.limits.pulse)?;
        if facts.length != length {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "{disk} has {length} bytes, and the secondary's disk {} has {}",
                    disk.vdev, facts.length
                ),
            )
            .hint("give the secondary an image of the same length"));
        }
        if !facts.writable {
            let what = format!("the secondary's disk {} cannot be written to", disk.vdev);
            return Err(Error::new(ErrorKind::InvalidRequest, what));
        }
        Ok(())
    }

    /// Waits until everything is copied.
    fn copy(&self) -> Result<()> {
        let mut seen = None;
        let mut deadline = Instant::now() + self.limits.stall;
        loop {
            let state = self.mirror.look()?;
            match &state {
                MirrorState::InStep { .. } | MirrorState::Behind => return Ok(()),
                MirrorState::Copying { .. } => {}
                MirrorState::Failed(_) | MirrorState::Gone => return self.judge(state),
            }
            if seen.as_ref() != Some(&state) {
                seen = Some(state);
                deadline = Instant::now() + self.limits.stall;
            } else if Instant::now() >= deadline {
                let what = format!("{} is copied to the secondary no further", self.disk);
                return Err(Error::new(ErrorKind::Toolstack, what));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// What a state says of the replication.
    fn judge(&self, state: MirrorState) -> Result<()> {
        let lost = |why: String| {
            let what = format!("the secondary lacks what was written to {}", self.disk);
            let error = Error::new(ErrorKind::Toolstack, what).because(why);
            error.hint("the guest goes on alone; stop replication and start it anew, which copies everything")
        };
        match state {
            MirrorState::InStep { .. } | MirrorState::Behind | MirrorState::Copying { .. } => {
                Ok(())
            }
            MirrorState::Failed(why) => Err(lost(why)),
            MirrorState::Gone => Err(lost("QEMU does not mirror it any more".into())),
        }
    }

    /// The secondary says nothing: the guest's writes are not to wait for it any longer.
    fn cut_off(&self, silent: Error) -> Error {
        let what = format!("the secondary of {} is silent", self.disk);
        let error = silent.while_doing(what);
        match self.mirror.yank_peer() {
            Ok(()) => error.hint(
                "it is cut off and the guest goes on alone; stop replication and start it anew, which copies everything",
            ),
            Err(failed) => error.hint(format!(
                "it could not be cut off, and the guest may wait for it: {}",
                failed.report()
            )),
        }
    }
}

impl ReplicationOps for PrimaryDisk {
    /// Copies everything, and from then on what is written. The guest may run: only a checkpoint is an instant.
    fn start(&mut self, mode: Mode) -> Result<()> {
        if mode != Mode::Primary {
            return Err(wrong_mode(mode));
        }
        if self.is_on {
            let what = format!("{} is replicated already", self.disk);
            return Err(Error::new(ErrorKind::DomainState, what).hint("stop replication first"));
        }
        if self.mirror.look()? != MirrorState::Gone {
            let what = format!("{} is replicated by somebody else", self.disk);
            return Err(Error::new(ErrorKind::DomainState, what)
                .hint("stop that, or end QEMU's job xl-repl-* of the disk, first"));
        }
        self.check()?;
        self.mirror.begin(&self.address, &self.disk.vdev)?;
        self.copy().map_err(|error| self.mirror.undone(error))?;
        self.is_on = true;
        Ok(())
    }

    /// Sees to it that the secondary has everything. The guest stands still.
    fn checkpoint(&mut self) -> Result<()> {
        let mut before = None;
        for _ in 0..DRAINS {
            let state = self.mirror.drain()?;
            self.judge(state.clone())?;
            // What the guest had handed over before it was paused may have come since; twice the same is the end of it.
            if matches!(state, MirrorState::InStep { .. }) && before.as_ref() == Some(&state) {
                return Ok(());
            }
            before = Some(state);
        }
        let what = format!("something goes on writing to {}", self.disk);
        Err(Error::new(ErrorKind::DomainState, what)
            .hint("is the guest paused, and does nobody else write to the disk?"))
    }

    fn error(&mut self) -> Result<()> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let state = self.mirror.look()?;
            let settled = matches!(state, MirrorState::InStep { .. });
            self.judge(state)?;
            if settled || Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        if self.pulse == Pulse::FeltElsewhere {
            return Ok(());
        }
        // An idle guest notices nothing of a secondary that is gone.
        feel_pulse(&self.address, self.limits.pulse).map_err(|silent| self.cut_off(silent))?;
        // And one that is there again, started anew, is not the one that has everything.
        self.judge(self.mirror.look()?)
    }

    /// The guest goes on alone, either way. What it wrote since the last checkpoint counts here.
    fn stop(&mut self, _failover: bool) -> Result<()> {
        self.mirror.cut()?;
        self.is_on = false;
        Ok(())
    }
}
