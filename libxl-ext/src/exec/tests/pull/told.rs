//! What is told of a pull while it goes on and when it came to nothing.

use super::*;
use crate::store::LockWait;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

thread_local! {
    /// What [`Meanwhile`] does: observers go from thread to thread, and the host that is made of data does not.
    static MEANWHILE: RefCell<Option<Rc<dyn Fn()>>> = const { RefCell::new(None) };
}

/// Does something whenever it hears how far a job is.
struct Meanwhile;

impl Meanwhile {
    fn does(what: impl Fn() + 'static) -> Self {
        MEANWHILE.set(Some(Rc::new(what)));
        Self
    }
}

impl Observer for Meanwhile {
    fn step(&self, _what: &str) {}
    fn progress(&self, _progress: Progress) {
        let what = MEANWHILE.with_borrow(Clone::clone);
        what.unwrap()();
    }
    fn note(&self, _text: &str) {}
    fn wants_abort(&self) -> bool {
        false
    }
}

/// Looks so often, and no longer.
struct Patient(AtomicU32);

impl Observer for Patient {
    fn step(&self, _what: &str) {}
    fn progress(&self, _progress: Progress) {}
    fn note(&self, _text: &str) {}
    fn wants_abort(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

#[test]
fn a_watcher_waits_for_whoever_holds_the_lock() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    start(&host, &request("xvda")).unwrap();
    let lock = Store::new(root.path())
        .domain(NAME)
        .lock(LockWait::No)
        .unwrap();
    let patient = Patient(AtomicU32::new(400));
    let error = host.watch_pull(NAME, "xvda", &patient).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted, "{}", error.report());
    drop(lock);
    let info = host.watch_pull(NAME, "xvda", &Unobserved).unwrap();
    assert_eq!(info.state, PullProgress::Completed);
}

#[test]
fn a_disk_that_is_pulled_while_off_is_told_of_once() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    destroy(&shared);
    step(&host, "xvda", 2 * PACE, Some(0)).unwrap();
    let seen = Rc::new(RefCell::new(Vec::new()));
    let (other, path, told) = (shared.clone(), root.path().to_owned(), seen.clone());
    let observer = Meanwhile::does(move || {
        let host = other.host(&path);
        let infos = host.pulls(NAME, Some("xvda"), &Unobserved).unwrap();
        told.borrow_mut()
            .push(infos.iter().map(|it| it.state).collect::<Vec<_>>());
    });
    host.pull(NAME, &request("xvda"), &observer).unwrap();
    let seen = seen.take();
    assert!(!seen.is_empty());
    assert!(seen.iter().all(|states| states.len() == 1), "{seen:?}");
    assert_eq!(seen[0], [PullProgress::Running]);
}

#[test]
fn one_of_a_domain_that_is_off_is_ended_for_all_to_see() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    destroy(&shared);
    let other = shared.clone();
    let observer = Meanwhile::does(move || {
        for job in other.0.borrow_mut().jobs.values_mut() {
            job.job.state = PullJobState::Cancelled;
        }
    });
    let error = host.pull(NAME, &request("xvda"), &observer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted);
    let info = host.abort_pull(NAME, "xvda", &Unobserved).unwrap();
    assert_eq!(info.state, PullProgress::Aborted);
}

#[test]
fn who_ends_its_own_command_leaves_nothing_in_the_record() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    destroy(&shared);
    let error = host.pull(NAME, &request("xvda"), &Impatient).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted);
    assert!(record(root.path()).pulls.is_empty());
}

#[test]
fn the_reason_is_that_of_the_last_failure() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    destroy(&shared);
    for why in ["Input/output error", "No space left on device"] {
        shared.0.borrow_mut().jobs_fail = Some(why);
        start(&host, &request("xvda")).unwrap_err();
        assert_failed(&host, "xvda", why);
    }
}

#[test]
fn a_qemu_that_does_not_answer_ends_no_watch() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    start(&host, &request("xvda")).unwrap();
    for domain in shared.0.borrow_mut().domains.values_mut() {
        domain.gutted = true;
    }
    let infos = host.pulls(NAME, Some("xvda"), &Unobserved).unwrap();
    assert_eq!(infos[0].state, PullProgress::Running);
    for domain in shared.0.borrow_mut().domains.values_mut() {
        domain.gutted = false;
    }
    let info = host.wait_for_pull(NAME, "xvda", &Unobserved).unwrap();
    assert_eq!(info.state, PullProgress::Completed);
}

#[test]
fn the_speed_of_increments_is_said_with_each() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    step(&host, "xvda", PACE, Some(0)).unwrap();
    let error = host.set_pull_speed(NAME, "xvda", 1 << 20).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(error.report().contains("--step"), "{}", error.report());
}

/// One that nobody looks at while it goes on, up to so many bytes.
fn under_way(root: &Path, shared: &Shared) -> u64 {
    let host = shared.host(root);
    start(&host, &request("xvda")).unwrap();
    let mut world = shared.0.borrow_mut();
    let (key, job) = world.jobs.iter_mut().next().unwrap();
    job.job.done = 7 * PACE;
    let image = key.1.clone();
    world.pulled.insert(image, 7 * PACE);
    7 * PACE
}

#[test]
fn how_far_one_was_that_is_ended_is_told_also_if_nobody_had_asked() {
    let (root, shared) = layered();
    let at = under_way(root.path(), &shared);
    let host = shared.host(root.path());
    let aborted = host.abort_pull(NAME, "xvda", &Unobserved).unwrap();
    assert_eq!(aborted.state, PullProgress::Aborted);
    assert!((at..aborted.end).contains(&aborted.cur), "{aborted:?}");
    let later = host.pulls(NAME, Some("xvda"), &Unobserved).unwrap();
    assert_eq!(later, [aborted]);
}

#[test]
fn nor_is_it_lost_with_the_domain() {
    let (root, shared) = on_a_template();
    let at = under_way(root.path(), &shared);
    destroy(&shared);
    let host = shared.host(root.path());
    let infos = host.pulls(NAME, Some("xvda"), &Unobserved).unwrap();
    assert_eq!(infos[0].state, PullProgress::Interrupted);
    assert_eq!(infos[0].cur, at);
    // An increment begins there.
    shared.start();
    let cursor = Some(infos[0].cursor);
    let next = step(&host, "xvda", PACE, cursor).unwrap().unwrap();
    assert!(next.cur >= at + PACE, "{next:?}");
}

#[test]
fn one_that_failed_says_how_far_it_was() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    shared.0.borrow_mut().jobs_fail = Some("Input/output error");
    start(&host, &request("xvda")).unwrap();
    host.wait_for_pull(NAME, "xvda", &Unobserved).unwrap();
    // By now QEMU has forgotten it.
    let info = host.pulls(NAME, None, &Unobserved).unwrap().remove(0);
    assert_eq!(info.state, PullProgress::Failed);
    assert!(info.cur > info.end / 2 && info.cur < info.end, "{info:?}");
}
