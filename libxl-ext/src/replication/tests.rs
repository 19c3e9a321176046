//! The registry with replications that only note what they are told.

use super::*;
use crate::error::{Error, ErrorKind, Result};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// What all the replications of a test share.
#[derive(Default)]
struct Seen {
    /// The calls, such as "b.start".
    calls: Vec<String>,
    /// Those that fail.
    failing: BTreeSet<String>,
}

type Shared = Arc<Mutex<Seen>>;

struct Disk {
    name: &'static str,
    seen: Shared,
}

impl Disk {
    fn call(&self, what: &str) -> Result<()> {
        let call = format!("{}.{what}", self.name);
        let mut seen = self.seen.lock().unwrap();
        seen.calls.push(call.clone());
        if seen.failing.contains(&call) {
            return Err(Error::new(ErrorKind::Io, format!("{call} failed")).hint("mend it"));
        }
        Ok(())
    }
}

impl ReplicationOps for Disk {
    fn start(&mut self, mode: Mode) -> Result<()> {
        assert_eq!(mode, Mode::Secondary);
        self.call("start")
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.call("checkpoint")
    }

    fn error(&mut self) -> Result<()> {
        self.call("error")
    }

    fn stop(&mut self, failover: bool) -> Result<()> {
        self.call(if failover { "failover" } else { "stop" })
    }
}

/// A registry of the three disks a, b and c.
struct Set {
    registry: Registry,
    ids: Vec<StateId>,
    seen: Shared,
}

impl Set {
    fn new() -> Self {
        let mut set = Self {
            registry: Registry::new(),
            ids: Vec::new(),
            seen: Shared::default(),
        };
        for name in ["a", "b", "c"] {
            let id = set.add(name).unwrap();
            set.ids.push(id);
        }
        set
    }

    /// One that replicates.
    fn running() -> Self {
        let set = Self::new();
        set.start().unwrap();
        assert_eq!(set.calls(), "a.start b.start c.start");
        set
    }

    fn add(&self, name: &'static str) -> Result<StateId> {
        let seen = Arc::clone(&self.seen);
        self.registry.new_state(name, Box::new(Disk { name, seen }))
    }

    fn start(&self) -> Result<()> {
        self.registry.start_all(Mode::Secondary)
    }

    /// From now on these calls fail, and no others.
    fn fail(&self, calls: &[&str]) {
        self.seen.lock().unwrap().failing = calls.iter().map(|&call| call.to_owned()).collect();
    }

    /// The calls since this was asked for last.
    fn calls(&self) -> String {
        std::mem::take(&mut self.seen.lock().unwrap().calls).join(" ")
    }

    fn phases(&self) -> Vec<Phase> {
        let phases = self.ids.iter().map(|id| self.registry.phase(*id).unwrap());
        phases.collect()
    }
}

/// It was refused because of a phase, nobody was called, and the text says what can be done.
fn assert_refused(set: &Set, result: Result<()>, way_out: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DomainState, "{}", error.report());
    assert!(error.report().contains(way_out), "{}", error.report());
    assert_eq!(set.calls(), "");
}

const UNCERTAIN: Phase = Phase::Uncertain { failover: false };
const HALF_FAILED_OVER: Phase = Phase::Uncertain { failover: true };

#[test]
fn calls_go_to_all_in_the_order_in_which_they_were_made() {
    let set = Set::running();
    set.registry.checkpoint_all().unwrap();
    assert_eq!(set.calls(), "a.checkpoint b.checkpoint c.checkpoint");
    set.registry.error_all().unwrap();
    assert_eq!(set.calls(), "a.error b.error c.error");
    set.registry.stop_all(false).unwrap();
    assert_eq!(set.calls(), "a.stop b.stop c.stop");
    set.start().unwrap();
    set.calls();
    set.registry.stop_all(true).unwrap();
    assert_eq!(set.calls(), "a.failover b.failover c.failover");
    assert_eq!(set.phases(), [Phase::FailedOver; 3]);
}

#[test]
fn a_start_that_fails_takes_back_those_before_it() {
    let set = Set::new();
    set.fail(&["c.start"]);
    let error = set.start().unwrap_err();
    assert_eq!(set.calls(), "a.start b.start c.start b.stop a.stop");
    assert_eq!(set.phases(), [Phase::Stopped; 3]);
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(
        error.report(),
        "replication 'c' did not start as secondary: c.start failed\n  mend it"
    );
    set.fail(&[]);
    set.start().unwrap();
}

#[test]
fn what_could_not_be_taken_back_is_said_and_can_be_stopped_later() {
    let set = Set::new();
    set.fail(&["c.start", "b.stop"]);
    let report = set.start().unwrap_err().report();
    assert_eq!(set.calls(), "a.start b.start c.start b.stop a.stop");
    assert!(
        report.starts_with("replication 'c' did not start"),
        "{report}"
    );
    assert!(
        report.contains("replication 'b' did not stop: b.stop failed"),
        "{report}"
    );
    let expected = [Phase::Stopped, UNCERTAIN, Phase::Stopped];
    assert_eq!(set.phases(), expected);

    assert_refused(&set, set.registry.stop_all(true), "without failover");
    assert_refused(
        &set,
        set.registry.checkpoint_all(),
        "start replication first",
    );
    set.registry.error_all().unwrap();
    assert_eq!(set.calls(), "b.error");
    set.fail(&[]);
    set.registry.stop_all(false).unwrap();
    assert_eq!(set.calls(), "b.stop");
    assert_eq!(set.phases(), [Phase::Stopped; 3]);
}

#[test]
fn a_checkpoint_and_a_question_end_at_the_first_error() {
    let set = Set::running();
    set.fail(&["b.checkpoint", "c.checkpoint", "b.error", "c.error"]);
    let error = set.registry.checkpoint_all().unwrap_err();
    assert!(
        error.report().contains("b.checkpoint failed"),
        "{}",
        error.report()
    );
    let error = set.registry.error_all().unwrap_err();
    assert!(
        error.report().contains("'b' has an error: b.error failed"),
        "{}",
        error.report()
    );
    assert_eq!(set.calls(), "a.checkpoint b.checkpoint a.error b.error");
    assert_eq!(set.phases(), [Phase::Running; 3]);
}

#[test]
fn a_failover_that_fails_goes_on_with_the_others_and_is_repeated_as_one() {
    let set = Set::running();
    set.fail(&["a.failover", "b.failover"]);
    let report = set.registry.stop_all(true).unwrap_err().report();
    assert_eq!(set.calls(), "a.failover b.failover c.failover");
    assert!(
        report.starts_with("replication 'a' did not fail over: a.failover"),
        "{report}"
    );
    assert!(
        report.contains("others failed too: replication 'b'"),
        "{report}"
    );
    let expected = [HALF_FAILED_OVER, HALF_FAILED_OVER, Phase::FailedOver];
    assert_eq!(set.phases(), expected);

    assert_refused(&set, set.registry.stop_all(false), "with failover");
    assert_refused(&set, set.start(), "with failover");
    assert_refused(&set, set.add("d").map(drop), "with failover");
    set.fail(&["b.failover"]);
    set.registry.stop_all(true).unwrap_err();
    assert_eq!(set.calls(), "a.failover b.failover");
    // One that never does is given up.
    set.registry.remove(set.ids[1]).unwrap();
    assert_refused(&set, set.registry.stop_all(true), "remove it");
    set.registry.error_all().unwrap();
    assert_eq!(set.calls(), "a.error c.error");
}

#[test]
fn what_does_not_fit_is_refused_with_the_way_out() {
    let set = Set::new();
    assert_refused(
        &set,
        set.registry.checkpoint_all(),
        "start replication first",
    );
    assert_refused(&set, set.registry.error_all(), "start replication first");
    assert_refused(
        &set,
        set.registry.stop_all(false),
        "start replication first",
    );
    assert_refused(&set, set.registry.stop_all(true), "start replication first");

    let set = Set::running();
    assert_refused(&set, set.start(), "stop replication first");
    assert_refused(&set, set.add("d").map(drop), "stop replication first");
    assert_refused(
        &set,
        set.registry.remove(set.ids[0]),
        "stop replication first",
    );

    set.registry.stop_all(true).unwrap();
    set.calls();
    assert_refused(&set, set.start(), "remove it");
    assert_refused(&set, set.registry.checkpoint_all(), "remove it");
    assert_refused(&set, set.registry.stop_all(true), "remove it");
    for id in &set.ids {
        set.registry.remove(*id).unwrap();
    }
    assert_refused(&set, set.start(), "register");
    assert_refused(&set, set.registry.checkpoint_all(), "register");
    assert_refused(&set, set.registry.error_all(), "register");
    assert_refused(&set, set.registry.stop_all(false), "register");
    set.add("d").unwrap();
    set.start().unwrap();
    assert_eq!(set.calls(), "d.start");
}

#[test]
fn an_id_that_is_not_known_is_refused() {
    let (set, other) = (Set::new(), Set::new());
    set.registry.remove(set.ids[0]).unwrap();
    for id in [set.ids[0], other.ids[1]] {
        let error = set.registry.remove(id).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.report().contains("another ctx"), "{}", error.report());
    }
    set.start().unwrap();
    assert_eq!(set.calls(), "b.start c.start");
}

/// It calls its registry from within each operation.
struct CallsBack(Arc<Registry>);

impl CallsBack {
    fn call(&self) {
        let registry = &self.0;
        let (name, seen) = ("inner", Shared::default());
        let results = [
            registry
                .new_state(name, Box::new(Disk { name, seen }))
                .map(drop),
            registry.remove(StateId::unused()),
            registry.start_all(Mode::Secondary),
            registry.checkpoint_all(),
            registry.error_all(),
            registry.stop_all(false),
        ];
        for result in results {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Locked);
        }
    }
}

impl ReplicationOps for CallsBack {
    fn start(&mut self, _mode: Mode) -> Result<()> {
        self.call();
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.call();
        Ok(())
    }

    fn error(&mut self) -> Result<()> {
        self.call();
        Ok(())
    }

    fn stop(&mut self, _failover: bool) -> Result<()> {
        self.call();
        Ok(())
    }
}

impl Drop for CallsBack {
    fn drop(&mut self) {
        // It is no operation that runs, and is heard.
        let error = self.0.error_all().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DomainState);
    }
}

#[test]
fn an_operation_that_calls_its_registry_is_refused_and_does_not_hang() {
    let registry = Arc::new(Registry::new());
    let ops = Box::new(CallsBack(Arc::clone(&registry)));
    let id = registry.new_state("outer", ops).unwrap();
    registry.start_all(Mode::Secondary).unwrap();
    registry.checkpoint_all().unwrap();
    registry.error_all().unwrap();
    registry.stop_all(true).unwrap();
    registry.remove(id).unwrap();
}

#[test]
fn another_thread_is_refused_while_an_operation_runs() {
    struct Waits(std::sync::mpsc::Sender<()>, std::sync::mpsc::Receiver<()>);
    impl ReplicationOps for Waits {
        fn start(&mut self, _mode: Mode) -> Result<()> {
            self.0.send(()).unwrap();
            self.1.recv().unwrap();
            Ok(())
        }
        fn checkpoint(&mut self) -> Result<()> {
            Ok(())
        }
        fn error(&mut self) -> Result<()> {
            Ok(())
        }
        fn stop(&mut self, _failover: bool) -> Result<()> {
            Ok(())
        }
    }
    let (begun, wait_for_begin) = std::sync::mpsc::channel();
    let (go_on, wait_to_go_on) = std::sync::mpsc::channel();
    let registry = Registry::new();
    let ops = Box::new(Waits(begun, wait_to_go_on));
    registry.new_state("slow", ops).unwrap();
    std::thread::scope(|scope| {
        let starter = scope.spawn(|| registry.start_all(Mode::Secondary));
        wait_for_begin.recv().unwrap();
        let error = registry.error_all().unwrap_err();
        go_on.send(()).unwrap();
        assert_eq!(error.kind(), ErrorKind::Locked);
        starter.join().unwrap().unwrap();
    });
    registry.error_all().unwrap();
}

#[test]
fn a_panic_loses_no_state_and_what_it_left_can_be_stopped() {
    let set = Set::new();
    // What the log of calls is behind is poisoned by it; so it is a lock that panics.
    let broken = Shared::default();
    let seen = Arc::clone(&broken);
    let poison = move || {
        let _held = seen.lock().unwrap();
        panic!("poisoned");
    };
    std::thread::spawn(poison).join().unwrap_err();
    let ops = Box::new(Disk {
        name: "d",
        seen: broken,
    });
    let id = set.registry.new_state("d", ops).unwrap();
    let start = std::panic::AssertUnwindSafe(|| set.start());
    std::panic::catch_unwind(start).unwrap_err();
    assert_eq!(set.phases(), [Phase::Running; 3]);
    assert_eq!(set.registry.phase(id).unwrap(), UNCERTAIN);
    set.registry.remove(id).unwrap();
    set.registry.stop_all(false).unwrap();
    assert_eq!(set.calls(), "a.start b.start c.start a.stop b.stop c.stop");
}

/// What three devices really do, whatever the registry believes.
#[derive(Default)]
struct World {
    running: [bool; 3],
    /// Whether the next operations fail.
    failures: Vec<bool>,
}

struct Device {
    at: usize,
    world: Arc<Mutex<World>>,
}

impl Device {
    /// What runs before the operation, which must be so, and after it, if it does not fail.
    fn change(&self, before: bool, after: bool) -> Result<()> {
        let mut world = self.world.lock().unwrap();
        assert_eq!(world.running[self.at], before, "a call that makes no sense");
        if world.failures.pop() == Some(true) {
            return Err(Error::new(ErrorKind::Io, "no"));
        }
        world.running[self.at] = after;
        Ok(())
    }
}

impl ReplicationOps for Device {
    fn start(&mut self, _mode: Mode) -> Result<()> {
        self.change(false, true)
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.change(true, true)
    }

    fn error(&mut self) -> Result<()> {
        Ok(())
    }

    fn stop(&mut self, _failover: bool) -> Result<()> {
        self.change(true, false)
    }
}

proptest! {
    /// Whatever is called and whatever fails: the registry knows what runs, and a set runs in part only where
    /// a stop has failed.
    #[test]
    fn a_set_never_runs_in_part(calls in prop::collection::vec((0u8..5, any::<[bool; 6]>()), 1..30)) {
        let world = Arc::new(Mutex::new(World::default()));
        let registry = Registry::new();
        let make = |at| {
            let world = Arc::clone(&world);
            registry.new_state("device", Box::new(Device { at, world }))
        };
        let mut ids: Vec<_> = (0..3).map(|at| make(at).unwrap()).collect();
        for (call, failures) in calls {
            world.lock().unwrap().failures = failures.to_vec();
            let (result, then_all_run) = match call {
                0 => (registry.start_all(Mode::Primary), Some(true)),
                1 => (registry.checkpoint_all(), Some(true)),
                2 => (registry.stop_all(false), Some(false)),
                3 => (registry.stop_all(true), Some(false)),
                // A set that has failed over is made anew.
                _ => {
                    let failed_over = |id: &StateId| registry.phase(*id).unwrap() == Phase::FailedOver;
                    if ids.iter().all(failed_over) {
                        for (at, id) in ids.iter_mut().enumerate() {
                            registry.remove(*id).unwrap();
                            *id = make(at).unwrap();
                        }
                    }
                    (Ok(()), None)
                }
            };
            let running = world.lock().unwrap().running;
            if let (Ok(()), Some(expected)) = (&result, then_all_run) {
                prop_assert_eq!(running, [expected; 3]);
            }
            let phases: Vec<_> = ids.iter().map(|id| registry.phase(*id).unwrap()).collect();
            let known: Vec<_> = phases.iter().map(|phase| phase.may_run()).collect();
            prop_assert_eq!(&known[..], &running[..]);
            let stop_failed = |phase: &Phase| matches!(phase, Phase::Uncertain { .. });
            let in_part = running.contains(&true) && running.contains(&false);
            prop_assert!(!in_part || phases.iter().any(stop_failed));
        }
    }
}
