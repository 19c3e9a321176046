//! Every write to the store meets a full disk: that one alone, as if somebody made room at once, or it and all that
//! follow until the command ends.

use super::delete::delete;
use super::{CALLS_MAX, Case, Prepare, attempt, create_as, prepared_as, revert, see};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::tests::world::{NAME, Shared};
use crate::model::disk::DiskKind::{self, External, Internal};
use crate::plan::DeleteScope;
use crate::snapshot::Host;
use crate::store::Store;
use crate::store::room::tests::{End, ends, is_back};

const KINDS: [Option<DiskKind>; 2] = [Some(Internal), Some(External)];

fn internal() -> (tempfile::TempDir, Shared) {
    prepared_as([KINDS[0]; 2])
}

fn external() -> (tempfile::TempDir, Shared) {
    prepared_as([KINDS[1]; 2])
}

const PREPARATIONS: [Prepare; 2] = [internal, external];

impl Case<'_> {
    fn every_write_without_room(&self, act: impl Fn(&Host) -> Result<()> + Copy) -> usize {
        let mut writes = 0;
        for for_good in [false, true] {
            for after in 0..=CALLS_MAX {
                assert!(after < CALLS_MAX, "it never ends");
                let (root, shared) = (self.prepare)();
                let end = End { after, for_good };
                ends(end);
                let result = attempt(&shared, root.path(), act);
                if !is_back() {
                    assert!(matches!(result, Some(Ok(()))), "{result:?}");
                    assert_eq!(see(&shared), self.after.0);
                    break;
                }
                writes += 1;
                let mut what = format!("{end:?}");
                if let Some(Err(error)) = &result {
                    what.push_str(&error.report());
                    assert!(tells_of_no_room(error), "{what}: {}", error.report());
                }
                // A copy for which there was no room is written with the next commit, and fails nothing.
                let store = Store::new(root.path()).domain(NAME);
                store.write_copies(&store.load().unwrap()).unwrap();
                self.assert_between_nothing(&root, &shared, result.as_ref(), act, &what);
            }
        }
        println!("{writes} writes without room");
        writes
    }
}

/// What is left to do may be said first, and why after it.
fn tells_of_no_room(error: &Error) -> bool {
    let is_kind = [ErrorKind::NoSpace, ErrorKind::NeedsRepair].contains(&error.kind());
    is_kind && error.report().contains("No space left on device")
}

#[test]
fn create_is_all_or_nothing() {
    for (prepare, kind) in PREPARATIONS.into_iter().zip(KINDS) {
        let case = Case::of_two(prepare, "2", &["one", "two", "three"]);
        let writes = case.every_write_without_room(|host| create_as(host, "three", kind));
        assert!(writes > 30, "{writes}");
    }
}

#[test]
fn revert_is_all_or_nothing() {
    for prepare in PREPARATIONS {
        let case = Case::of_two(prepare, "0", &["one", "two"]);
        let writes = case.every_write_without_room(|host| revert(host, "one"));
        assert!(writes > 30, "{writes}");
    }
}

#[test]
fn delete_is_all_or_nothing() {
    for prepare in PREPARATIONS {
        for (name, left) in [("one", "two"), ("two", "one")] {
            let left = [left];
            let case = Case::of_two(prepare, "2", &left);
            let act = |host: &Host| delete(host, name, DeleteScope::Only);
            let writes = case.every_write_without_room(act);
            assert!(writes > 10, "{writes}");
        }
    }
}
