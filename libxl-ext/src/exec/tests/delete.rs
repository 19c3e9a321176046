//! Deletions of one snapshot and of a part of the tree.

use super::*;
use crate::plan::{DeleteRequest, DeleteScope};

/// `three` is a branch beside `two`.
fn branched() -> (tempfile::TempDir, Shared) {
    branch(prepared(), None)
}

pub(super) fn delete(host: &Host, name: &str, scope: DeleteScope) -> Result<()> {
    let request = DeleteRequest {
        name: name.into(),
        scope,
    };
    match execute(host, &Request::Delete(request)) {
        // Recovery may have finished it before the command was given again.
        Err(error) if error.kind() == ErrorKind::NoSuchSnapshot => Ok(()),
        other => other,
    }
}

#[test]
fn delete_is_all_or_nothing() {
    let case = Case::of_two(prepared, "2", &["two"]);
    let points = case.every_fault(|host| delete(host, "one", DeleteScope::Only));
    assert!(points > 20, "{points}");
}

#[test]
fn delete_of_a_whole_tree_is_all_or_nothing() {
    let case = Case {
        prepare: branched,
        before: (running("2"), &["one", "two", "three"]),
        after: (running("2"), &[]),
        given_up: None,
    };
    let points = case.every_fault(|host| delete(host, "one", DeleteScope::WithChildren));
    assert!(points > 40, "{points}");
}

#[test]
fn delete_of_all_below_a_snapshot_is_all_or_nothing() {
    let case = Case {
        prepare: branched,
        before: (running("2"), &["one", "two", "three"]),
        after: (running("2"), &["one"]),
        given_up: None,
    };
    let points = case.every_fault(|host| delete(host, "one", DeleteScope::ChildrenOnly));
    assert!(points > 30, "{points}");
}

/// What is taken between a deletion that failed in the middle and its end does not go with it.
#[test]
fn a_snapshot_that_is_taken_during_an_unfinished_deletion_stays() {
    let (root, shared) = branched();
    let host = shared.host(root.path());
    let store = Store::new(root.path()).domain(NAME);
    let two = store.load().unwrap().find("two").unwrap().id;
    let foreign = store.snapshot_directory(two).join("foreign");
    std::fs::write(&foreign, "").unwrap();
    let error = delete(&host, "one", DeleteScope::WithChildren).unwrap_err();
    assert!(
        error.report().contains("is done only in part"),
        "{}",
        error.report()
    );
    let left = store.load().unwrap();
    assert!(
        left.snapshots
            .iter()
            .all(|snapshot| snapshot.state == RecordState::Deleting)
    );
    let refused = revert(&host, "one").unwrap_err();
    assert!(
        refused.report().contains("its deletion has begun"),
        "{}",
        refused.report()
    );
    create(&host, "four").unwrap();
    std::fs::remove_file(foreign).unwrap();
    delete(&host, "one", DeleteScope::WithChildren).unwrap();
    assert_eq!(names(&host), ["four"]);
    assert_whole(&shared, root.path(), "finished");
}

/// An HVM guest that boots may write to its emulated disks, which QEMU has open beside the PV ones.
#[test]
fn images_that_are_open_twice_are_not_changed_under_a_guest_that_runs() {
    let (root, shared) = prepared();
    let host = shared.host(root.path());
    let the_domain = |change: &dyn Fn(&mut world::Domain)| {
        let mut world = shared.0.borrow_mut();
        world.domains.values_mut().for_each(change);
    };
    the_domain(&|domain| domain.openings = 2);
    let error = create(&host, "three").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let report = error.report();
    assert!(report.contains("open twice for xvda"), "{report}");
    assert_eq!(see(&shared), running("2"));
    assert_whole(&shared, root.path(), "refused");

    let error = delete(&host, "two", DeleteScope::Only).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DomainState);
    let report = error.report();
    assert!(report.contains("or pause the domain"), "{report}");
    the_domain(&|domain| domain.pauses = 1);
    delete(&host, "two", DeleteScope::Only).unwrap();
    assert_whole(&shared, root.path(), "paused");
    the_domain(&|domain| (domain.pauses, domain.openings) = (0, 1));
    delete(&host, "one", DeleteScope::Only).unwrap();
    assert_whole(&shared, root.path(), "unplugged");
}
