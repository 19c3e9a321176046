//! The domains that could go on here. Whoever does something with one holds its lock, begins with what is written down
//! of it, and leaves its QEMU to the next: the process that listens, and a failover, which is another one.

use super::protocol::{
    Answer, CONFIGURATION_MAX, DISKS_MAX, NAME_MAX, Open, Refusal, Request, Seen, Why,
};
use super::qdisk::{Limits, NbdAddress, Secondary, Stage};
use super::{Mode, ReplicationOps};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::model::disk::{DiskTarget, ImageFormat};
use crate::model::name::domain_directory;
use crate::model::replica::{
    Checkpoint, PrimaryState, Replica, ReplicaState, ReplicationRecord, Role, WantedDisk,
};
use crate::model::replication;
use crate::plan::now;
use crate::port::Images;
use crate::port::qemu_img::{self, QemuImg};
use crate::store::{DomainLock, DomainStore, LockWait, Store, atomic, private_directory};
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

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
            Request::Checkpoint { session } => self.checkpoint(&own, pair, session),
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
            Some(known) => require_open(known, pair, open.generation)?,
            None => None,
        };
        let going_on = match replica {
            Some(replica) => self.go_on(own, replica, &open.disks)?,
            None => None,
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

    fn checkpoint(&self, own: &DomainStore, pair: &str, session: Uuid) -> Result<Answer, Refusal> {
        let _lock = lock(own)?;
        let (mut record, mut replica) = require_session(own, pair, session)?;
        let mut secondary = self.adopt(own, &replica)?;
        secondary.checkpoint()?;
        secondary.leave();
        let checkpoint = Checkpoint {
            number: replica.checkpoint.map_or(0, |last| last.number) + 1,
            at: now(),
        };
        replica.checkpoint = Some(checkpoint);
        replica.state = ReplicaState::Replicating;
        record.role = Role::Secondary(replica);
        own.remember_replication(&record)?;
        Ok(Answer::Checkpointed(checkpoint))
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
        let record = ReplicationRecord {
            role: Role::Secondary(Replica {
                state: ReplicaState::Stopped { at: now() },
                ..replica
            }),
            ..record
        };
        own.remember_replication(&record)?;
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
            ReplicaState::Receiving | ReplicaState::Replicating => self.end(&own, record, replica),
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

    /// Has the domain go on here: the primary is cut off, and the disks are set back to the last checkpoint and closed when
    /// it returns. One that was interrupted goes on.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] if there is no checkpoint to go on from, or it was done already;
    /// [`ErrorKind::NeedsRepair`] if the QEMU that kept the checkpoint is gone.
    pub fn fail_over(&self, domain: &str, observer: &dyn Observer) -> Result<FailedOver> {
        let own = self.store.domain(domain);
        let _lock = lock(&own)?;
        let (mut record, mut replica) = find(&own)?;
        let refuse = |what: String| Error::new(ErrorKind::DomainState, what);
        let remember = |record: &mut ReplicationRecord, replica: &Replica| {
            record.role = Role::Secondary(replica.clone());
            own.remember_replication(record)
        };
        let at = match replica.state {
            ReplicaState::Receiving => {
                return Err(refuse(format!(
                    "domain '{domain}' cannot go on here: there was no checkpoint yet"
                ))
                .hint("what its disks hold here is of no instant"));
            }
            ReplicaState::Stopped { .. } => {
                return Err(refuse(format!(
                    "the replication of domain '{domain}' to this host is stopped"
                ))
                .hint(
                    "the disks are those of the last checkpoint, but nobody is kept from going on at the other side: \
                     start the domain by a configuration file, if that is meant",
                ));
            }
            ReplicaState::FailedOver { .. } => {
                return Err(refuse(format!(
                    "domain '{domain}' has failed over to this host already"
                ))
                .hint("`xl list` shows whether it runs; `xl create` starts it"));
            }
            ReplicaState::Replicating => now(),
            ReplicaState::FailingOver { at } | ReplicaState::Merged { at } => at,
        };
        if !matches!(replica.state, ReplicaState::Merged { .. }) {
            let mut secondary = self.adopt(&own, &replica)?;
            if !secondary.is_served() {
                return Err(Error::new(
                    ErrorKind::NeedsRepair,
                    format!("the QEMU that kept the last checkpoint of domain '{domain}' is gone"),
                )
                .hint(
                    "its disks here are of no instant, and what was kept cannot be put together; if the primary is there, \
                     `xl-ext replication-resume` on it copies everything again",
                ));
            }
            if replica.state == ReplicaState::Replicating {
                // Before anything else: from here on the primary has lost, whatever becomes of us.
                record.generation += 1;
                replica.state = ReplicaState::FailingOver { at };
                remember(&mut record, &replica)?;
            }
            observer.step("cut the primary off and set the disks back to the last checkpoint");
            secondary.set_back_durably()?;
            secondary.leave();
            replica.state = ReplicaState::Merged { at };
            remember(&mut record, &replica)?;
        }
        observer.step("close the disks");
        self.adopt(&own, &replica)?.let_go()?;
        replica.state = ReplicaState::FailedOver { at };
        remember(&mut record, &replica)?;
        Ok(FailedOver {
            replica,
            generation: record.generation,
            at,
        })
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

/// The replica of a domain on this host.
fn find(own: &DomainStore) -> Result<(ReplicationRecord, Replica)> {
    let record = own.replication()?;
    match record {
        Some(ReplicationRecord {
            role: Role::Secondary(replica),
            domain,
            generation,
        }) => {
            let role = Role::Secondary(replica.clone());
            let record = ReplicationRecord {
                domain,
                generation,
                role,
            };
            Ok((record, replica))
        }
        _ => Err(Error::new(
            ErrorKind::DomainState,
            format!("domain '{}' is not replicated to this host", own.name()),
        )
        .hint("`xl-ext replication-status` lists those that are")),
    }
}

fn look(own: &DomainStore, pair: &str) -> Result<Answer, Refusal> {
    let Some(record) = own.replication()? else {
        return Ok(Answer::Seen(Seen {
            generation: 0,
            failed_over: None,
            checkpoint: None,
        }));
    };
    let (failed_over, checkpoint) = match &record.role {
        Role::Secondary(replica) => {
            require_pair(own.name(), replica, pair)?;
            (replica.state.failed_over(), replica.checkpoint)
        }
        Role::Primary(_) => (None, None),
    };
    Ok(Answer::Seen(Seen {
        generation: record.generation,
        failed_over,
        checkpoint,
    }))
}

fn require_pair(domain: &str, replica: &Replica, pair: &str) -> Result<()> {
    if replica.pair == pair {
        return Ok(());
    }
    // Nothing more is said to a host that the domain is none of the business of.
    Err(Error::new(
        ErrorKind::DomainState,
        format!("domain '{domain}' is replicated by another pair of hosts"),
    ))
}

fn lost(record: &ReplicationRecord, at: u64) -> Refusal {
    Refusal {
        why: Why::Lost {
            at,
            generation: record.generation,
        },
        text: format!("domain '{}' has failed over to this host", record.domain),
    }
}

/// Whether a start may be accepted; what there is of an earlier one.
fn require_open<'a>(
    known: &'a ReplicationRecord,
    pair: &str,
    generation: u64,
) -> Result<Option<&'a Replica>, Refusal> {
    let replica = match &known.role {
        Role::Secondary(replica) => {
            require_pair(&known.domain, replica, pair)?;
            if let Some(at) = replica.state.failed_over() {
                return Err(lost(known, at));
            }
            Some(replica)
        }
        Role::Primary(primary) => match primary.state {
            PrimaryState::Lost { .. } | PrimaryState::Stopped { .. } => None,
            _ => {
                let what = format!("domain '{}' is replicated from this host", known.domain);
                let error = Error::new(ErrorKind::DomainState, what);
                return Err(error.hint("stop that first, on it").into());
            }
        },
    };
    if generation <= known.generation {
        return Err(Refusal {
            why: Why::Behind {
                generation: known.generation,
            },
            text: format!(
                "generation {generation} of domain '{}' is not newer than {}",
                known.domain, known.generation
            ),
        });
    }
    Ok(replica)
}

/// The replica, if it is that of this start.
fn require_session(
    own: &DomainStore,
    pair: &str,
    session: Uuid,
) -> Result<(ReplicationRecord, Replica), Refusal> {
    let (record, replica) = find(own)?;
    require_pair(own.name(), &replica, pair)?;
    if let Some(at) = replica.state.failed_over() {
        return Err(lost(&record, at));
    }
    if replica.session != session {
        return Err(Refusal {
            why: Why::Behind {
                generation: record.generation,
            },
            text: "another start of replication is newer".into(),
        });
    }
    if matches!(replica.state, ReplicaState::Stopped { .. }) {
        let what = format!(
            "the replication of domain '{}' was stopped here",
            own.name()
        );
        return Err(Error::new(ErrorKind::DomainState, what).into());
    }
    Ok((record, replica))
}

/// Refuses what no primary of ours would ask for.
fn check(open: &Open) -> Result<()> {
    let invalid = |what: &str| Err(Error::new(ErrorKind::InvalidRequest, what));
    let texts = [Some(&open.configuration), open.domain_config.as_ref()];
    if texts
        .into_iter()
        .flatten()
        .any(|text| text.len() > CONFIGURATION_MAX)
    {
        return invalid("the domain's configuration is too long");
    }
    if open.disks.len() > DISKS_MAX {
        return invalid("these are too many disks");
    }
    let is_length =
        |length: u64| length > 0 && length.is_multiple_of(512) && i64::try_from(length).is_ok();
    if !open.disks.iter().all(|disk| is_length(disk.length)) {
        return invalid("a disk has a length that no disk has");
    }
    if open.generation == 0 || open.generation > i64::MAX as u64 {
        return invalid("the generation is none");
    }
    // By made-up images: theirs are decided here.
    let target = |disk: &WantedDisk| DiskTarget {
        vdev: disk.vdev.clone(),
        image: Path::new("/").join(&disk.vdev).into(),
        format: disk.format,
    };
    let disks: Vec<_> = open.disks.iter().map(target).collect();
    replication::check(&disks, &NbdAddress::Unix("/nbd".into()))
}

/// Refuses a name that no domain has.
pub(super) fn check_name(domain: &str) -> Result<()> {
    if domain.is_empty() || domain.len() > NAME_MAX || domain.chars().any(char::is_control) {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "that is no name of a domain",
        ));
    }
    Ok(())
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
