//! Replication of a domain to another host, and its failover.

mod status;

pub use status::{CheckpointMemory, ReplicationInfo};

use super::Host;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::model::domain::{DomainLife, DomainState};
use crate::model::replica::{
    Pace, Primary, PrimaryState, Replica, ReplicaState, ReplicationRecord, Role,
};
use crate::observe::{self, Target, observe};
use crate::plan::{self, now};
use crate::port::{Worker, is_alive};
use crate::replication::keeper::{self, Command, Keeper, Progress, Setup};
use crate::replication::qdisk::{DomainGuest, Limits, MemoryGuest as _, end_mirrors};
use crate::replication::{
    FailedOver, Pairs, RUN_DIRECTORY, Replicas, ask_secondary, close_secondary,
};
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// How long a keeper may take that is not silent: it may be making a checkpoint, or setting the secondary back.
const KEEPER_LIMIT: Duration = Duration::from_secs(900);

/// How long a keeper may take to say how it is, before what is written down has to do.
const STATUS_LIMIT: Duration = Duration::from_secs(10);

/// What a user asks for.
#[derive(Clone, Debug)]
pub struct ReplicationRequest {
    /// Where the secondary listens: HOST:PORT.
    pub peer: String,
    /// Name of the key; the only one, if not said.
    pub pair: Option<String>,
    /// How long is waited, and how often a checkpoint made.
    pub pace: Pace,
    /// Whether a checkpoint is of the memory too.
    pub memory: bool,
    /// The configuration file's text with which the domain is to be started there.
    pub domain_config: Option<String>,
}

impl Host {
    /// The keys of this host.
    pub fn pairs(&self) -> Pairs {
        Pairs::of(&self.store)
    }

    /// The replicas of this host.
    pub fn replicas(&self) -> Replicas {
        Replicas::new(self.store.clone())
    }

    /// Decides all that is needed to replicate a domain, and writes it down. Nothing is begun: that is
    /// [`Host::keep_replication`]'s, in a process that stays.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] and [`ErrorKind::Unsupported`] for a domain that cannot be replicated, or is;
    /// [`ErrorKind::Stale`] if the secondary has failed over; [`ErrorKind::Toolstack`] if it does not answer.
    pub fn prepare_replication(
        &self,
        domain: &str,
        request: &ReplicationRequest,
        observer: &dyn Observer,
    ) -> Result<ReplicationRecord> {
        let named = observe::resolve(&self.ports, &self.store, domain, self.naming)?;
        let (target, _lock) = self.take(named, observer)?;
        let known = target.store.replication()?;
        require_startable_anew(known.as_ref())?;
        let pair = self.pairs().choose(request.pair.as_deref())?;
        observer.step(&format!("ask the secondary at {}", request.peer));
        let limit = request.pace.heartbeat();
        let seen = ask_secondary(&request.peer, &pair.key, &target.name, limit)?;
        // Also of a domain that does not run, since the next thing that is done with it would be to start it.
        if let Some(at) = seen.failed_over
            && let Some(known) = &known
            && let Role::Primary(primary) = &known.role
            && primary.peer == request.peer
        {
            remember_state(&target, known, primary, PrimaryState::Lost { at })?;
            return Err(lost(&target.name, &request.peer));
        }
        let mut inventory = observe(&self.ports, &target)?;
        // By what was begun before, which this start takes the place of.
        inventory.replicated = None;
        let disks = plan::replicable(&inventory)?;
        let Some(live) = &inventory.live else {
            let what = format!("domain '{domain}' is not running");
            return Err(Error::new(ErrorKind::DomainState, what));
        };
        let own = known.as_ref().map_or(0, |known| known.generation);
        let mut record = ReplicationRecord {
            domain: target.name.clone(),
            generation: own.max(seen.generation) + 1,
            role: Role::Primary(Primary {
                session: Uuid::new_v4(),
                peer: request.peer.clone(),
                pair: pair.name,
                pace: request.pace,
                disks,
                memory: request.memory,
                life: live.life,
                domain_config: request.domain_config.clone(),
                keeper: None,
                standing: None,
                state: PrimaryState::Starting,
            }),
        };
        if let Some(at) = seen.failed_over {
            if let Role::Primary(primary) = &mut record.role {
                primary.state = PrimaryState::Lost { at };
            }
            record.generation = own;
            target.store.remember_replication(&record)?;
            return Err(lost(&target.name, &request.peer));
        }
        target.store.remember_replication(&record)?;
        Ok(record)
    }

    /// What was asked for when the replication of a domain was started that has broken.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] if there is none.
    pub fn replication_request(&self, domain: &str) -> Result<ReplicationRequest> {
        let (target, record) = self.replication_of(domain)?;
        match record.role {
            Role::Primary(primary) => Ok(ReplicationRequest {
                peer: primary.peer,
                pair: Some(primary.pair),
                pace: primary.pace,
                memory: primary.memory,
                domain_config: primary.domain_config,
            }),
            Role::Secondary(_) => Err(not_from_here(&target.name)),
        }
    }

    fn replication_of(&self, domain: &str) -> Result<(Target, ReplicationRecord)> {
        let never = || {
            Error::new(
                ErrorKind::DomainState,
                format!("domain '{domain}' is not replicated"),
            )
            .hint("`xl-ext replication-status` lists those that are")
        };
        let target = observe::resolve(&self.ports, &self.store, domain, self.naming)?;
        let record = target.store.replication()?.ok_or_else(never)?;
        Ok((target, record))
    }

    /// Starts what was prepared, tells when everything is copied, and keeps it going.
    ///
    /// # Errors
    /// Those of either side; the guest goes on alone then.
    pub fn keep_replication(
        &self,
        domain: &str,
        session: Uuid,
        observer: &dyn Observer,
        ready: impl FnOnce(&Progress) -> Result<()>,
    ) -> Result<()> {
        let (target, record) = self.replication_of(domain)?;
        let Role::Primary(primary) = &record.role else {
            return Err(not_from_here(&target.name));
        };
        if primary.session != session || primary.state != PrimaryState::Starting {
            let what = format!("another replication of domain '{}' has begun", target.name);
            return Err(Error::new(ErrorKind::Stale, what));
        }
        let life = primary.life;
        let guest = DomainGuest {
            ports: &self.ports,
            name: &target.name,
            life,
            observer,
        };
        let setup = Setup {
            key: self.pairs().find(&primary.pair)?.key,
            configuration: self.ports.toolstack.configuration(life.domid)?.json,
            store: target.store,
            run: Path::new(RUN_DIRECTORY),
            qemu: Worker::Qemu(life),
            guest: &guest,
            record,
        };
        let keeper = Keeper::start(setup, observer)?;
        ready(&keeper.progress())?;
        keeper.run(observer)
    }

    /// Has the keeper of a domain's replication do something.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] if the domain is not replicated from here, or its keeper is gone; else what it says.
    pub fn tell_keeper(&self, domain: &str, command: Command) -> Result<Progress> {
        let (target, record) = self.replication_of(domain)?;
        let Role::Primary(primary) = &record.role else {
            return Err(not_from_here(&target.name));
        };
        if !is_kept(primary) {
            let state = broken(primary);
            let what = format!("replication of domain '{}' is {state}", target.name);
            return Err(Error::new(ErrorKind::DomainState, what).hint(keeper::way_out(&state)));
        }
        keeper::tell(
            Path::new(RUN_DIRECTORY),
            primary.session,
            command,
            KEEPER_LIMIT,
        )
    }

    /// Ends the replication of a domain, on whichever side this is. With `forget` nothing is remembered of it, also of one
    /// that was lost: the domain may be started here again, whatever the other host does.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] if there is nothing to end; what QEMU reports.
    pub fn stop_replication(
        &self,
        domain: &str,
        forget: bool,
        observer: &dyn Observer,
    ) -> Result<()> {
        let (target, record) = self.replication_of(domain)?;
        let is_over = record.claim().is_none();
        match &record.role {
            Role::Primary(Primary {
                state: PrimaryState::Lost { .. },
                peer,
                ..
            }) if !forget => return Err(lost(&target.name, peer)),
            _ if is_over && !forget => {
                let what = format!("replication of domain '{}' is over already", target.name);
                return Err(Error::new(ErrorKind::DomainState, what)
                    .hint("--forget removes what is remembered of it"));
            }
            Role::Primary(primary) if !is_over => {
                self.stop_primary(&target, &record, primary, observer)?;
            }
            Role::Secondary(_) if !is_over => {
                self.replicas().stop(&target.name)?;
            }
            _ => {}
        }
        if forget {
            target.store.forget_replication()?;
        }
        Ok(())
    }

    fn stop_primary(
        &self,
        target: &Target,
        record: &ReplicationRecord,
        primary: &Primary,
        observer: &dyn Observer,
    ) -> Result<()> {
        if is_kept(primary) {
            let run = Path::new(RUN_DIRECTORY);
            return keeper::tell(run, primary.session, Command::Stop, KEEPER_LIMIT).map(drop);
        }
        if matches!(primary.state, PrimaryState::Lost { .. }) {
            return Ok(());
        }
        self.let_go_on(target, observer)?;
        if self.is_there(primary.life)? {
            observer.step("end what is left in QEMU");
            end_mirrors(
                &Worker::Qemu(primary.life),
                &primary.disks,
                Limits::default(),
            )?;
        }
        let limit = primary.pace.heartbeat();
        let told = self.pairs().find(&primary.pair).and_then(|pair| {
            close_secondary(
                &primary.peer,
                &pair.key,
                &target.name,
                primary.session,
                limit,
            )
        });
        if let Err(error) = told {
            observer.note(&format!("the secondary was not told: {}", error.report()));
        }
        let state = PrimaryState::Stopped { at: now() };
        remember_state(target, record, primary, state)
    }

    /// Lets a guest go on that was suspended for a checkpoint when its keeper was killed.
    pub(super) fn let_go_on(&self, target: &Target, observer: &dyn Observer) -> Result<()> {
        let Some(mut record) = target.store.replication()? else {
            return Ok(());
        };
        let Role::Primary(primary) = &mut record.role else {
            return Ok(());
        };
        if is_kept(primary) {
            return Ok(());
        }
        let Some(standing) = primary.standing.take() else {
            return Ok(());
        };
        let guest = DomainGuest {
            ports: &self.ports,
            name: &target.name,
            life: primary.life,
            observer,
        };
        guest.go_on(standing, true).map_err(|error| {
            error.while_doing(format!(
                "let domain '{}' go on, which stood still for a checkpoint",
                target.name
            ))
        })?;
        target.store.remember_replication(&record)?;
        observer.note(
            "the guest goes on: the process that had suspended it for a checkpoint was killed",
        );
        Ok(())
    }

    fn is_there(&self, life: DomainLife) -> Result<bool> {
        let view = self.ports.hypervisor.look(life.domid)?;
        Ok(view.is_some_and(|view| view.life == life && view.state != DomainState::Dying))
    }

    /// The replica of a domain, with what it is to be started with.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] if the domain is not replicated to this host.
    pub fn replica(&self, domain: &str) -> Result<Replica> {
        let store = self.store.domain(domain);
        match store.replication()?.map(|record| record.role) {
            Some(Role::Secondary(replica)) => Ok(replica),
            _ => Err(Error::new(
                ErrorKind::DomainState,
                format!("domain '{domain}' is not replicated to this host"),
            )
            .hint("`xl-ext replication-status` lists those that are")),
        }
    }

    /// Where files go that belong to a replica.
    pub fn replica_directory(&self, domain: &str) -> std::path::PathBuf {
        self.store.domain(domain).replica_directory()
    }

    /// Has a domain go on here, from its last checkpoint. Its disks are closed when it returns.
    ///
    /// # Errors
    /// As [`Replicas::fail_over`].
    pub fn fail_over(&self, domain: &str, observer: &dyn Observer) -> Result<FailedOver> {
        self.replicas().fail_over(domain, observer)
    }

    /// The same without the memory, if the checkpoint has one.
    ///
    /// # Errors
    /// As [`Replicas::fail_over`].
    pub fn fail_over_disks(&self, domain: &str, observer: &dyn Observer) -> Result<FailedOver> {
        self.replicas().fail_over_disks(domain, observer)
    }

    /// libxl's configuration, in JSON, that is in the memory of a replica's last checkpoint, if that is of the memory too. A
    /// primary that goes on may replace it at any time.
    ///
    /// # Errors
    /// What is said of a memory image that is damaged.
    pub fn configuration_in_memory(
        &self,
        domain: &str,
        replica: &Replica,
    ) -> Result<Option<String>> {
        let store = self.store.domain(domain);
        let configuration = replica.memory.as_ref().map(|image| {
            let received = store.replica_memory().kept_in_store(image.id);
            // A failover that was interrupted may have handed it over.
            let handed_over = store.kept_in_store(image.id);
            let is_there = received.image.exists();
            let kept = if is_there { received } else { handed_over };
            kept.configuration()
        });
        configuration.transpose()
    }

    /// Refuses to start a domain that is, or may be, the other host's. If it is not known, that is asked.
    ///
    /// # Errors
    /// [`ErrorKind::Stale`] if it has failed over; [`ErrorKind::DomainState`] if it is a replica, or the other host does not
    /// say.
    pub(super) fn require_startable(&self, target: &Target) -> Result<()> {
        let Some(record) = target.store.replication()? else {
            return Ok(());
        };
        let name = &target.name;
        let refuse = |what: String| Error::new(ErrorKind::DomainState, what);
        match &record.role {
            Role::Primary(primary) => match &primary.state {
                PrimaryState::Stopped { .. } => Ok(()),
                PrimaryState::Lost { .. } => Err(lost(name, &primary.peer)),
                _ => {
                    let pair = self.pairs().find(&primary.pair)?;
                    let limit = primary.pace.heartbeat();
                    let seen = ask_secondary(&primary.peer, &pair.key, name, limit).map_err(|error| {
                        refuse(format!(
                            "domain '{name}' is replicated to {}, which does not say whether it has failed over",
                            primary.peer
                        ))
                        .because(error)
                        .hint(format!(
                            "if it has not, `xl-ext replication-stop {name}` lets the domain be started here"
                        ))
                    })?;
                    match seen.failed_over {
                        None => Ok(()),
                        Some(at) => {
                            let state = PrimaryState::Lost { at };
                            remember_state(target, &record, primary, state)?;
                            Err(lost(name, &primary.peer))
                        }
                    }
                }
            },
            Role::Secondary(replica) => match replica.state {
                ReplicaState::Stopped { .. } | ReplicaState::FailedOver { .. } => Ok(()),
                state => Err(refuse(format!(
                    "domain '{name}' is replicated to this host ({state})"
                ))
                .hint(format!(
                    "`xl-ext replication-failover {name}` has it go on here, from the last checkpoint"
                ))),
            },
        }
    }
}

/// Whether replication may be started over what is known of an earlier one. One that is broken gives way.
fn require_startable_anew(known: Option<&ReplicationRecord>) -> Result<()> {
    let Some(known) = known else { return Ok(()) };
    let (domain, refused) = (&known.domain, ErrorKind::DomainState);
    match &known.role {
        Role::Primary(primary) => match &primary.state {
            PrimaryState::Lost { .. } => Err(lost(domain, &primary.peer)),
            PrimaryState::Stopped { .. } => Ok(()),
            PrimaryState::Broken { .. } if is_kept(primary) => {
                let run = Path::new(RUN_DIRECTORY);
                keeper::tell(run, primary.session, Command::Stop, KEEPER_LIMIT).map(drop)
            }
            state if is_kept(primary) => {
                let what = format!(
                    "domain '{domain}' is replicated to {} ({state})",
                    primary.peer
                );
                Err(Error::new(refused, what).hint(keeper::way_out(state)))
            }
            // Its keeper was killed.
            _ => Ok(()),
        },
        Role::Secondary(replica) => match replica.state {
            ReplicaState::Stopped { .. } | ReplicaState::FailedOver { .. } => Ok(()),
            state => {
                let what = format!("domain '{domain}' is replicated to this host ({state})");
                Err(Error::new(refused, what).hint("stop that, or let it fail over, first"))
            }
        },
    }
}

/// Whether the keeper lives.
fn is_kept(primary: &Primary) -> bool {
    primary.keeper.is_some_and(is_alive)
}

/// How it is without its keeper.
fn broken(primary: &Primary) -> PrimaryState {
    match &primary.state {
        PrimaryState::Starting | PrimaryState::Running { .. } => PrimaryState::Broken {
            at: now(),
            why: match primary.standing {
                None => "the process that kept it going is gone".into(),
                Some(_) => "the process that kept it going is gone, and had suspended the guest for a checkpoint: \
                            `xl-ext replication-resume` or `xl-ext replication-stop` lets that go on"
                    .into(),
            },
        },
        state => state.clone(),
    }
}

fn remember_state(
    target: &Target,
    record: &ReplicationRecord,
    primary: &Primary,
    state: PrimaryState,
) -> Result<()> {
    let role = Role::Primary(Primary {
        state,
        keeper: None,
        standing: None,
        ..primary.clone()
    });
    target.store.remember_replication(&ReplicationRecord {
        role,
        ..record.clone()
    })
}

fn lost(domain: &str, peer: &str) -> Error {
    Error::new(
        ErrorKind::Stale,
        format!("domain '{domain}' has failed over: it is the domain of {peer} now"),
    )
    .hint(format!(
        "destroy it here if it runs; `xl-ext replication-start` on the other host replicates it back; if that host is no \
         more, `xl-ext replication-stop --forget {domain}` lets it be started here, without what it did there"
    ))
}

fn not_from_here(domain: &str) -> Error {
    let what = format!("domain '{domain}' is replicated to this host, not from it");
    Error::new(ErrorKind::DomainState, what).hint("give the command on the other host")
}
