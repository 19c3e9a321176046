//! Reverts that lose the present state, or another domain's.

use super::*;
use crate::event::{Observer, Progress};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

fn force_revert(host: &Host, name: &str) -> Result<()> {
    revert_to(host, name, true)
}

/// The domain was replaced by another one of the name.
fn replaced() -> (tempfile::TempDir, Shared) {
    let (root, shared) = prepared();
    shared.replace_domain();
    (root, shared)
}

/// There is no room for the memory of the domain.
fn without_room() -> (tempfile::TempDir, Shared) {
    let (root, shared) = prepared();
    shared.0.borrow_mut().memory_bytes = u64::MAX / 2;
    (root, shared)
}

#[test]
fn a_revert_over_another_domain_is_all_or_nothing() {
    let other = Some((DomainState::Running, "memory other".to_owned()));
    let case = Case {
        prepare: replaced,
        before: ((other, running("2").1), &["one", "two"]),
        after: (running("0"), &["one", "two"]),
        given_up: None,
    };
    let points = case.every_fault(|host| force_revert(host, "one"));
    assert!(points > 60, "{points}");
}

/// The memory is lost once the domain is destroyed, the disks are not.
#[test]
fn a_revert_that_gives_the_present_up_loses_only_memory() {
    let case = Case {
        prepare: without_room,
        before: (running("2"), &["one", "two"]),
        after: (running("0"), &["one", "two"]),
        given_up: Some((None, running("2").1)),
    };
    let points = case.every_fault(|host| force_revert(host, "one"));
    assert!(points > 50, "{points}");
}

#[test]
fn a_revert_that_gives_the_present_up_survives_two_kills() {
    let given_up = (None, running("2").1);
    survives_two_kills(
        without_room,
        ("one", true),
        &[running("2"), given_up, running("0")],
    );
}

/// Wants the operation to stop as soon as the domain is being destroyed.
#[derive(Default)]
struct StopsAtDestruction(AtomicBool);

impl Observer for StopsAtDestruction {
    fn step(&self, what: &str) {
        if what.starts_with("destroy domain") {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    fn progress(&self, _progress: Progress) {}
    fn note(&self, _text: &str) {}
    fn wants_abort(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A wish to stop is heeded as long as it costs nothing.
#[test]
fn a_revert_that_gave_the_present_up_does_not_stop_halfway() {
    for (prepare, stops) in [(prepared as fn() -> _, true), (without_room, false)] {
        let (root, shared) = prepare();
        let request = RevertRequest {
            name: "one".into(),
            state: None,
            force: true,
        };
        let host = shared.host(root.path());
        let result = host.execute(
            NAME,
            &Request::Revert(request),
            &StopsAtDestruction::default(),
        );
        match result {
            Err(error) if stops => {
                assert_eq!(error.kind(), ErrorKind::Aborted);
                assert_eq!(see(&shared), running("2"));
            }
            Ok(_) if !stops => assert_eq!(see(&shared), running("0")),
            other => panic!("{other:?}"),
        }
        assert_whole(&shared, root.path(), "stopped");
    }
}

/// Recovery says what it could not take back.
#[test]
fn the_loss_of_a_killed_revert_is_told() {
    #[derive(Default)]
    struct Notes(Mutex<Vec<String>>);
    impl Observer for Notes {
        fn step(&self, _what: &str) {}
        fn progress(&self, _progress: Progress) {}
        fn note(&self, text: &str) {
            self.0.lock().unwrap().push(text.to_owned());
        }
        fn wants_abort(&self) -> bool {
            false
        }
    }
    let mut told = 0;
    for at in 0..CALLS_MAX {
        let (root, shared) = without_room();
        shared.0.borrow_mut().inject(at, Fault::KilledAfter);
        let killed = attempt(&shared, root.path(), |host| force_revert(host, "one")).is_none();
        shared.0.borrow_mut().heal();
        if !killed {
            break;
        }
        let notes = Notes::default();
        shared.host(root.path()).snapshots(NAME, &notes).unwrap();
        let notes = notes.0.into_inner().unwrap().join("\n");
        let is_lost = see(&shared).0.is_none();
        assert_eq!(
            notes.contains("was given up, is destroyed"),
            is_lost,
            "call {at}: {notes}"
        );
        told += usize::from(is_lost);
    }
    assert!(told > 3, "{told}");
}

/// Killed while there was no domain: the other domain is not brought back to disks that went on.
#[test]
fn a_replaced_domain_is_not_brought_back_to_disks_that_were_used_since() {
    let (root, shared) = replaced();
    let image = root.path().join("other.qcow2");
    std::fs::write(&image, "").unwrap();
    shared.move_other_image(&image);
    let gone = |shared: &Shared| shared.0.borrow().domains.is_empty();
    let killed = (0..CALLS_MAX).find(|at| {
        shared.0.borrow_mut().inject(*at, Fault::KilledAfter);
        let killed = attempt(&shared, root.path(), |host| force_revert(host, "one")).is_none();
        shared.0.borrow_mut().heal();
        assert!(killed, "it was over before");
        if gone(&shared) {
            return true;
        }
        names(&shared.host(root.path()));
        false
    });
    assert!(killed.is_some());
    shared.hours_pass(root.path());
    let now = shared.0.borrow().now;
    let edit = |image: &mut world::Image| image.touch(now);
    edit(shared.0.borrow_mut().images.get_mut(&image).unwrap());
    let host = shared.host(root.path());
    let error = host.snapshots(NAME, &Unobserved).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NeedsRepair);
    assert!(
        error.report().contains("other.qcow2 was written to after"),
        "{}",
        error.report()
    );
    assert!(gone(&shared));
}

/// Killed before the domain was destroyed, which was renamed then: it is somebody's.
#[test]
fn a_domain_that_was_renamed_is_not_destroyed_by_recovery() {
    for at in 0..CALLS_MAX {
        let (root, shared) = without_room();
        shared.0.borrow_mut().inject(at, Fault::KilledBefore);
        let _ = attempt(&shared, root.path(), |host| force_revert(host, "one"));
        shared.0.borrow_mut().heal();
        if see(&shared) != running("2") {
            assert!(at > 5, "{at}");
            return;
        }
        for domain in shared.0.borrow_mut().domains.values_mut() {
            domain.name = Some("elsewhere".into());
        }
        names(&shared.host(root.path()));
        assert_eq!(see(&shared), running("2"), "call {at}");
    }
}
