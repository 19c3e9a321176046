//! Two hosts on one: a primary's keeper, and a secondary that listens, with what each has written down.

use super::lab::{Lab, MIB, Quiet};
use crate::error::{ErrorKind, Result};
use crate::event::{Stop, Unobserved};
use crate::model::disk::DiskTarget;
use crate::model::domain::DomainLife;
use crate::model::replica::{
    Pace, Primary, PrimaryState, Replica, ReplicaState, ReplicationRecord, Role,
};
use crate::replication::keeper::{self, Command, Keeper, Setup};
use crate::replication::{Key, Pair, Pairs, Replicas, Server, ask_secondary};
use crate::store::Store;
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use uuid::Uuid;

pub(super) const DOMAIN: &str = "web 1";

/// Longer than anything takes that is not silent.
pub(super) const PATIENT: u64 = 60_000;

/// Tells it when it is dropped, be it that a test has failed.
struct Ends(Stop);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

pub(super) struct Hosts {
    // Dropped in this order: who listens, the QEMUs.
    listening: Option<(JoinHandle<()>, Stop)>,
    pub(super) replicas: Replicas,
    pub(super) here: Store,
    pub(super) peer: String,
    pub(super) key: Key,
    interval_ms: Option<u64>,
    pub(super) lab: Lab,
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.stop_listening();
        // A test that fails leaves its sidecar.
        let _ = self.replicas.stop(DOMAIN);
    }
}

impl Hosts {
    pub(super) fn new(lengths: &[usize]) -> Self {
        let lab = Lab::new(lengths);
        let (here, there) = (Store::new(lab.path("here")), Store::new(lab.path("there")));
        let pair = Pair::new("pair").unwrap();
        Pairs::of(&there).keep(&pair).unwrap();
        let mut replicas = Replicas::new(there);
        replicas.run = lab.path("run");
        replicas.limits = super::lab::PATIENT;
        let mut hosts = Self {
            listening: None,
            replicas,
            here,
            peer: String::new(),
            key: pair.key,
            interval_ms: None,
            lab,
        };
        hosts.listen();
        hosts
    }

    fn listen(&mut self) {
        let server = Server::bind("127.0.0.1:0", self.replicas.clone()).unwrap();
        self.peer = server.address().unwrap().to_string();
        let stop = Stop::default();
        let told = stop.clone();
        let thread = std::thread::spawn(move || server.serve(&told).unwrap());
        self.listening = Some((thread, stop));
    }

    fn stop_listening(&mut self) {
        if let Some((thread, stop)) = self.listening.take() {
            stop.0.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }

    pub(super) fn record(&self, generation: u64, heartbeat_ms: u64) -> ReplicationRecord {
        ReplicationRecord {
            domain: DOMAIN.into(),
            generation,
            role: Role::Primary(Primary {
                session: Uuid::new_v4(),
                peer: self.peer.clone(),
                pair: "pair".into(),
                pace: Pace {
                    heartbeat_ms,
                    interval_ms: self.interval_ms,
                },
                disks: self.lab.disks.clone(),
                memory: false,
                life: DomainLife {
                    domid: 7,
                    uuid: Uuid::nil(),
                },
                domain_config: Some("memory=64".into()),
                keeper: None,
                standing: None,
                state: PrimaryState::Starting,
            }),
        }
    }

    pub(super) fn setup(&self, record: ReplicationRecord) -> Setup<'_> {
        Setup {
            store: self.here.domain(DOMAIN),
            run: &self.replicas.run,
            record,
            key: self.key.clone(),
            qemu: self.lab.qemu(),
            guest: &Quiet,
            configuration: "{\"c_info\":{}}".into(),
        }
    }

    fn start(&self, generation: u64, heartbeat_ms: u64) -> Result<Keeper<'_>> {
        let record = self.record(generation, heartbeat_ms);
        Keeper::start(self.setup(record), &Unobserved)
    }

    pub(super) fn replica(&self) -> (u64, Replica) {
        let record = self.replicas.store.domain(DOMAIN).replication().unwrap();
        match record.unwrap() {
            ReplicationRecord {
                generation,
                role: Role::Secondary(replica),
                ..
            } => (generation, replica),
            other => panic!("{other:?}"),
        }
    }

    /// What the primary's store says of itself.
    pub(super) fn written_down(&self) -> PrimaryState {
        let record = self.here.domain(DOMAIN).replication().unwrap();
        match record.unwrap().role {
            Role::Primary(primary) => primary.state,
            Role::Secondary(other) => panic!("{other:?}"),
        }
    }

    pub(super) fn content_there(&self) -> Vec<Vec<u8>> {
        let read = |disk: &DiskTarget| std::fs::read(&disk.image).unwrap();
        self.replica().1.disks.iter().map(read).collect()
    }

    pub(super) fn signal_sidecar(&self, signal: Signal) {
        let id = self.replica().1.id.simple().to_string();
        let directory = self.replicas.run.join(format!("xl-ext-repl-{id}"));
        let sidecar = crate::port::Sidecar::left_in(&directory).unwrap().unwrap();
        let pid = rustix::process::Pid::from_raw(sidecar.pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Nothing of replication is left in the primary's QEMU.
    pub(super) fn is_alone(&self) -> bool {
        self.lab.nodes_of_mirrors().is_empty()
    }
}

/// The main thing: the secondary is the last checkpoint to the byte, and the old primary learns that it has lost.
#[test]
fn a_domain_fails_over_to_the_last_checkpoint_and_its_old_primary_has_lost() {
    let hosts = Hosts::new(&[4 * MIB, 2 * MIB]);
    let mut keeper = hosts.start(5, PATIENT).unwrap();
    assert_eq!(hosts.replica().1.checkpoint.unwrap().number, 1);
    hosts.lab.write(0, 4096, 65536, 1);
    hosts.lab.write(1, MIB, 512, 1);
    assert_eq!(keeper.checkpoint().unwrap().number, 2);
    let kept = hosts.lab.content();
    hosts.lab.write(0, 0, 3 * MIB, 2);
    hosts.lab.write(1, 0, MIB, 2);
    assert!(
        hosts.content_there() == hosts.lab.content(),
        "a write is over when both have it"
    );
    keeper.check();
    assert!(matches!(
        keeper.progress().state,
        PrimaryState::Running { .. }
    ));

    let failed_over = hosts.replicas.fail_over(DOMAIN, &Unobserved).unwrap();
    assert!(hosts.content_there() == kept, "it is of another instant");
    assert_eq!(
        failed_over.replica.domain_config.as_deref(),
        Some("memory=64")
    );
    assert_eq!(failed_over.replica.configuration, "{\"c_info\":{}}");
    let (generation, replica) = hosts.replica();
    assert_eq!((generation, failed_over.generation), (6, 6));
    assert_eq!(
        replica.state,
        ReplicaState::FailedOver { at: failed_over.at }
    );
    assert!(!hosts.replicas.is_served(DOMAIN, &replica).unwrap());
    let again = hosts.replicas.fail_over(DOMAIN, &Unobserved).unwrap_err();
    assert!(
        again.report().contains("failed over to this host already"),
        "{}",
        again.report()
    );

    // The old primary lives: it goes on alone, and is told.
    hosts.lab.write(0, 0, 512, 3);
    keeper.check();
    let lost = PrimaryState::Lost { at: failed_over.at };
    assert_eq!(keeper.progress().state, lost);
    assert_eq!(hosts.written_down(), lost);
    assert!(hosts.is_alone());
    drop(keeper);
    // Nor does it come back, whatever generation it makes up.
    let refused = hosts.start(99, PATIENT).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Stale, "{}", refused.report());
    assert_eq!(hosts.written_down(), lost);
    let seen = ask_secondary(&hosts.peer, &hosts.key, DOMAIN, Duration::from_secs(20));
    assert_eq!(seen.unwrap().failed_over, Some(failed_over.at));
    assert!(
        hosts.content_there() == kept,
        "a primary that has lost writes to it"
    );
}

/// Killed, both of them: the failover needs neither.
#[test]
fn who_listened_and_who_kept_it_going_may_be_gone() {
    let mut hosts = Hosts::new(&[2 * MIB]);
    let kept = {
        let keeper = hosts.start(1, PATIENT).unwrap();
        let kept = hosts.lab.content();
        hosts.lab.write(0, 0, MIB, 2);
        drop(keeper);
        kept
    };
    hosts.stop_listening();
    // Nobody carries anything any more: the guest goes on.
    hosts.lab.write(0, 0, 512, 3);
    hosts.replicas.fail_over(DOMAIN, &Unobserved).unwrap();
    assert!(hosts.content_there() == kept);
}

/// Until everything is copied anew, the secondary keeps the checkpoint that it has.
#[test]
fn after_a_break_it_goes_on_and_the_checkpoint_stays_until_there_is_a_newer_one() {
    let mut hosts = Hosts::new(&[4 * MIB]);
    let first = hosts.lab.content();
    drop(hosts.start(1, PATIENT).unwrap());
    hosts.stop_listening();
    hosts.lab.write(0, 0, 2 * MIB, 4);
    hosts.listen();
    let before = hosts.replica().1;
    let refused = hosts.start(1, PATIENT).map(drop).unwrap_err();
    assert!(
        refused.report().contains("is not newer"),
        "{}",
        refused.report()
    );
    {
        let mut keeper = hosts.start(2, PATIENT).unwrap();
        assert_eq!(hosts.replica().1.id, before.id, "it is the same QEMU");
        assert_eq!(keeper.progress().checkpoint.unwrap().number, 2);
        hosts.lab.write(0, 3 * MIB, 4096, 5);
        assert_eq!(keeper.checkpoint().unwrap().number, 3);
    }
    let kept = hosts.lab.content();
    assert!(kept != first);
    hosts.lab.write(0, 0, MIB, 6);
    hosts.replicas.fail_over(DOMAIN, &Unobserved).unwrap();
    assert!(hosts.content_there() == kept);
}

/// A secondary that is there and says nothing: the guest's write is held up, and then goes on, without anybody's help.
#[test]
fn a_silent_secondary_is_cut_off_and_the_guest_goes_on() {
    let hosts = Hosts::new(&[2 * MIB]);
    let mut keeper = hosts.start(1, 3_000).unwrap();
    let kept = hosts.lab.content();
    hosts.signal_sidecar(Signal::STOP);
    let mut write = hosts.lab.writer(0).begin(0, 4096, 9);
    assert!(write.wait().unwrap().success(), "the guest's write failed");
    keeper.check();
    let PrimaryState::Broken { why, .. } = keeper.progress().state else {
        panic!("{:?}", keeper.progress());
    };
    assert!(why.contains("it says nothing"), "{why}");
    assert!(hosts.is_alone());
    assert!(matches!(hosts.written_down(), PrimaryState::Broken { .. }));
    let made = keeper.checkpoint().map(drop).unwrap_err();
    assert_eq!(made.kind(), ErrorKind::DomainState, "{}", made.report());
    hosts.signal_sidecar(Signal::CONT);
    hosts.replicas.fail_over(DOMAIN, &Unobserved).unwrap();
    assert!(hosts.content_there() == kept);
}

#[test]
fn who_has_no_key_or_another_start_gets_nothing() {
    let hosts = Hosts::new(&[MIB]);
    let keeper = hosts.start(1, PATIENT).unwrap();
    // What an NBD client says first, and what somebody says who has made up a key.
    let mut nbd = u64::from_be_bytes(*b"NBDMAGIC").to_be_bytes().to_vec();
    nbd.extend([0; 100]);
    for words in [
        &nbd[..],
        &[1; 48],
        b"GET / HTTP/1.0\r\n\r\n".repeat(5).as_slice(),
    ] {
        let mut stranger = TcpStream::connect(&hosts.peer).unwrap();
        stranger.write_all(words).unwrap();
        let mut heard = Vec::new();
        let _ = stranger.read_to_end(&mut heard);
        assert_eq!(heard, b"", "{words:?}");
    }
    let stranger = Key::random().unwrap();
    let limit = Duration::from_secs(20);
    assert!(ask_secondary(&hosts.peer, &stranger, DOMAIN, limit).is_err());
    // Somebody with a key of his own is told nothing of a domain that is another pair's.
    let other = Pair::new("other").unwrap();
    Pairs::of(&hosts.replicas.store).keep(&other).unwrap();
    let refused = ask_secondary(&hosts.peer, &other.key, DOMAIN, limit).unwrap_err();
    assert!(
        refused.report().contains("another pair"),
        "{}",
        refused.report()
    );
    let record = hosts.record(9, PATIENT);
    let setup = Setup {
        key: other.key.clone(),
        // A domain of the same name on another host.
        store: Store::new(hosts.lab.path("elsewhere")).domain(DOMAIN),
        ..hosts.setup(record)
    };
    // It would end what is left of mirrors in the same QEMU.
    let setup = Setup {
        qemu: crate::port::Worker::Daemon(hosts.lab.path("primary")),
        ..setup
    };
    drop(keeper);
    let refused = Keeper::start(setup, &Unobserved).map(drop).unwrap_err();
    assert!(
        refused.report().contains("another pair"),
        "{}",
        refused.report()
    );
    assert_eq!(hosts.replica().0, 1);
    // Without any key nobody listens.
    let keyless = Replicas::new(Store::new(hosts.lab.path("keyless")));
    assert!(Server::bind("127.0.0.1:0", keyless).map(drop).is_err());
}

#[test]
fn an_image_of_another_length_is_refused_before_anything_starts() {
    let mut hosts = Hosts::new(&[2 * MIB, MIB]);
    let images = hosts.lab.path("images");
    hosts.replicas.images = Some(images.clone());
    hosts.stop_listening();
    hosts.listen();
    let own = images.join("web%201");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(own.join("xvdb.raw"), vec![7; MIB - 512]).unwrap();
    let refused = hosts.start(1, PATIENT).map(drop).unwrap_err();
    let report = refused.report();
    assert!(
        report.contains("has 1048064 bytes here, and the primary's disk 1048576"),
        "{report}"
    );
    assert!(hosts.is_alone());
    assert!(
        hosts
            .replicas
            .store
            .domain(DOMAIN)
            .replication()
            .unwrap()
            .is_none()
    );
    assert!(matches!(hosts.written_down(), PrimaryState::Broken { .. }));
    std::fs::write(own.join("xvdb.raw"), vec![7; MIB]).unwrap();
    let keeper = hosts.start(1, PATIENT).unwrap();
    let kept = hosts.lab.content();
    drop(keeper);
    hosts.replicas.fail_over(DOMAIN, &Unobserved).unwrap();
    assert_eq!(&*hosts.replica().1.disks[1].image, own.join("xvdb.raw"));
    assert!(hosts.content_there() == kept);
}

#[test]
fn a_keeper_does_as_it_is_told_until_it_is_told_to_stop() {
    let mut hosts = Hosts::new(&[MIB]);
    hosts.interval_ms = Some(100);
    let run = hosts.replicas.run.clone();
    let limit = Duration::from_secs(60);
    let session = Uuid::new_v4();
    let nobody = keeper::tell(&run, session, Command::Checkpoint, limit).unwrap_err();
    assert_eq!(
        nobody.kind(),
        ErrorKind::DomainState,
        "checkpoint before start"
    );
    assert_eq!(
        hosts.replicas.stop(DOMAIN).unwrap_err().kind(),
        ErrorKind::DomainState
    );
    let failover = hosts.replicas.fail_over(DOMAIN, &Unobserved).unwrap_err();
    assert!(failover.report().contains("is not replicated to this host"));

    let keeper = hosts.start(1, PATIENT).unwrap();
    let Role::Primary(primary) = hosts
        .here
        .domain(DOMAIN)
        .replication()
        .unwrap()
        .unwrap()
        .role
    else {
        panic!("it is the primary");
    };
    assert_eq!(
        primary.keeper.map(|it| it.pid),
        i32::try_from(std::process::id()).ok()
    );
    let (stop, session) = (Stop::default(), primary.session);
    std::thread::scope(|scope| {
        let ends = Ends(stop.clone());
        let run = &run;
        scope.spawn(move || {
            let _ends = ends;
            let tell = |command| loop {
                match keeper::tell(run, session, command, limit) {
                    // It may not have begun to listen.
                    Err(error) if error.kind() == ErrorKind::DomainState => {}
                    told => break told.unwrap(),
                }
            };
            let before = tell(Command::Status).checkpoint.unwrap().number;
            let told = tell(Command::Checkpoint);
            assert!(told.checkpoint.unwrap().number > before);
            assert!(told.pause_us.is_some());
            assert!(matches!(
                tell(Command::Stop).state,
                PrimaryState::Stopped { .. }
            ));
        });
        keeper.run(&stop).unwrap();
    });
    assert!(hosts.is_alone());
    assert!(matches!(hosts.written_down(), PrimaryState::Stopped { .. }));
    assert!(matches!(
        hosts.replica().1.state,
        ReplicaState::Stopped { .. }
    ));
    let failover = hosts.replicas.fail_over(DOMAIN, &Unobserved).unwrap_err();
    assert!(
        failover.report().contains("is stopped"),
        "{}",
        failover.report()
    );
    assert!(
        !run.join(format!("xl-ext-keep-{}", primary.session.simple()))
            .exists()
    );
}

/// Where a failover was interrupted: what is written down then, and what has been done of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interrupted {
    /// It has lost, and nothing more was done.
    AtItsFirstWord,
    /// The disks are set back, and it is not written down yet.
    SetBack,
    /// It is, and the sidecar has them open.
    Merged,
    /// The same, and then the sidecar was killed.
    SidecarKilled,
}

fn interrupted(at: Interrupted) {
    let hosts = Hosts::new(&[2 * MIB]);
    let mut keeper = hosts.start(1, PATIENT).unwrap();
    hosts.lab.write(0, 0, MIB, 1);
    keeper.checkpoint().unwrap();
    let kept = hosts.lab.content();
    hosts.lab.write(0, 512, MIB, 2);
    let own = hosts.replicas.store.domain(DOMAIN);
    let (generation, mut replica) = hosts.replica();
    let mut write_down = |state| {
        replica.state = state;
        let role = Role::Secondary(replica.clone());
        let generation = generation + 1;
        let domain = DOMAIN.into();
        let record = ReplicationRecord {
            domain,
            generation,
            role,
        };
        own.remember_replication(&record).unwrap();
        replica.clone()
    };
    let begun = write_down(ReplicaState::FailingOver { at: 77 });
    keeper.check();
    assert_eq!(
        keeper.progress().state,
        PrimaryState::Lost { at: 77 },
        "{at:?}"
    );
    if at != Interrupted::AtItsFirstWord {
        let mut secondary = hosts.replicas.adopt(&own, &begun).unwrap();
        secondary.set_back_durably().unwrap();
        secondary.leave();
    }
    if matches!(at, Interrupted::Merged | Interrupted::SidecarKilled) {
        write_down(ReplicaState::Merged { at: 77 });
    }
    if at == Interrupted::SidecarKilled {
        hosts.signal_sidecar(Signal::KILL);
        while hosts.replicas.is_served(DOMAIN, &begun).unwrap() {
            std::thread::yield_now();
        }
    }
    let failed_over = hosts.replicas.fail_over(DOMAIN, &Unobserved).unwrap();
    assert_eq!((failed_over.at, failed_over.generation), (77, 2), "{at:?}");
    assert!(
        hosts.content_there() == kept,
        "{at:?}: it is of another instant"
    );
    let (_, replica) = hosts.replica();
    assert_eq!(replica.state, ReplicaState::FailedOver { at: 77 });
    assert!(!hosts.replicas.is_served(DOMAIN, &replica).unwrap());
}

#[test]
fn a_failover_that_was_interrupted_goes_on() {
    for at in [
        Interrupted::AtItsFirstWord,
        Interrupted::SetBack,
        Interrupted::Merged,
        Interrupted::SidecarKilled,
    ] {
        interrupted(at);
    }
}

/// Whose QEMU was killed has nothing to fail over to: nothing is written down, so that the primary may go on.
#[test]
fn without_what_was_kept_there_is_no_failover_and_the_primary_has_not_lost() {
    let hosts = Hosts::new(&[MIB]);
    drop(hosts.start(1, PATIENT).unwrap());
    hosts.signal_sidecar(Signal::KILL);
    let (_, replica) = hosts.replica();
    while hosts.replicas.is_served(DOMAIN, &replica).unwrap() {
        std::thread::yield_now();
    }
    let refused = hosts.replicas.fail_over(DOMAIN, &Unobserved).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NeedsRepair);
    assert_eq!(hosts.replica(), (1, replica.clone()));
    let keeper = hosts.start(2, PATIENT).unwrap();
    let anew = hosts.replica().1;
    assert!(anew.id != replica.id && anew.checkpoint.unwrap().number == 1);
    let kept = hosts.lab.content();
    drop(keeper);
    hosts.replicas.fail_over(DOMAIN, &Unobserved).unwrap();
    assert!(hosts.content_there() == kept);
}

/// Strangers take all places there are for those who have yet to show a key. What runs needs none of these.
#[test]
fn a_port_that_is_flooded_does_not_break_what_runs() {
    let hosts = Hosts::new(&[MIB]);
    let mut keeper = hosts.start(1, PATIENT).unwrap();
    let flood: Vec<_> = (0..40)
        .map(|_| TcpStream::connect(&hosts.peer).unwrap())
        .collect();
    hosts.lab.write(0, 0, 4096, 3);
    keeper.check();
    assert_eq!(keeper.checkpoint().unwrap().number, 2);
    assert!(matches!(
        keeper.progress().state,
        PrimaryState::Running { .. }
    ));
    // Those beyond the number of places are sent away at once, the others after a while: none hears anything.
    for mut stranger in flood {
        let mut heard = Vec::new();
        let _ = stranger.read_to_end(&mut heard);
        assert_eq!(heard, b"");
    }
}
