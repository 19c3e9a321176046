//! The side that could take over.

use super::graph::{self, Buffers};
use super::{Limits, NbdAddress};
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::DiskTarget;
use crate::model::layer::Backing;
use crate::model::replication;
use crate::port::qemu_img::{self, QemuImg};
use crate::port::{Images, Sidecar};
use crate::replication::{Mode, ReplicationOps};
use crate::store::{absent_is_fine, private_directory};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two looks at whether a failover is over.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The secondary disks of a domain, and the QEMU that serves them.
///
/// That QEMU goes on when this is dropped, as replication does; [`end_left_over`] ends one that nobody has any more.
pub struct Secondary {
    disks: Vec<DiskTarget>,
    address: NbdAddress,
    /// Its QEMU's monitor, and what it says.
    directory: PathBuf,
    /// Where what the primary overwrites is kept, which takes as much room as that.
    buffers: PathBuf,
    limits: Limits,
    stage: Stage,
    sidecar: Option<Sidecar>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing runs.
    Off,
    /// It takes what the primary writes, and keeps nothing of what that overwrites: it is of no instant.
    Receiving,
    /// It could be set back to the last checkpoint.
    Replicating,
    /// It is being set back.
    Merging,
}

impl Secondary {
    /// The secondary of these disks, at an address of this host. Nothing is begun yet. Both directories are its alone
    /// and are made private; the second one needs as much room as the primary writes between two checkpoints.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] if the disks cannot be told apart or the address is none.
    pub fn new(
        disks: Vec<DiskTarget>,
        address: NbdAddress,
        directory: PathBuf,
        buffers: PathBuf,
        limits: Limits,
    ) -> Result<Self> {
        replication::check(&disks, &address)?;
        Ok(Self {
            disks,
            address,
            directory,
            buffers,
            limits,
            stage: Stage::Off,
            sidecar: None,
        })
    }

    /// One that an earlier process has started, at a stage that was written down. Its QEMU may have ended since.
    ///
    /// # Errors
    /// As [`Secondary::new`]; if what is written down of the QEMU cannot be read.
    pub(crate) fn adopt(
        disks: Vec<DiskTarget>,
        address: NbdAddress,
        [directory, buffers]: [PathBuf; 2],
        limits: Limits,
        stage: Stage,
    ) -> Result<Self> {
        let mut adopted = Self::new(disks, address, directory, buffers, limits)?;
        adopted.sidecar = Sidecar::find(&adopted.directory, limits.answer)?;
        adopted.stage = stage;
        Ok(adopted)
    }

    /// Lets its QEMU go on, for whoever adopts it.
    pub(crate) fn leave(self) {
        if let Some(sidecar) = self.sidecar {
            sidecar.leave();
        }
    }

    /// The QEMU that serves, if it should run.
    fn sidecar(&mut self) -> Result<&mut Sidecar> {
        self.sidecar.as_mut().ok_or_else(|| {
            Error::new(ErrorKind::DomainState, "the secondary is not started")
                .hint("start replication first")
        })
    }

    /// Whether that QEMU still runs.
    pub(crate) fn is_served(&mut self) -> bool {
        self.sidecar.as_mut().is_some_and(Sidecar::is_alive)
    }

    /// Lengths of the disks, in bytes, each of which nobody has open and which has nothing that the guest would not see.
    fn look_at_disks(&self) -> Result<Vec<u64>> {
        let look = |disk: &DiskTarget| {
            let what = || format!("use {disk} as a secondary disk");
            let facts = QemuImg.facts(&disk.image, disk.format)?.ok_or_else(|| {
                Error::new(ErrorKind::InvalidRequest, what())
                    .because("there is no such image")
                    .hint("make one of the length of the primary's disk with qemu-img create")
            })?;
            if let Some(below) = facts.backing {
                return Err(Error::new(ErrorKind::Unsupported, what())
                    .because(format!("it stands on {}", below.display()))
                    .hint("name one that holds everything itself"));
            }
            QemuImg
                .require_closed(&disk.image)
                .map_err(|error| error.while_doing(what()))?;
            Ok(facts.virtual_size)
        };
        self.disks.iter().map(look).collect()
    }

    fn serve(&self, sidecar: &mut Sidecar, lengths: &[u64]) -> Result<()> {
        for (at, (disk, length)) in self.disks.iter().zip(lengths).enumerate() {
            let buffers = Buffers::of(disk, &self.buffers);
            for buffer in buffers.each() {
                // One that a secondary left that was killed: nothing in it is of use without what was in its memory.
                absent_is_fine(std::fs::remove_file(buffer))
                    .map_err(|error| Error::io(format!("remove {}", buffer.display()), error))?;
                qemu_img::create_empty(buffer, *length)?;
            }
            let image = Backing {
                image: disk.image.clone(),
                format: disk.format,
            };
            let protocol = qemu_img::protocol_of(&disk.image);
            sidecar.open(&graph::nodes(at, &image, protocol, &buffers)?)?;
        }
        if let NbdAddress::Unix(path) = &self.address {
            // QEMU does not listen where a socket is left.
            absent_is_fine(std::fs::remove_file(path))
                .map_err(|error| Error::io(format!("remove {}", path.display()), error))?;
        }
        sidecar.listen(&self.address)?;
        for (at, disk) in self.disks.iter().enumerate() {
            sidecar.export(&graph::disk_node(at), &disk.vdev)?;
        }
        Ok(())
    }

    /// Cuts the primary off and sets the disks back to the last checkpoint. May be done again after a failure.
    fn set_back(&mut self) -> Result<()> {
        let limit = self.limits.merge;
        let names: Vec<_> = self.disks.iter().map(|disk| disk.vdev.clone()).collect();
        let stage = self.stage;
        let sidecar = self.sidecar()?;
        if stage == Stage::Replicating {
            // First of all: a primary that still lives may write no more.
            for name in &names {
                sidecar.fence(name)?;
            }
            sidecar.begin_to_merge()?;
            self.stage = Stage::Merging;
        }
        let sidecar = self.sidecar()?;
        // The job is not in QEMU's list; until it is over QEMU speaks of an error.
        let deadline = Instant::now() + limit;
        while let Some(trouble) = sidecar.trouble()? {
            if Instant::now() >= deadline {
                let what = "the disks are not all set back to the last checkpoint yet";
                return Err(Error::new(ErrorKind::Toolstack, what)
                    .because(format!("QEMU: {trouble}"))
                    .hint("give the command again to go on waiting"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// The first half of a failover: the primary is cut off, and the disks are those of the last checkpoint, on the disk,
    /// whatever becomes of the QEMU that serves.
    pub(crate) fn set_back_durably(&mut self) -> Result<()> {
        self.set_back()?;
        for at in 0..self.disks.len() {
            self.sidecar()?.flush(&graph::disk_node(at))?;
        }
        for disk in &self.disks {
            QemuImg.make_durable(&disk.image)?;
        }
        Ok(())
    }

    /// The second half: nobody has the disks open any more.
    pub(crate) fn let_go(&mut self) -> Result<()> {
        if self.is_served() {
            return self.close();
        }
        self.forget();
        Ok(())
    }

    /// Ends the QEMU that serves, and waits until what it has written is on the disk.
    fn close(&mut self) -> Result<()> {
        let images = self
            .disks
            .iter()
            .map(|disk| QemuImg.open_to_sync(&disk.image));
        // From before the end, so that no failure to write goes unheard.
        let images = images.collect::<Result<Vec<_>>>()?;
        self.sidecar()?.end()?;
        for image in images {
            image.sync()?;
        }
        self.forget();
        Ok(())
    }

    /// Nothing runs any more: what it needed is removed.
    fn forget(&mut self) {
        self.sidecar = None;
        self.stage = Stage::Off;
        let buffers = self
            .disks
            .iter()
            .map(|disk| Buffers::of(disk, &self.buffers));
        for buffer in buffers.flat_map(|buffers| buffers.each().map(Path::to_path_buf)) {
            let _ = std::fs::remove_file(buffer);
        }
        if let NbdAddress::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl ReplicationOps for Secondary {
    /// Begins to listen. The images must be there, and nobody have them open.
    fn start(&mut self, mode: Mode) -> Result<()> {
        if mode != Mode::Secondary {
            return Err(wrong_mode(mode));
        }
        if self.stage != Stage::Off {
            return Err(
                Error::new(ErrorKind::DomainState, "the secondary is started already")
                    .hint("stop replication first"),
            );
        }
        // Whoever serves the disks has them open, so it comes first.
        if let Some(other) = Sidecar::left_in(&self.directory)? {
            let what = format!("these disks are served already (process {})", other.pid);
            return Err(Error::new(ErrorKind::DomainState, what)
                .hint("stop its replication, or let it fail over, first"));
        }
        let lengths = self.look_at_disks()?;
        private_directory(&self.buffers)?;
        let mut sidecar = Sidecar::start(&self.directory, self.limits.answer)?;
        let served = self.serve(&mut sidecar, &lengths);
        if let Err(error) = served {
            sidecar.kill();
            self.forget();
            return Err(error);
        }
        self.sidecar = Some(sidecar);
        self.stage = Stage::Receiving;
        Ok(())
    }

    /// Nothing may be on its way from the primary.
    fn checkpoint(&mut self) -> Result<()> {
        match self.stage {
            Stage::Receiving => {
                let begun = self.sidecar()?.keep();
                if begun.is_err() {
                    // Of several disks some may have begun, and none of them can be told to begin again.
                    self.sidecar()?.kill();
                }
                begun?;
                self.stage = Stage::Replicating;
            }
            Stage::Replicating => self.sidecar()?.checkpoint()?,
            Stage::Off | Stage::Merging => {
                let what = "the secondary takes nothing from a primary";
                return Err(Error::new(ErrorKind::DomainState, what));
            }
        }
        self.error()
    }

    fn error(&mut self) -> Result<()> {
        match self.stage {
            Stage::Off => Ok(()),
            // QEMU has no word on what it does not keep yet, or is setting back; that it answers is something.
            Stage::Receiving => self.sidecar()?.trouble().map(drop),
            Stage::Replicating | Stage::Merging => match self.sidecar()?.trouble()? {
                None => Ok(()),
                Some(trouble) => Err(Error::new(
                    ErrorKind::Toolstack,
                    "the secondary does not hold what it should",
                )
                .because(format!("QEMU: {trouble}"))),
            },
        }
    }

    /// With failover the disks are those of the last checkpoint, complete and closed, when it returns. Without, they are
    /// too, if there was a checkpoint.
    fn stop(&mut self, failover: bool) -> Result<()> {
        if self.stage == Stage::Off {
            return Ok(());
        }
        if !failover && !self.is_served() {
            // What it kept is gone with it, and nothing is left to stop.
            self.forget();
            return Ok(());
        }
        match self.stage {
            Stage::Receiving if failover => Err(Error::new(
                ErrorKind::DomainState,
                "the secondary's disks are of no instant: there was no checkpoint yet",
            )
            .hint("they are of no use to a guest")),
            Stage::Receiving | Stage::Off => self.close(),
            Stage::Replicating | Stage::Merging => {
                self.set_back()?;
                self.close()
            }
        }
    }
}

/// Ends the QEMU of a secondary that was left in its directory by a process that is gone. What it kept is lost, so the disks
/// are of no instant, unless it had failed over. It is no error if there is none.
///
/// # Errors
/// If what is written down of it cannot be read.
pub fn end_left_over(directory: &Path, limits: Limits) -> Result<()> {
    if let Some(mut left) = Sidecar::find(directory, limits.answer)? {
        left.kill();
    }
    Ok(())
}

pub(in crate::replication) fn wrong_mode(mode: Mode) -> Error {
    let what = format!("a disk of the other side cannot be started as {mode}");
    Error::new(ErrorKind::InvalidRequest, what)
        .hint("the two sides are sets of their own: register them with two registries")
}
