//! A domain that is replicated, on the host that it runs on or comes back to: what is asked of the other host, and refused.

use super::execute;
use super::world::{IMAGES, NAME, Shared};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Stop, Unobserved};
use crate::model::disk::DeviceDisk;
use crate::model::domain::{DomainLife, DomainState, GuestState};
use crate::model::process::ProcessId;
use crate::model::replica::{
    Pace, Primary, PrimaryState, Replica, ReplicaState, ReplicationRecord, Role, Standing,
};
use crate::plan::{CreateRequest, Request};
use crate::replication::qdisk::{DomainGuest, MemoryGuest as _};
use crate::replication::{Pair, Pairs, Replicas, Server};
use crate::snapshot::{Host, ReplicationRequest};
use crate::store::{DomainStore, Store};
use std::net::TcpListener;
use std::sync::atomic::Ordering;

/// The other host: it listens until it is dropped.
struct Other {
    store: Store,
    peer: String,
    stop: Stop,
    thread: Option<std::thread::JoinHandle<()>>,
    _root: tempfile::TempDir,
}

impl Drop for Other {
    fn drop(&mut self) {
        self.stop.0.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

impl Other {
    fn listens(pair: &Pair) -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path().join("other"));
        Pairs::of(&store).keep(pair).unwrap();
        let server = Server::bind("127.0.0.1:0", Replicas::new(store.clone())).unwrap();
        let (peer, stop) = (server.address().unwrap().to_string(), Stop::default());
        let told = stop.clone();
        Self {
            store,
            peer,
            stop,
            thread: Some(std::thread::spawn(move || server.serve(&told).unwrap())),
            _root: root,
        }
    }

    /// As if it had taken the domain over.
    fn knows(&self, generation: u64, state: ReplicaState) {
        let record = ReplicationRecord {
            domain: NAME.into(),
            generation,
            role: Role::Secondary(Replica::of_nothing(state)),
        };
        self.store
            .domain(NAME)
            .remember_replication(&record)
            .unwrap();
    }
}

/// A domain that runs, and a host that has the key.
fn running() -> (tempfile::TempDir, Shared, Pair) {
    let root = tempfile::tempdir().unwrap();
    let shared = Shared::new();
    let pair = Pair::new("p").unwrap();
    Pairs::of(&Store::new(root.path())).keep(&pair).unwrap();
    (root, shared, pair)
}

fn store(root: &tempfile::TempDir) -> DomainStore {
    Store::new(root.path()).domain(NAME)
}

fn pace() -> Pace {
    Pace {
        heartbeat_ms: 20_000,
        interval_ms: None,
    }
}

fn request(peer: &str) -> ReplicationRequest {
    ReplicationRequest {
        peer: peer.into(),
        pair: None,
        pace: pace(),
        memory: false,
        domain_config: None,
    }
}

fn prepare(host: &Host, peer: &str) -> Result<ReplicationRecord> {
    host.prepare_replication(NAME, &request(peer), &Unobserved)
}

fn state(root: &tempfile::TempDir) -> PrimaryState {
    match store(root).replication().unwrap().unwrap().role {
        Role::Primary(primary) => primary.state,
        Role::Secondary(other) => panic!("{other:?}"),
    }
}

/// As it is after a power cut in the middle of replication.
fn cut(root: &tempfile::TempDir, record: &ReplicationRecord, state: PrimaryState) {
    let Role::Primary(primary) = &record.role else {
        panic!("{record:?}");
    };
    let role = Role::Primary(Primary {
        state,
        ..primary.clone()
    });
    let record = ReplicationRecord {
        role,
        ..record.clone()
    };
    store(root).remember_replication(&record).unwrap();
}

/// As `xl-ext` under the name xl asks before it starts the domain.
fn start(host: &Host) -> Result<()> {
    let disk = |(path, vdev): (&str, &str)| DeviceDisk {
        pdev_path: Some(path.into()),
        vdev: Some(vdev.into()),
        readwrite: 1,
        ..DeviceDisk::default()
    };
    let disks: Vec<_> = IMAGES.into_iter().zip(["xvda", "xvdb"]).map(disk).collect();
    host.layers_for_start(NAME, &disks, &Unobserved).map(drop)
}

fn says(error: &Error, words: &[&str]) {
    let report = error.report();
    for word in words {
        assert!(report.contains(word), "{report}");
    }
}

#[test]
fn each_start_is_newer_than_both_sides_know_and_nothing_else_is_done_meanwhile() {
    let (root, shared, pair) = running();
    let other = Other::listens(&pair);
    let host = shared.host(root.path());
    let first = prepare(&host, &other.peer).unwrap();
    assert_eq!(first.generation, 1);
    assert_eq!(state(&root), PrimaryState::Starting);
    let create = Request::Create(CreateRequest::default());
    let refused = execute(&host, &create).unwrap_err();
    says(
        &refused,
        &["is replicated to 127.0.0.1", "replication-stop"],
    );
    other.knows(41, ReplicaState::Stopped { at: 5 });
    assert_eq!(prepare(&host, &other.peer).unwrap().generation, 42);
    // Nobody keeps it going: it can be ended, and the other host need not hear of it.
    drop(other);
    shared.0.borrow_mut().domains.clear();
    host.stop_replication(NAME, false, &Unobserved).unwrap();
    assert!(matches!(state(&root), PrimaryState::Stopped { .. }));
    let again = host.stop_replication(NAME, false, &Unobserved).unwrap_err();
    says(&again, &["over already"]);
    start(&host).unwrap();
    host.stop_replication(NAME, true, &Unobserved).unwrap();
    assert_eq!(store(&root).replication().unwrap(), None);
}

#[test]
fn a_domain_that_may_be_the_other_hosts_is_not_started_before_that_has_said_so() {
    let (root, shared, pair) = running();
    let other = Other::listens(&pair);
    let host = shared.host(root.path());
    let record = prepare(&host, &other.peer).unwrap();
    shared.0.borrow_mut().domains.clear();
    let since = PrimaryState::Running { since: 3 };
    cut(&root, &record, since.clone());
    start(&host).unwrap();
    assert_eq!(state(&root), since, "it goes on");
    other.knows(2, ReplicaState::Replicating);
    start(&host).unwrap();
    other.knows(2, ReplicaState::FailedOver { at: 9 });
    says(
        &start(&host).unwrap_err(),
        &["has failed over", &other.peer, "--forget"],
    );
    assert_eq!(state(&root), PrimaryState::Lost { at: 9 });
    // Once it is known nobody has to be asked.
    drop(other);
    assert_eq!(start(&host).unwrap_err().kind(), ErrorKind::Stale);
    shared.start();
    assert_eq!(
        prepare(&host, "127.0.0.1:1").unwrap_err().kind(),
        ErrorKind::Stale
    );
    assert!(host.stop_replication(NAME, false, &Unobserved).is_err());
    host.stop_replication(NAME, true, &Unobserved).unwrap();
    assert_eq!(store(&root).replication().unwrap(), None);
}

/// The domain, how it is, and whether xl's monitor is held.
fn look(shared: &Shared) -> (DomainLife, DomainState, ProcessId, bool) {
    let world = shared.0.borrow();
    let (domid, domain) = world.domains.first_key_value().unwrap();
    let life = DomainLife {
        domid: *domid,
        uuid: domain.uuid,
    };
    (life, domain.state(), domain.monitor, domain.monitor_held)
}

#[test]
fn a_guest_gives_its_memory_and_goes_on_as_it_was() {
    for state in [DomainState::Running, DomainState::Paused] {
        let shared = Shared::new();
        let ports = shared.ports();
        let (life, ..) = look(&shared);
        if state == DomainState::Paused {
            ports.toolstack.pause(life.domid).unwrap();
        }
        let guest = DomainGuest {
            ports: &ports,
            name: NAME,
            life,
            observer: &Unobserved,
        };
        let memory = guest.memory().unwrap();
        let mut taken = Vec::new();
        let mut take = |bytes: &[u8]| -> Result<()> {
            taken.extend_from_slice(bytes);
            Ok(())
        };
        guest.suspend(&memory, &mut take).unwrap();
        assert!(!taken.is_empty());
        assert_eq!(look(&shared).1, DomainState::Suspended);
        guest.go_on(memory.standing, false).unwrap();
        let (_, after, _, is_held) = look(&shared);
        assert_eq!((after, is_held), (state, false));
        // Whoever takes it takes no more: the guest may be suspended then, and goes on.
        let failed = guest.suspend(&memory, &mut |_| {
            Err(Error::new(ErrorKind::Toolstack, "enough"))
        });
        says(&failed.unwrap_err(), &["enough"]);
        guest.go_on(memory.standing, true).unwrap();
        let (_, after, _, is_held) = look(&shared);
        assert_eq!((after, is_held), (state, false));
    }
}

/// As after a `kill -9` of the keeper in the middle of a checkpoint.
#[test]
fn a_guest_whose_keeper_was_killed_while_it_was_suspended_goes_on_with_the_next_command() {
    for by_stop in [false, true] {
        let (root, shared, pair) = running();
        let other = Other::listens(&pair);
        let host = shared.host(root.path());
        let mut record = prepare(&host, &other.peer).unwrap();
        let (life, _, monitor, _) = look(&shared);
        if let Role::Primary(primary) = &mut record.role {
            primary.standing = Some(Standing {
                guest: GuestState::Running,
                monitor: Some(monitor),
            });
        }
        cut(&root, &record, PrimaryState::Running { since: 3 });
        {
            let mut world = shared.0.borrow_mut();
            let domain = world.domains.get_mut(&life.domid).unwrap();
            (domain.monitor_held, domain.suspended) = (true, true);
        }
        if by_stop {
            // Its QEMU is none that could be asked.
            let _ = host.stop_replication(NAME, false, &Unobserved);
        } else {
            let create = Request::Create(CreateRequest::default());
            says(&execute(&host, &create).unwrap_err(), &["is replicated to"]);
        }
        let (_, state, _, is_held) = look(&shared);
        assert_eq!((state, is_held), (DomainState::Running, false));
        let record = store(&root).replication().unwrap().unwrap();
        assert!(matches!(record.role, Role::Primary(primary) if primary.standing.is_none()));
    }
}

#[test]
fn a_host_that_does_not_answer_is_no_leave_to_start() {
    let (root, shared, pair) = running();
    let other = Other::listens(&pair);
    let host = shared.host(root.path());
    let record = prepare(&host, &other.peer).unwrap();
    shared.0.borrow_mut().domains.clear();
    let why = "it was cut off".into();
    cut(&root, &record, PrimaryState::Broken { at: 3, why });
    drop(other);
    // Taken by nobody, so that it is refused at once.
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut elsewhere = record.clone();
    if let Role::Primary(primary) = &mut elsewhere.role {
        primary.peer = free.to_string();
    }
    cut(&root, &elsewhere, PrimaryState::Running { since: 3 });
    says(
        &start(&host).unwrap_err(),
        &[
            "does not say whether it has failed over",
            "replication-stop g",
        ],
    );
    host.stop_replication(NAME, false, &Unobserved).unwrap();
    start(&host).unwrap();
}

#[test]
fn one_that_failed_over_while_it_was_asked_has_lost_and_a_replica_is_nobodys_to_start() {
    let (root, shared, pair) = running();
    let other = Other::listens(&pair);
    let host = shared.host(root.path());
    other.knows(7, ReplicaState::FailedOver { at: 9 });
    assert_eq!(
        prepare(&host, &other.peer).unwrap_err().kind(),
        ErrorKind::Stale
    );
    assert_eq!(state(&root), PrimaryState::Lost { at: 9 });
    // The other host's own look at it.
    let there = shared.host(other.store.root());
    start(&there).unwrap();
    for state in [
        ReplicaState::Receiving,
        ReplicaState::Replicating,
        ReplicaState::FailingOver { at: 9 },
    ] {
        other.knows(7, state);
        says(
            &start(&there).unwrap_err(),
            &["is replicated to this host", "replication-failover g"],
        );
        let refused = there.prepare_replication(NAME, &request("127.0.0.1:1"), &Unobserved);
        says(&refused.unwrap_err(), &["is replicated to this host"]);
    }
}
