//! Recoveries that begin hours after the kill, as after a power cut, and are killed themselves: what the first one wrote
//! to images the second one does not take for a stranger's.

use super::delete::delete;
use super::*;
use crate::model::disk::DiskKind::External;
use crate::plan::DeleteScope;

/// Kills a command, then its recovery hours later, and gives the command again. Returns how often both were killed.
fn killed_twice(
    prepare: impl Fn() -> (tempfile::TempDir, Shared),
    act: impl Fn(&Host) -> Result<()> + Copy,
) -> usize {
    let mut twice = 0;
    for first in 0..CALLS_MAX {
        for second in (first % 4..CALLS_MAX).step_by(4) {
            let (root, shared) = prepare();
            shared.0.borrow_mut().inject(first, Fault::KilledAfter);
            if attempt(&shared, root.path(), act).is_some() {
                return twice;
            }
            shared.hours_pass(root.path());
            shared.0.borrow_mut().inject(second, Fault::KilledAfter);
            let recovered = attempt(&shared, root.path(), |host| {
                host.snapshots(NAME, &Unobserved).map(drop)
            });
            shared.0.borrow_mut().heal();
            let what = format!("killed after calls {first} and {second}: {recovered:?}");
            act(&shared.host(root.path()))
                .unwrap_or_else(|error| panic!("{what}, again: {}", error.report()));
            assert_whole(&shared, root.path(), &what);
            match recovered {
                Some(_) => break,
                None => twice += 1,
            }
        }
    }
    panic!("it makes more calls than this test foresees");
}

#[test]
fn a_deletion_of_layers_that_is_killed_twice_is_finished() {
    for is_off in [false, true] {
        for name in ["one", "two"] {
            let prepare = || {
                let (root, shared) = prepared_as([Some(External); 2]);
                if is_off {
                    shared.0.borrow_mut().domains.clear();
                }
                (root, shared)
            };
            let twice = killed_twice(prepare, |host| delete(host, name, DeleteScope::Only));
            assert!(twice > 50, "{twice}");
        }
    }
}

/// A restore that fails leaves the images set back, and the journal.
#[test]
fn a_revert_whose_recovery_is_killed_is_taken_back() {
    let twice = killed_twice(prepared, |host| revert(host, "one"));
    assert!(twice > 50, "{twice}");
}

/// What a stranger wrote is still found, as long as no recovery came so far as to write.
#[test]
fn a_strangers_writes_are_found_however_often_it_is_tried() {
    let (root, shared) = prepared();
    let gone = |shared: &Shared| shared.0.borrow().domains.is_empty();
    let killed = (0..CALLS_MAX).find(|at| {
        shared.0.borrow_mut().inject(*at, Fault::KilledAfter);
        let ended = attempt(&shared, root.path(), |host| revert(host, "one"));
        shared.0.borrow_mut().heal();
        assert!(ended.is_none(), "it was over before");
        if !gone(&shared) {
            names(&shared.host(root.path()));
        }
        gone(&shared)
    });
    assert!(killed.is_some());
    shared.hours_pass(root.path());
    {
        let mut world = shared.0.borrow_mut();
        let now = world.now;
        for path in IMAGES {
            let image = world.images.get_mut(Path::new(path)).unwrap();
            image.content = "a stranger's".into();
            image.touch(now);
        }
    }
    let host = shared.host(root.path());
    for number in 0..3 {
        let error = host.snapshots(NAME, &Unobserved).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NeedsRepair, "attempt {number}");
        assert!(error.report().contains("was written to after"));
        let world = shared.0.borrow();
        assert_eq!(world.content(Path::new(IMAGES[0])), "a stranger's");
    }
}
