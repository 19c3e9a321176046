//! A pull and a domain that is suspended, as in the middle of a migration.

use super::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

thread_local! {
    /// What [`Watcher`] does whenever it is asked whether to stop.
    static ASKED: RefCell<Option<Rc<dyn Fn()>>> = const { RefCell::new(None) };
}

/// Suspends the domain when it first hears how far the pull is, and never wants to stop.
struct Watcher(AtomicBool);

impl Observer for Watcher {
    fn step(&self, _what: &str) {}
    fn progress(&self, _progress: Progress) {
        if !self.0.swap(true, Ordering::Relaxed) {
            asked();
        }
    }
    fn note(&self, _text: &str) {}
    fn wants_abort(&self) -> bool {
        if self.0.load(Ordering::Relaxed) {
            asked();
        }
        false
    }
}

fn asked() {
    let what = ASKED.with_borrow(Clone::clone);
    what.unwrap()();
}

fn suspend(shared: &Shared, is: bool) {
    for domain in shared.0.borrow_mut().domains.values_mut() {
        domain.suspended = is;
    }
}

fn state_of_job(shared: &Shared) -> PullJobState {
    shared.0.borrow().jobs.values().next().unwrap().job.state
}

/// Watches a pull whose domain is suspended, and does `then` once the pull has stood still.
fn watched(then: impl Fn(&Shared) + 'static) -> (PullInfo, Shared) {
    let (root, shared) = on_a_template();
    let host = shared.host(root.path());
    start(&host, &request("xvda")).unwrap();
    let world = shared.clone();
    let (suspended, stood) = (AtomicBool::new(false), AtomicBool::new(false));
    let asks = AtomicU32::new(0);
    ASKED.set(Some(Rc::new(move || {
        let asks = asks.fetch_add(1, Ordering::Relaxed);
        assert!(asks < 10_000, "it is waited for in vain");
        if !suspended.swap(true, Ordering::Relaxed) {
            suspend(&world, true);
        } else if !stood.load(Ordering::Relaxed) && state_of_job(&world) == PullJobState::Held {
            stood.store(true, Ordering::Relaxed);
            then(&world);
        }
    })));
    let watcher = Watcher(AtomicBool::new(false));
    let info = host.wait_for_pull(NAME, "xvda", &watcher).unwrap();
    ASKED.set(None);
    (info, shared)
}

#[test]
fn it_stands_still_until_the_domain_goes_on() {
    let (info, shared) = watched(|shared| suspend(shared, false));
    assert_eq!(info.state, PullProgress::Completed);
    let image = &shared.0.borrow().images[Path::new(IMAGES[0])];
    assert_eq!(image.backing, None);
}

#[test]
fn it_never_goes_on_where_the_domain_goes_away() {
    let (info, _) = watched(destroy);
    assert_eq!(info.state, PullProgress::Interrupted);
    assert!(info.cur < info.end, "{info:?}");
}

#[test]
fn what_was_copied_by_then_is_completed_when_the_domain_goes_on() {
    let (root, shared) = on_a_template();
    let host = shared.host(root.path());
    start(&host, &request("xvda")).unwrap();
    for job in shared.0.borrow_mut().jobs.values_mut() {
        job.job.done = job.job.total - 1;
    }
    suspend(&shared, true);
    for _ in 0..3 {
        let infos = host.pulls(NAME, None, &Unobserved).unwrap();
        assert_eq!(infos[0].state, PullProgress::Copied);
    }
    let below = |shared: &Shared| {
        shared.0.borrow().images[Path::new(IMAGES[0])]
            .backing
            .clone()
    };
    assert!(below(&shared).is_some());
    suspend(&shared, false);
    let infos = host.pulls(NAME, None, &Unobserved).unwrap();
    assert_eq!(infos[0].state, PullProgress::Completed);
    assert_eq!(below(&shared), None);
}

#[test]
fn none_begins_or_takes_a_step_meanwhile() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    step(&host, "xvdb", PACE, Some(0)).unwrap();
    suspend(&shared, true);
    for refused in [
        start(&host, &request("xvda")),
        step(&host, "xvdb", PACE, None),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DomainState);
        assert!(error.report().contains("suspended"), "{}", error.report());
    }
    suspend(&shared, false);
    step(&host, "xvdb", PACE, None).unwrap();
    pull(&host, &request("xvda")).unwrap();
}
