//! Domains that were restored, and those that only look like it.

use super::*;
use crate::model::domain::GuestState;

/// A guest agrees to a suspend while it waits for its disks, and goes on as if nobody had asked.
#[test]
fn a_restored_guest_is_asked_to_suspend_once_it_has_its_disks() {
    let (root, shared) = prepared();
    let host = shared.host(root.path());
    revert(&host, "one").unwrap();
    create(&host, "three").unwrap();
    let paused = Request::Revert(RevertRequest {
        name: "one".into(),
        state: Some(GuestState::Paused),
        force: false,
    });
    execute(&host, &paused).unwrap();
    revert(&host, "two").unwrap();
    assert_eq!(names(&host), ["one", "two", "three"]);
}

/// `xl rename` and `xl pause`, and a revert under the old name.
#[test]
fn a_domain_that_was_renamed_is_not_taken_for_one_that_a_revert_left() {
    for pauses in [0, 1] {
        let (root, shared) = prepared();
        let host = shared.host(root.path());
        {
            let mut world = shared.0.borrow_mut();
            let domain = world.domains.values_mut().next().unwrap();
            domain.name = Some("keep".into());
            domain.pauses = pauses;
        }
        let before = shared.0.borrow().domains.clone();
        let error = revert(&host, "one").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DomainState, "{}", error.report());
        assert!(error.report().contains("xl rename"), "{}", error.report());
        assert_eq!(shared.0.borrow().domains, before);
        assert!(
            !host_store(&root).journal_path().exists(),
            "it had begun all the same"
        );
    }
}

/// A revert is killed where it has restored the domain; whoever lets that run, and pauses it, has a guest of his own.
#[test]
fn what_a_revert_left_and_somebody_uses_is_not_removed() {
    let (root, shared) = prepared();
    // The call after which there is a domain again.
    let restored = (0..CALLS_MAX)
        .find(|at| {
            let (root, shared) = prepared();
            shared.0.borrow_mut().inject(*at, Fault::KilledAfter);
            let ended = attempt(&shared, root.path(), |host| revert(host, "one"));
            let world = shared.0.borrow();
            let is_back = world.the_domain().is_some_and(|domain| !domain.has_run);
            ended.is_none() && is_back
        })
        .expect("it restores");
    shared.0.borrow_mut().inject(restored, Fault::KilledAfter);
    assert!(attempt(&shared, root.path(), |host| revert(host, "one")).is_none());
    shared
        .0
        .borrow_mut()
        .domains
        .values_mut()
        .next()
        .unwrap()
        .has_run = true;
    let before = shared.0.borrow().domains.clone();
    let host = shared.host(root.path());
    let error = host.snapshots(NAME, &Unobserved).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NeedsRepair, "{}", error.report());
    assert_eq!(shared.0.borrow().domains, before);
}

fn host_store(root: &tempfile::TempDir) -> crate::store::DomainStore {
    Store::new(root.path()).domain(NAME)
}
