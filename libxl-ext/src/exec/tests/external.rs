//! The same faults with snapshots for which the guest goes on in layers, and with both kinds mixed.

use super::delete::delete;
use super::{
    CALLS_MAX, Case, Prepare, branch, create_as, prepared_as, revert, running, survives_two_kills,
};
use crate::event::Unobserved;
use crate::exec::tests::world::{Image, NAME, Shared};
use crate::model::disk::DiskKind::{self, External, Internal};
use crate::model::layer::Into;
use crate::plan::DeleteScope;
use crate::store::Store;
use std::path::Path;

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

const PREPARATIONS: [Prepare; 3] = [
    both_external,
    internal_below_external,
    external_below_internal,
];

#[test]
fn create_is_all_or_nothing() {
    for prepare in PREPARATIONS {
        let case = Case::of_two(prepare, "2", &["one", "two", "three"]);
        let points = case.every_fault(|host| create_as(host, "three", EXTERNAL));
        assert!(points > 40, "{points}");
    }
}

#[test]
fn revert_is_all_or_nothing() {
    for prepare in PREPARATIONS {
        for (to, after) in [("one", "0"), ("two", "1")] {
            let case = Case::of_two(prepare, after, &["one", "two"]);
            let points = case.every_fault(|host| revert(host, to));
            assert!(points > 60, "{points}");
        }
    }
}

#[test]
fn a_revert_survives_two_kills() {
    survives_two_kills(both_external, ("one", false), &[running("2"), running("0")]);
}

/// Merges go up into the layers.
fn large_layers() -> (tempfile::TempDir, Shared) {
    let (root, shared) = both_external();
    let mut world = shared.0.borrow_mut();
    for image in world.images.values_mut() {
        image.allocated = if image.backing.is_some() { 100 } else { 10 };
    }
    drop(world);
    (root, shared)
}

/// `three` is a branch beside `two`.
fn branched() -> (tempfile::TempDir, Shared) {
    branch(both_external(), EXTERNAL)
}

#[test]
fn delete_is_all_or_nothing() {
    let preparations = [
        PREPARATIONS[0],
        PREPARATIONS[1],
        PREPARATIONS[2],
        large_layers,
    ];
    for prepare in preparations {
        for (name, left) in [("one", "two"), ("two", "one")] {
            let left = [left];
            let case = Case::of_two(prepare, "2", &left);
            let points = case.every_fault(|host| delete(host, name, DeleteScope::Only));
            assert!(points > 20, "{points}");
        }
    }
}

#[test]
fn delete_on_and_off_the_active_chain_is_all_or_nothing() {
    let deletions: [(&str, DeleteScope, &[&str]); 5] = [
        ("one", DeleteScope::Only, &["two", "three"]),
        ("two", DeleteScope::Only, &["one", "three"]),
        ("three", DeleteScope::Only, &["one", "two"]),
        ("one", DeleteScope::WithChildren, &[]),
        ("one", DeleteScope::ChildrenOnly, &["one"]),
    ];
    for (name, scope, left) in deletions {
        let case = Case {
            prepare: branched,
            before: (running("2"), &["one", "two", "three"]),
            after: (running("2"), left),
            given_up: None,
        };
        case.every_fault(|host| delete(host, name, scope));
    }
}

/// And a snapshot `four` is below `two`.
fn deeply_branched() -> (tempfile::TempDir, Shared) {
    let (root, shared) = both_external();
    create_as(&shared.host(root.path()), "four", EXTERNAL).unwrap();
    branch((root, shared), EXTERNAL)
}

#[test]
fn images_of_another_branch_merge_while_the_guest_runs() {
    let case = Case {
        prepare: deeply_branched,
        before: (running("2"), &["one", "two", "four", "three"]),
        after: (running("2"), &["one", "four", "three"]),
        given_up: None,
    };
    let points = case.every_fault(|host| delete(host, "two", DeleteScope::Only));
    assert!(points > 20, "{points}");
}

/// All of them, in any order: in the end the disk is one image again, and it is the guest's own.
#[test]
fn when_the_last_snapshot_is_deleted_the_base_is_the_disk_again() {
    for order in [
        ["one", "two", "three"],
        ["three", "two", "one"],
        ["two", "three", "one"],
    ] {
        for off_after in 0..=3 {
            let (root, shared) = branched();
            let host = shared.host(root.path());
            for (at, name) in order.into_iter().enumerate() {
                if at == off_after {
                    shared.0.borrow_mut().domains.clear();
                }
                delete(&host, name, DeleteScope::Only).unwrap();
            }
            let world = shared.0.borrow();
            assert_eq!(
                world.images.len(),
                2,
                "{order:?}, {off_after}: {:?}",
                world.images.keys()
            );
            for path in world.images.keys() {
                assert_eq!(world.content(path), "disk 2", "{order:?}, {off_after}");
            }
        }
    }
}

/// A state that was copied out of an image goes back into it.
#[test]
fn what_was_copied_out_of_the_base_goes_back_into_it() {
    for order in [["one", "two", "three"], ["three", "two", "one"]] {
        let (root, shared) = internal_below_external();
        let host = shared.host(root.path());
        revert(&host, "one").unwrap();
        shared.live_on("3");
        create_as(&host, "three", EXTERNAL).unwrap();
        shared.live_on("2");
        shared.0.borrow_mut().domains.clear();
        for name in order {
            delete(&host, name, DeleteScope::Only).unwrap();
        }
        let world = shared.0.borrow();
        assert_eq!(
            world.images.len(),
            2,
            "{order:?}: {:?}",
            world.images.keys()
        );
        for path in world.images.keys() {
            assert_eq!(world.content(path), "disk 2", "{order:?}");
        }
    }
}

/// What somebody did behind our back is found, and nothing else is.
#[test]
fn verify_finds_what_is_not_as_it_was() {
    for prepare in PREPARATIONS {
        let (root, shared) = prepare();
        let host = shared.host(root.path());
        let found = || host.verify(NAME, None, &Unobserved).unwrap();
        assert_eq!(found(), []);
        let store = Store::new(root.path()).domain(NAME);
        let record = store.load().unwrap();
        let external = record
            .proofs()
            .find(|proof| proof.kind == External)
            .map(|proof| proof.target.image.clone())
            .unwrap();
        let edit = |path: &Path, change: &dyn Fn(&mut Image)| {
            change(shared.0.borrow_mut().images.get_mut(path).unwrap());
        };
        edit(&external, &|image| image.written += 1);
        // Those that stand on it are concerned too.
        let findings = found();
        assert!(!findings.is_empty());
        for finding in findings {
            assert!(
                finding.what.ends_with("was written to since"),
                "{finding:?}"
            );
        }
        edit(&external, &|image| image.written -= 1);

        shared.0.borrow_mut().domains.clear();
        let layer = record.layers.last().unwrap().image.clone();
        edit(&layer, &|image| image.backing = Some("/etc/shadow".into()));
        let named = |what: &str| found().iter().any(|finding| finding.what.contains(what));
        assert!(named("stands on /etc/shadow and not on /images/"));
        shared.0.borrow_mut().images.remove(&*layer);
        assert!(named("is missing"));

        let memory = store.memory_path(record.find("two").unwrap().id);
        let mut bytes = std::fs::read(&memory).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&memory, bytes).unwrap();
        assert!(named("checksum"));
        let of_one = host.verify(NAME, Some("one"), &Unobserved).unwrap();
        assert!(of_one.iter().all(|found| !found.what.contains("checksum")));
        assert!(host.verify(NAME, Some("none"), &Unobserved).is_err());
    }
}

/// A bit that fell over on the host's disk, which no time of a file tells; and a merge, which changes nothing that a guest sees.
#[test]
fn recorded_contents_are_compared() {
    for prepare in PREPARATIONS {
        let (root, shared) = prepare();
        let host = shared.host(root.path());
        let store = Store::new(root.path()).domain(NAME);
        assert_eq!(host.record_contents(NAME, None, &Unobserved).unwrap(), []);
        let record = store.load().unwrap();
        for snapshot in &record.snapshots {
            assert_eq!(snapshot.contents.len(), snapshot.disks.len());
        }
        let found = || host.verify(NAME, None, &Unobserved).unwrap();
        assert_eq!(found(), []);
        host.record_contents(NAME, Some("one"), &Unobserved)
            .unwrap();
        let again = store.load().unwrap();
        assert_eq!(again.last_operation, record.last_operation, "it knows them");

        let external = record
            .proofs()
            .find(|proof| proof.kind == External)
            .unwrap();
        let path = external.target.image.clone();
        let flip = |text: &str| {
            let mut world = shared.0.borrow_mut();
            let image = world.images.get_mut(&*path).unwrap();
            std::mem::replace(&mut image.content, text.into())
        };
        let before = flip("disk x");
        let findings = found();
        assert!(
            findings
                .iter()
                .any(|it| it.what.contains("does not hold any more")),
            "{findings:?}"
        );
        flip(&before);
        delete(&host, "one", DeleteScope::Only).unwrap();
        assert_eq!(found(), [], "after a merge");
    }
}

/// A file system that is not mounted shows no files: that is no sign that a merge is done.
#[test]
fn a_missing_layer_is_not_taken_for_a_merged_one() {
    let (root, shared) = both_external();
    let host = shared.host(root.path());
    shared.0.borrow_mut().domains.clear();
    let store = Store::new(root.path()).domain(NAME);
    let mut record = store.load().unwrap();
    let layer = record.layers.last().unwrap().clone();
    record.mark_merging(&layer.image, Into::Below);
    store.save(&record).unwrap();
    let file = shared.0.borrow_mut().images.remove(&*layer.image).unwrap();
    // Whether it is refused or deletes what it can, the layer is not forgotten.
    let _ = delete(&host, "two", DeleteScope::Only);
    assert!(store.load().unwrap().layer(&layer.image).is_some());

    shared
        .0
        .borrow_mut()
        .images
        .insert(layer.image.to_path_buf(), file);
    for name in ["two", "one"] {
        let _ = delete(&host, name, DeleteScope::Only);
    }
    let world = shared.0.borrow();
    for path in world.images.keys() {
        assert_eq!(world.content(path), "disk 2");
    }
}

/// Whoever starts the domain while its images merge, and however often the command is given then: what the guest
/// wrote last is what the next start finds.
#[test]
fn a_domain_that_is_started_while_its_images_merge_loses_nothing() {
    for prepare in [both_external as fn() -> _, large_layers, branched] {
        for name in ["one", "two"] {
            let mut started = 0;
            for at in 0..CALLS_MAX {
                let (root, shared) = prepare();
                let host = shared.host(root.path());
                shared.0.borrow_mut().domains.clear();
                shared.0.borrow_mut().start_at(at);
                let result = delete(&host, name, DeleteScope::Only);
                let what = format!("{name}, started at call {at}: {result:?}");
                if !shared.0.borrow().came_to(at) {
                    break;
                }
                if shared.0.borrow().domains.is_empty() {
                    continue;
                }
                started += 1;
                shared.live_on("10");
                let finds = |number: usize| {
                    let world = shared.0.borrow();
                    for path in world.disks_to_start() {
                        assert_eq!(world.content(&path), "disk 10", "{what}, then {number}");
                    }
                };
                finds(0);
                for number in 1..3 {
                    let _ = delete(&host, name, DeleteScope::Only);
                    finds(number);
                }
                shared.0.borrow_mut().domains.clear();
                for (number, name) in ["three", "two", "one"].into_iter().enumerate() {
                    let _ = delete(&host, name, DeleteScope::Only);
                    finds(3 + number);
                }
            }
            assert!(started > 10, "{started}");
        }
    }
}
