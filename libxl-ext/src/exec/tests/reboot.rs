//! Reboots by xl in the middle of an operation: for a moment there is no domain, and yet it is known on which images it
//! will go on.

use super::disk_only::off_request;
use super::{CALLS_MAX, assert_whole, execute, names, prepared_as, revert, see};
use crate::error::{ErrorKind, Result};
use crate::exec::tests::world::Shared;
use crate::model::disk::DiskKind::{self, External, Internal};
use crate::plan::{DeleteScope, Request};
use crate::snapshot::Host;

const KINDS: [[DiskKind; 2]; 2] = [[External; 2], [Internal; 2]];

/// Snapshots `one` of a running domain, and `two` of its disks alone; it runs.
fn prepared(kinds: [DiskKind; 2]) -> (tempfile::TempDir, Shared) {
    let (root, shared) = prepared_as([Some(kinds[0]); 2]);
    let host = shared.host(root.path());
    super::delete::delete(&host, "two", DeleteScope::Only).unwrap();
    shared.live_on("1");
    shared.0.borrow_mut().domains.clear();
    execute(&host, &Request::Create(off_request("two", kinds))).unwrap();
    shared.start();
    shared.live_on("2");
    (root, shared)
}

/// The domain was shut down for a reboot, and xl has begun with that: there is none.
#[test]
fn nothing_is_done_in_the_gap_of_a_reboot() {
    type Act = fn(&Host) -> Result<()>;
    let create: Act = |host| {
        let request = off_request("three", [External, Internal]);
        execute(host, &Request::Create(request))
    };
    let to_one: Act = |host| revert(host, "one");
    let to_two: Act = |host| revert(host, "two");
    for kinds in KINDS {
        for (number, act) in [create, to_one, to_two].into_iter().enumerate() {
            // As long as the operation would take, or less.
            for takes in [0, 1, 2, 5, 10, 15, 20, 30, CALLS_MAX] {
                let what = format!("{kinds:?}, operation {number}, {takes} calls");
                let (root, shared) = prepared(kinds);
                let host = shared.host(root.path());
                let before = see(&shared).1;
                shared.0.borrow_mut().reboots(0, takes);
                let result = act(&host);
                shared.0.borrow_mut().end_reboot();
                match result {
                    // Too late for the operation, which had seen no domain.
                    Err(error) => {
                        assert!(
                            [ErrorKind::Stale, ErrorKind::DomainState].contains(&error.kind()),
                            "{what}: {}",
                            error.report()
                        );
                        assert_eq!(shared.0.borrow().domains.len(), 1, "{what}");
                        assert_eq!(names(&host), ["one", "two"], "{what}");
                        assert_eq!(see(&shared).1, before, "{what}");
                    }
                    // A revert that found the domain there again.
                    Ok(()) => assert!(number > 0 && takes < 5, "{what}"),
                }
                assert_whole(&shared, root.path(), &what);
            }
        }
    }
}

/// xl notices the end of the domain before any call of a revert.
#[test]
fn a_revert_of_a_domain_that_has_ended_and_its_reboot_exclude_each_other() {
    for kinds in KINDS {
        for to in ["one", "two"] {
            let (mut reverted, mut refused) = (0, 0);
            for at in 0..=calls(kinds, to) {
                for takes in [1, CALLS_MAX] {
                    let what = format!("{kinds:?}, to {to}, at call {at}, {takes} calls");
                    let (root, shared) = prepared(kinds);
                    let host = shared.host(root.path());
                    shared.0.borrow_mut().reboots(at, takes);
                    let result = revert(&host, to);
                    shared.0.borrow_mut().end_reboot();
                    // The next command ends what may be left.
                    assert_eq!(names(&host), ["one", "two"], "{what}");
                    let disks = see(&shared).1;
                    let expected = match (&result, to) {
                        (Ok(()), "one") => "disk 0",
                        (Ok(()), _) => "disk 1",
                        (Err(_), _) => "disk 2",
                    };
                    assert_eq!(disks, [expected; 2], "{what}: {result:?}");
                    assert_whole(&shared, root.path(), &what);
                    match result {
                        Ok(()) => reverted += 1,
                        Err(_) => refused += 1,
                    }
                }
            }
            assert!(reverted > 10 && refused > 3, "{reverted}, {refused}");
        }
    }
}

/// How many calls a revert makes.
fn calls(kinds: [DiskKind; 2], to: &str) -> usize {
    let (root, shared) = prepared(kinds);
    shared.0.borrow_mut().reboots(CALLS_MAX, 0);
    revert(&shared.host(root.path()), to).unwrap();
    let world = shared.0.borrow();
    (0..CALLS_MAX).find(|at| !world.came_to(*at)).unwrap()
}
