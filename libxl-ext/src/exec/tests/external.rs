//! The same faults with snapshots for which the guest goes on in layers, and with both kinds mixed.

use super::{Case, create_as, prepared_as, revert, running, survives_two_kills};
use crate::exec::tests::world::Shared;
use crate::model::disk::DiskKind::{self, External, Internal};

const EXTERNAL: Option<DiskKind> = Some(External);

fn both_external() -> (tempfile::TempDir, Shared) {
    prepared_as([EXTERNAL; 2])
}

fn internal_below_external() -> (tempfile::TempDir, Shared) {
    prepared_as([Some(Internal), EXTERNAL])
}

fn external_below_internal() -> (tempfile::TempDir, Shared) {
    prepared_as([EXTERNAL, Some(Internal)])
}

const PREPARATIONS: [fn() -> (tempfile::TempDir, Shared); 3] = [
    both_external,
    internal_below_external,
    external_below_internal,
];

#[test]
fn create_is_all_or_nothing() {
    for prepare in PREPARATIONS {
        let case = Case {
            prepare,
            before: (running("2"), &["one", "two"]),
            after: (running("2"), &["one", "two", "three"]),
            given_up: None,
        };
        let points = case.every_fault(|host| create_as(host, "three", EXTERNAL));
        assert!(points > 40, "{points}");
    }
}

#[test]
fn revert_is_all_or_nothing() {
    for prepare in PREPARATIONS {
        for (to, after) in [("one", "0"), ("two", "1")] {
            let case = Case {
                prepare,
                before: (running("2"), &["one", "two"]),
                after: (running(after), &["one", "two"]),
                given_up: None,
            };
            let points = case.every_fault(|host| revert(host, to));
            assert!(points > 60, "{points}");
        }
    }
}

#[test]
fn a_revert_survives_two_kills() {
    survives_two_kills(both_external, false, &[running("2"), running("0")]);
    survives_two_kills(
        internal_below_external,
        false,
        &[running("2"), running("0")],
    );
}
