//! The domains that could go on here. Whoever does something with one holds its lock, begins with what is written down
//! of it, and leaves its QEMU to the next: the process that listens, and a failover, which is another one.

mod admit;
mod failover;
mod memory;

use super::protocol::{Answer, Open, Refusal, Request};
use super::qdisk::{Limits, NbdAddress, Secondary, Stage};
use super::{Mode, ReplicationOps};
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::{DiskTarget, ImageFormat};
use crate::model::name::{SnapshotId, domain_directory};
use crate::model::replica::{
    Checkpoint, Replica, ReplicaState, ReplicationRecord, Role, WantedDisk,
};
use crate::plan::now;
use crate::port::Images;
use crate::port::qemu_img::{self, QemuImg};
use crate::store::{DomainLock, DomainStore, LockWait, Store, atomic, private_directory};
use admit::{check, find, look, require_open, require_session};
use std::path::PathBuf;
use std::time::Duration;
use uuid::Uuid;

pub(super) use admit::check_name;

/// How long another operation on the domain may take.
const LOCK_LIMIT: Duration = Duration::from_secs(20);

/// Where sockets and processes of ours are told of, until the host goes down.
pub const RUN_DIRECTORY: &str = "/var/run/xen";

/// The replicas of a host.
#[derive(Clone, Debug)]
pub struct Replicas {
    /// Where they are remembered.
    pub store: Store,
    /// Where their sockets are: a short path.
    pub run: PathBuf,
    /// Where images are made, or found: a directory for each domain in it. In the store, if not said.
    pub images: Option<PathBuf>,
    /// How long is waited.
    pub limits: Limits,
}

/// A refusal that the other side hears.
impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::of(&error)
    }
}

/// A domain that has failed over, as it is to be started here.
#[derive(Clone, Debug)]
pub struct FailedOver {
    /// What is remembered of it.
    pub replica: Replica,
    /// The generation that it has now.
    pub generation: u64,
    /// When the failover began, in seconds since 1970-01-01 00:00 UTC.
    pub at: u64,
    /// libxl's configuration, in JSON, with which it goes on from its memory when it is started, if that is here too.
    pub memory: Option<String>,
}

impl Replicas {
    /// Those of this host.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            run: RUN_DIRECTORY.into(),
            images: None,
            limits: Limits::default(),
        }
    }

    fn directory(&self, replica: &Replica) -> PathBuf {
        self.run
            .join(format!("xl-ext-repl-{}", replica.id.simple()))
    }

    /// Where QEMU takes what the primary writes.
    pub(super) fn address(&self, replica: &Replica) -> PathBuf {
        self.directory(replica).join("nbd")
    }

    /// Its QEMU, as it was left.
    pub(in crate::replication) fn adopt(
        &self,
        own: &DomainStore,
        replica: &Replica,
    ) -> Result<Secondary> {
        let stage = match replica.state {
            ReplicaState::Receiving => Stage::Receiving,
            ReplicaState::Replicating | ReplicaState::FailingOver { .. } => Stage::Replicating,
            ReplicaState::Merged { .. } => Stage::Merging,
            ReplicaState::FailedOver { .. } | ReplicaState::Stopped { .. } => Stage::Off,
        };
        Secondary::adopt(
            replica.disks.clone(),
            NbdAddress::Unix(self.address(replica)),
            [self.directory(replica), buffers(own, replica)],
            self.limits,
            stage,
        )
    }

    /// Answers a request of a host that has this key.
    pub(super) fn answer(&self, domain: &str, pair: &str, request: Request) -> Answer {
        let own = self.store.domain(domain);
        let answered = match request {
            Request::Look => look(&own, pair),
            Request::Open(open) => self.open(&own, pair, *open),
            Request::Checkpoint { session, memory } => self.checkpoint(&own, pair, session, memory),
            Request::Alive { session } => self.alive(&own, pair, session),
            Request::Close { session } => self.close(&own, pair, session),
        };
        answered.unwrap_or_else(Answer::Refused)
    }

    fn open(&self, own: &DomainStore, pair: &str, open: Open) -> Result<Answer, Refusal> {
        check(&open)?;
        let _lock = lock(own)?;
        let known = own.replication()?;
        let replica = match &known {
            Some(known) => require_open(known, pair, open.generation)?.cloned(),
            None => None,
        };
        let going_on = match (known, replica) {
            (Some(known), Some(replica)) => {
                let (_, replica) = self.settled(own, known, replica)?;
                self.go_on(own, &replica, &open.disks)?
            }
            _ => None,
        };
        let is_new = going_on.is_none();
        let replica = Replica {
            session: open.session,
            configuration: open.configuration,
            domain_config: open.domain_config,
            ..match going_on {
                Some(replica) => replica,
                None => self.new_replica(own, pair, &open.disks)?,
            }
        };
        let mut record = ReplicationRecord {
            domain: own.name().to_owned(),
            generation: open.generation,
            role: Role::Secondary(replica.clone()),
        };
        // Before its QEMU is there: one that nobody remembers could not be found.
        own.remember_replication(&record)?;
        if is_new && let Err(error) = self.start(own, &replica) {
            record.role = Role::Secondary(Replica {
                state: ReplicaState::Stopped { at: now() },
                ..replica
            });
            own.remember_replication(&record)?;
            return Err(error.into());
        }
        memory::tidy_unless_busy(own, &replica);
        Ok(Answer::Done)
    }

    /// One that runs goes on, with the checkpoint that it has, if it is of the same disks; else it is ended.
    fn go_on(
        &self,
        own: &DomainStore,
        replica: &Replica,
        wanted: &[WantedDisk],
    ) -> Result<Option<Replica>> {
        let mut secondary = self.adopt(own, replica)?;
        let disks = || wanted.iter().map(|disk| self.target(own, disk));
        let is_same = || {
            let lengths = wanted.iter().zip(&replica.disks).all(|(wanted, disk)| {
                let facts = QemuImg.facts(&disk.image, disk.format);
                matches!(facts, Ok(Some(facts)) if facts.virtual_size == wanted.length)
            });
            disks().eq(replica.disks.iter().cloned()) && lengths
        };
        if secondary.is_served() && is_same() {
            secondary.leave();
            return Ok(Some(replica.clone()));
        }
        secondary.stop(false)?;
        Ok(None)
    }

    fn target(&self, own: &DomainStore, wanted: &WantedDisk) -> DiskTarget {
        let directory = match &self.images {
            Some(images) => images.join(domain_directory(own.name())),
            None => own.replica_directory(),
        };
        let WantedDisk { vdev, format, .. } = wanted;
        DiskTarget {
            vdev: vdev.clone(),
            image: directory.join(format!("{vdev}.{}", format.driver())).into(),
            format: *format,
        }
    }

    /// Finds or makes the images of a domain. One that is there has to be of the same length.
    fn new_replica(&self, own: &DomainStore, pair: &str, wanted: &[WantedDisk]) -> Result<Replica> {
        let mut disks = Vec::new();
        for wanted in wanted {
            let disk = self.target(own, wanted);
            match QemuImg.facts(&disk.image, disk.format)? {
                Some(facts) if facts.virtual_size != wanted.length => {
                    return Err(Error::new(
                        ErrorKind::InvalidRequest,
                        format!(
                            "{disk} has {} bytes here, and the primary's disk {}",
                            facts.virtual_size, wanted.length
                        ),
                    )
                    .hint("remove it, if nothing in it is needed, or make it of that length"));
                }
                Some(_) => {}
                None => make(&disk, wanted.length)?,
            }
            disks.push(disk);
        }
        Ok(Replica {
            id: Uuid::new_v4(),
            session: Uuid::nil(),
            pair: pair.to_owned(),
            disks,
            configuration: String::new(),
            domain_config: None,
            checkpoint: None,
            memory: None,
            pending: None,
            state: ReplicaState::Receiving,
        })
    }

    fn start(&self, own: &DomainStore, replica: &Replica) -> Result<()> {
        let mut secondary = Secondary::new(
            replica.disks.clone(),
            NbdAddress::Unix(self.address(replica)),
            self.directory(replica),
            buffers(own, replica),
            self.limits,
        )?;
        secondary.start(Mode::Secondary)?;
        secondary.leave();
        Ok(())
    }

    fn checkpoint(
        &self,
        own: &DomainStore,
        pair: &str,
        session: Uuid,
        memory: Option<SnapshotId>,
    ) -> Result<Answer, Refusal> {
        let _lock = lock(own)?;
        let (record, mut replica) = require_session(own, pair, session)?;
        let record = if let Some(id) = memory {
            memory::decide(own, record, &mut replica, id)?
        } else {
            replica.pending = None;
            record
        };
        let (_, replica) = self.complete(own, record, replica)?;
        if memory.is_none() {
            memory::tidy_unless_busy(own, &replica);
        }
        let made = replica
            .checkpoint
            .ok_or_else(|| Error::new(ErrorKind::DomainState, "no checkpoint was made"))?;
        Ok(Answer::Checkpointed(made))
    }

    /// The disks' part of a checkpoint, and the word that it counts, with the memory that is decided on.
    fn complete(
        &self,
        own: &DomainStore,
        mut record: ReplicationRecord,
        mut replica: Replica,
    ) -> Result<(ReplicationRecord, Replica)> {
        let mut secondary = self.adopt(own, &replica)?;
        secondary.checkpoint()?;
        secondary.leave();
        replica.checkpoint = Some(Checkpoint {
            number: replica.checkpoint.map_or(0, |last| last.number) + 1,
            at: now(),
        });
        replica.memory = replica
            .pending
            .take()
            .map(|pending| Box::new(pending.image));
        replica.state = ReplicaState::Replicating;
        record.role = Role::Secondary(replica.clone());
        own.remember_replication(&record)?;
        Ok((record, replica))
    }

    /// Completes a checkpoint that was decided on and interrupted, if there is one. Who asked for it has written nothing
    /// since, so that its disks are still those of that instant, whether their part was done or not.
    fn settled(
        &self,
        own: &DomainStore,
        record: ReplicationRecord,
        replica: Replica,
    ) -> Result<(ReplicationRecord, Replica)> {
        let is_decided = replica.pending.as_ref().is_some_and(|it| it.is_decided);
        if !is_decided || replica.state != ReplicaState::Replicating {
            return Ok((record, replica));
        }
        let mut secondary = self.adopt(own, &replica)?;
        let is_served = secondary.is_served();
        secondary.leave();
        if !is_served {
            return Ok((record, replica));
        }
        let settled = self.complete(own, record, replica);
        settled.map_err(|error| {
            error.while_doing("complete the checkpoint that was being made when it was interrupted")
        })
    }

    fn alive(&self, own: &DomainStore, pair: &str, session: Uuid) -> Result<Answer, Refusal> {
        let (_, replica) = require_session(own, pair, session)?;
        let mut secondary = self.adopt(own, &replica)?;
        secondary.error()?;
        secondary.leave();
        Ok(Answer::Done)
    }

    fn close(&self, own: &DomainStore, pair: &str, session: Uuid) -> Result<Answer, Refusal> {
        let _lock = lock(own)?;
        let (record, replica) = require_session(own, pair, session)?;
        let (record, replica) = self.settled(own, record, replica)?;
        self.end(own, record, replica)?;
        Ok(Answer::Done)
    }

    fn end(
        &self,
        own: &DomainStore,
        record: ReplicationRecord,
        replica: Replica,
    ) -> Result<ReplicationRecord> {
        self.adopt(own, &replica)?.stop(false)?;
        let replica = Replica {
            // Without a failover nothing of it is to go on here.
            memory: None,
            pending: None,
            state: ReplicaState::Stopped { at: now() },
            ..replica
        };
        let record = ReplicationRecord {
            role: Role::Secondary(replica.clone()),
            ..record
        };
        own.remember_replication(&record)?;
        memory::tidy_unless_busy(own, &replica);
        Ok(record)
    }

    /// What NBD connections of a session go to.
    pub(super) fn nbd(&self, domain: &str, pair: &str, session: Uuid) -> Result<PathBuf, Refusal> {
        let own = self.store.domain(domain);
        let (_, replica) = require_session(&own, pair, session)?;
        Ok(self.address(&replica))
    }

    /// Whether the QEMU of a replica runs.
    pub(crate) fn is_served(&self, domain: &str, replica: &Replica) -> Result<bool> {
        let mut secondary = self.adopt(&self.store.domain(domain), replica)?;
        let is_served = secondary.is_served();
        secondary.leave();
        Ok(is_served)
    }

    /// Ends the replication of a domain to this host, as its primary would. The disks are those of the last checkpoint
    /// then, if there was one.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] if there is nothing to stop; what QEMU reports.
    pub(crate) fn stop(&self, domain: &str) -> Result<ReplicationRecord> {
        let own = self.store.domain(domain);
        let _lock = lock(&own)?;
        let (record, replica) = find(&own)?;
        match replica.state {
            ReplicaState::Receiving | ReplicaState::Replicating => {
                let (record, replica) = self.settled(&own, record, replica)?;
                self.end(&own, record, replica)
            }
            ReplicaState::Stopped { .. } => Err(Error::new(
                ErrorKind::DomainState,
                format!("the replication of domain '{domain}' to this host is stopped already"),
            )),
            _ => Err(Error::new(
                ErrorKind::DomainState,
                format!("domain '{domain}' has failed over to this host"),
            )
            .hint("`xl-ext replication-start` replicates it from here")),
        }
    }
}

fn lock(own: &DomainStore) -> Result<DomainLock> {
    own.lock(LockWait::AtMost(LOCK_LIMIT))
}

/// Where what the primary overwrites is kept.
fn buffers(own: &DomainStore, replica: &Replica) -> PathBuf {
    let name = format!("buffers-{}", replica.id.simple());
    own.replica_directory().join(name)
}

fn make(disk: &DiskTarget, length: u64) -> Result<()> {
    if let Some(directory) = disk.image.parent() {
        private_directory(directory)?;
    }
    match disk.format {
        ImageFormat::Qcow2 => qemu_img::create_empty(&disk.image, length),
        ImageFormat::Raw => {
            let file = atomic::create_new(&disk.image)?;
            let made = file.set_len(length).and_then(|()| file.sync_all());
            made.map_err(|error| Error::io(format!("make {}", disk.image.display()), error))
        }
    }
}
