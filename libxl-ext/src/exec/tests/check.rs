//! `snapshot-check` on stores that somebody damaged, in every way that we can think of.

use super::disk_only::off_request;
use super::world::{Fault, IMAGES, NAME, Shared};
use super::{attempt, create, execute, prepared, prepared_as};
use crate::check::{FindingKind, Findings, Repair};
use crate::error::ErrorKind;
use crate::event::Unobserved;
use crate::model::disk::DiskKind;
use crate::model::name::SnapshotId;
use crate::model::record::DomainRecord;
use crate::plan::Request;
use crate::snapshot::Host;
use crate::store::{DomainStore, Envelope, Store};
use std::fs;
use std::path::Path;
use uuid::Uuid;

fn store(root: &Path) -> DomainStore {
    Store::new(root).domain(NAME)
}

fn check(host: &Host) -> Findings {
    let inspection = host.inspect(NAME, false, &Unobserved).unwrap();
    inspection.found().clone()
}

fn repair(host: &Host) -> Findings {
    let inspection = host.inspect(NAME, true, &Unobserved).unwrap();
    inspection.repair(&Unobserved).unwrap()
}

fn kinds(found: &Findings) -> Vec<FindingKind> {
    let mut kinds: Vec<_> = found.findings.iter().map(|found| found.kind).collect();
    kinds.sort();
    kinds
}

/// What a record made anew has to have in common with the old one.
fn content(record: &DomainRecord) -> DomainRecord {
    DomainRecord {
        generation: 0,
        last_operation: None,
        ..record.clone()
    }
}

/// Writes a record as it is, whatever it says.
fn plant(store: &DomainStore, record: &DomainRecord) {
    let sealed = Envelope::RECORD.seal(record).unwrap();
    fs::write(store.record_path(), sealed).unwrap();
}

/// A domain with two snapshots, in a tree of two ways of keeping disks.
fn both_ways() -> (tempfile::TempDir, Shared) {
    prepared_as([None, Some(DiskKind::External)])
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    for prepare in [prepared, both_ways] {
        let (root, shared) = prepare();
        let host = shared.host(root.path());
        assert_eq!(check(&host), Findings::default());
        assert_eq!(repair(&host), Findings::default());
    }
    let (root, shared) = prepared();
    assert_eq!(
        shared
            .host(root.path())
            .inspect("nobody", true, &Unobserved)
            .err()
            .map(|error| error.kind()),
        Some(ErrorKind::NoSuchDomain)
    );
}

/// Something that is damaged, what is found then, and what of it is left after a repair.
struct Damage {
    what: &'static str,
    act: fn(&DomainStore, &Shared),
    found: &'static [FindingKind],
    left: &'static [FindingKind],
}

fn first(store: &DomainStore) -> SnapshotId {
    store.load().unwrap().snapshots[0].id
}

/// The pack that came with the first snapshot.
fn any_pack(store: &DomainStore) -> std::path::PathBuf {
    store.packs_directory().join(first(store).to_string())
}

fn orphan(store: &DomainStore) -> SnapshotId {
    let id = SnapshotId(Uuid::from_u128(77));
    store.create_snapshot_directory(id).unwrap();
    id
}

const DAMAGES: &[Damage] = &[
    Damage {
        what: "a copy is missing",
        act: |store, _| fs::remove_file(store.snapshot_copy_path(first(store))).unwrap(),
        found: &[FindingKind::StaleCopy],
        left: &[],
    },
    Damage {
        what: "a copy is damaged",
        act: |store, _| fs::write(store.snapshot_copy_path(first(store)), b"x").unwrap(),
        found: &[FindingKind::StaleCopy],
        left: &[],
    },
    Damage {
        what: "the copy of the layers is that of another domain",
        act: |store, _| {
            let mut copy = store.present_copy().unwrap().unwrap();
            copy.domain = "other".into();
            fs::write(store.present_path(), Envelope::PRESENT.seal(&copy).unwrap()).unwrap();
        },
        found: &[FindingKind::StaleCopy],
        left: &[],
    },
    Damage {
        what: "a directory that nothing names",
        act: |store, _| {
            let id = orphan(store);
            fs::write(store.partial_memory_path(id), b"half").unwrap();
        },
        found: &[FindingKind::OrphanDirectory],
        left: &[],
    },
    Damage {
        what: "a directory that nothing names, with a memory image",
        act: |store, _| {
            let id = orphan(store);
            fs::write(store.memory_path(id), b"whole").unwrap();
        },
        found: &[FindingKind::OrphanDirectory],
        left: &[FindingKind::OrphanDirectory],
    },
    Damage {
        what: "an older record, that does not know of a snapshot of which nothing is here but what was recorded",
        act: |store, shared| {
            let older = store.load().unwrap();
            shared.0.borrow_mut().domains.clear();
            let request = off_request("three", [DiskKind::Internal; 2]);
            let host = shared.host(store.directory().parent().unwrap());
            execute(&host, &Request::Create(request)).unwrap();
            plant(store, &older);
        },
        found: &[
            FindingKind::StaleCopy,
            FindingKind::OrphanTag,
            FindingKind::OrphanTag,
            FindingKind::OrphanDirectory,
        ],
        left: &[
            FindingKind::OrphanTag,
            FindingKind::OrphanTag,
            FindingKind::OrphanDirectory,
        ],
    },
    Damage {
        what: "a directory that nothing names, with a file of somebody's",
        act: |store, _| {
            let id = orphan(store);
            fs::write(store.snapshot_directory(id).join("notes"), b"x").unwrap();
        },
        found: &[FindingKind::OrphanDirectory, FindingKind::Foreign],
        left: &[FindingKind::OrphanDirectory, FindingKind::Foreign],
    },
    Damage {
        what: "files that were being written",
        act: |store, _| {
            let directory = store.snapshot_directory(first(store));
            fs::write(store.directory().join(".new-1"), b"x").unwrap();
            fs::write(directory.join(".new-2"), b"x").unwrap();
            fs::write(directory.join("memory.partial"), b"x").unwrap();
        },
        found: &[FindingKind::Temporary; 3],
        left: &[],
    },
    Damage {
        what: "a file of somebody's",
        act: |store, _| fs::write(store.directory().join("notes"), b"x").unwrap(),
        found: &[FindingKind::Foreign],
        left: &[FindingKind::Foreign],
    },
    Damage {
        what: "a pack of nobody's",
        act: |store, _| {
            let pack = any_pack(store);
            fs::copy(
                pack,
                store.packs_directory().join(Uuid::from_u128(5).to_string()),
            )
            .unwrap();
        },
        found: &[FindingKind::OrphanPack],
        left: &[],
    },
    Damage {
        what: "a pack that was not completed",
        act: |store, _| {
            let partial = format!("{}.partial", Uuid::from_u128(5));
            fs::write(store.packs_directory().join(partial), b"half").unwrap();
        },
        found: &[FindingKind::Temporary],
        left: &[],
    },
    Damage {
        what: "a file of somebody's among the packs",
        act: |store, _| fs::write(store.packs_directory().join("notes"), b"x").unwrap(),
        found: &[FindingKind::Foreign],
        left: &[FindingKind::Foreign],
    },
    Damage {
        what: "a memory image does not say any more which packs it needs",
        act: |store, _| {
            let path = store.memory_path(first(store));
            let mut bytes = fs::read(&path).unwrap();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            fs::write(&path, &bytes).unwrap();
        },
        found: &[FindingKind::Memory],
        left: &[FindingKind::Memory],
    },
    Damage {
        what: "a memory image is missing",
        act: |store, _| fs::remove_file(store.memory_path(first(store))).unwrap(),
        found: &[FindingKind::Memory],
        left: &[FindingKind::Memory],
    },
    Damage {
        what: "a memory image is cut",
        act: |store, _| {
            let path = store.memory_path(first(store));
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        },
        found: &[FindingKind::Memory],
        left: &[FindingKind::Memory],
    },
    Damage {
        what: "a memory image is a link to itself elsewhere",
        act: |store, _| {
            let path = store.memory_path(first(store));
            let moved = store.directory().parent().unwrap().join("moved");
            fs::rename(&path, &moved).unwrap();
            std::os::unix::fs::symlink(&moved, &path).unwrap();
        },
        found: &[FindingKind::Memory],
        left: &[FindingKind::Memory],
    },
    Damage {
        what: "a directory is gone",
        act: |store, _| fs::remove_dir_all(store.snapshot_directory(first(store))).unwrap(),
        found: &[FindingKind::Memory],
        left: &[FindingKind::Memory],
    },
    Damage {
        what: "an internal snapshot is gone",
        act: |store, shared| {
            let tag = first(store).tag();
            let mut world = shared.0.borrow_mut();
            let image = world.images.get_mut(Path::new(IMAGES[0])).unwrap();
            image.snapshots.remove(&tag).unwrap();
        },
        found: &[FindingKind::Disk],
        left: &[FindingKind::Disk],
    },
    Damage {
        what: "an internal snapshot that nothing explains",
        act: |_, shared| {
            let tag = SnapshotId(Uuid::from_u128(78)).tag();
            let mut world = shared.0.borrow_mut();
            let image = world.images.get_mut(Path::new(IMAGES[0])).unwrap();
            image.snapshots.insert(tag, (String::new(), 5));
            image.snapshots.insert("theirs".into(), (String::new(), 6));
        },
        found: &[FindingKind::OrphanTag],
        left: &[FindingKind::OrphanTag],
    },
    Damage {
        what: "the parent of a snapshot is gone, with its directory",
        act: |store, _| {
            let mut record = store.load().unwrap();
            let gone = record.snapshots.remove(0).id;
            fs::remove_dir_all(store.snapshot_directory(gone)).unwrap();
            plant(store, &record);
        },
        // Its internal snapshots are in both images.
        found: &[
            FindingKind::DanglingParent,
            FindingKind::OrphanTag,
            FindingKind::OrphanTag,
        ],
        left: &[FindingKind::OrphanTag, FindingKind::OrphanTag],
    },
    Damage {
        what: "the current snapshot is none",
        act: |store, _| {
            let mut record = store.load().unwrap();
            record.current = Some(SnapshotId(Uuid::from_u128(79)));
            plant(store, &record);
        },
        found: &[FindingKind::MissingCurrent],
        left: &[],
    },
];

#[test]
fn every_damage_is_found_and_what_can_be_mended_is() {
    for damage in DAMAGES {
        let (root, shared) = prepared();
        let (host, store) = (shared.host(root.path()), store(root.path()));
        (damage.act)(&store, &shared);
        let found = check(&host);
        let sorted = |kinds: &[FindingKind]| {
            let mut kinds = kinds.to_vec();
            kinds.sort();
            kinds
        };
        assert_eq!(
            kinds(&found),
            sorted(damage.found),
            "{}: {found:?}",
            damage.what
        );
        assert_eq!(check(&host), found, "{}: looking changed it", damage.what);
        let left = repair(&host);
        assert_eq!(
            kinds(&left),
            sorted(damage.left),
            "{}: {left:?}",
            damage.what
        );
        assert_eq!(left.repairs, [], "{}", damage.what);
        store.load().unwrap();
        // The images are nobody's but the user's.
        assert_eq!(shared.0.borrow().images.len(), IMAGES.len());
    }
}

#[test]
fn what_holds_something_is_never_removed() {
    let (root, shared) = prepared();
    let store = store(root.path());
    let id = orphan(&store);
    fs::write(store.memory_path(id), b"whole").unwrap();
    repair(&shared.host(root.path()));
    assert_eq!(fs::read(store.memory_path(id)).unwrap(), b"whole");
    // Nor what a record can be made of again.
    let older = store.load().unwrap();
    let host = shared.host(root.path());
    shared.0.borrow_mut().domains.clear();
    let request = off_request("three", [DiskKind::Internal; 2]);
    execute(&host, &Request::Create(request)).unwrap();
    let three = store.load().unwrap().find("three").unwrap().id;
    let copy = store.snapshot_copy(three).unwrap();
    plant(&store, &older);
    repair(&host);
    assert_eq!(store.snapshot_copy(three).unwrap(), copy);
}

#[test]
fn a_child_joins_the_nearest_ancestor_that_is_known() {
    let (root, shared) = prepared();
    let (host, store) = (shared.host(root.path()), store(root.path()));
    create(&host, "three").unwrap();
    let mut record = store.load().unwrap();
    let (one, two) = (record.snapshots[0].id, record.snapshots.remove(1).id);
    record.current = Some(two);
    plant(&store, &record);
    // The copy in the directory of the second one says what was above it.
    let found = repair(&host);
    assert!(!kinds(&found).contains(&FindingKind::DanglingParent));
    let mended = store.load().unwrap();
    assert_eq!(mended.snapshots[1].parent, Some(one));
    assert_eq!(mended.current, Some(one));
}

#[test]
fn a_record_damaged_anywhere_is_made_anew_and_the_damaged_one_is_kept() {
    for prepare in [prepared, both_ways] {
        let (root, shared) = prepare();
        let (host, store) = (shared.host(root.path()), store(root.path()));
        let before = store.load().unwrap();
        let whole = fs::read(store.record_path()).unwrap();
        let step = whole.len() / 23;
        for at in (0..whole.len()).step_by(step) {
            let mut changed = whole.clone();
            changed[at] ^= 0x55;
            for damaged in [&whole[..at], &changed] {
                // A version that is larger is another matter.
                if at == "libxl-ext record ".len() {
                    continue;
                }
                fs::write(store.record_path(), damaged).unwrap();
                assert_eq!(kinds(&check(&host)), [FindingKind::DamagedRecord], "{at}");
                assert_eq!(repair(&host), Findings::default(), "{at}");
                let after = store.load().unwrap();
                assert_eq!(content(&after), content(&before), "{at}");
                assert!(after.generation > before.generation);
                let kept = fs::read_dir(store.directory()).unwrap().flatten();
                let kept = kept
                    .filter(|file| file.file_name().to_string_lossy().contains(".damaged-"))
                    .collect::<Vec<_>>();
                assert_eq!(kept.len(), 1);
                assert_eq!(fs::read(kept[0].path()).unwrap(), damaged);
                fs::remove_file(kept[0].path()).unwrap();
            }
        }
        fs::remove_file(store.record_path()).unwrap();
        assert_eq!(kinds(&check(&host)), [FindingKind::DamagedRecord]);
        assert_eq!(repair(&host), Findings::default());
        assert_eq!(content(&store.load().unwrap()), content(&before));
    }
}

#[test]
fn a_repair_that_is_killed_anywhere_goes_on() {
    let (root, shared) = both_ways();
    let (host, store) = (shared.host(root.path()), store(root.path()));
    let before = store.load().unwrap();
    let damage = || {
        fs::write(store.record_path(), b"torn").unwrap();
        orphan(&store);
        fs::write(store.directory().join(".new-1"), b"x").unwrap();
    };
    damage();
    let count = check(&host).repairs.len();
    assert!(count >= 4, "{:?}", check(&host));
    for at in 0..=count {
        damage();
        {
            let inspection = host.inspect(NAME, false, &Unobserved).unwrap();
            let lock = crate::store::LockWait::No;
            assert!(store.lock(lock).is_err(), "nobody else may work on it");
            let repairs = &inspection.found().repairs[..at];
            let repairs: Vec<Repair> = repairs.to_vec();
            drop(inspection);
            let lock = store.lock(lock).unwrap();
            crate::check::perform(&repairs, &store, &lock, &Unobserved).unwrap();
        }
        assert_eq!(repair(&host), Findings::default(), "after {at}");
        assert_eq!(content(&store.load().unwrap()), content(&before));
    }
}

#[test]
fn a_store_of_a_newer_release_is_refused_and_left_alone() {
    let newer = |path: &Path| {
        let text = String::from_utf8(fs::read(path).unwrap()).unwrap();
        fs::write(path, text.replacen(" 1 ", " 2 ", 1)).unwrap();
        fs::read(path).unwrap()
    };
    let (root, shared) = prepared();
    let (host, store) = (shared.host(root.path()), store(root.path()));
    let refused = |recover| {
        let inspection = host.inspect(NAME, recover, &Unobserved);
        inspection.err().map(|error| error.kind())
    };
    // Neither is a record made of newer copies.
    let copy = store.snapshot_copy_path(first(&store));
    let copied = newer(&copy);
    assert_eq!(refused(true), Some(ErrorKind::NewerVersion));
    let written = newer(&store.record_path());
    for recover in [false, true] {
        assert_eq!(refused(recover), Some(ErrorKind::NewerVersion));
    }
    assert_eq!(fs::read(store.record_path()).unwrap(), written);
    assert_eq!(fs::read(copy).unwrap(), copied);
}

#[test]
fn without_copies_a_record_is_made_of_the_memory_images() {
    let (root, shared) = prepared();
    let (host, store) = (shared.host(root.path()), store(root.path()));
    let before = store.load().unwrap();
    let lose = || {
        fs::write(store.record_path(), b"torn").unwrap();
        fs::remove_file(store.present_path()).unwrap();
        for snapshot in &before.snapshots {
            fs::remove_file(store.snapshot_copy_path(snapshot.id)).unwrap();
        }
    };
    lose();
    assert_eq!(repair(&host), Findings::default());
    let after = store.load().unwrap();
    assert_eq!(after.current, None);
    assert_eq!(after.snapshots.len(), 2);
    for snapshot in &after.snapshots {
        let old = before.get(snapshot.id).unwrap();
        assert_eq!(snapshot.memory, old.memory);
        assert_eq!(snapshot.disks, old.disks);
        assert_eq!(snapshot.guest_type, old.guest_type);
        assert_eq!(snapshot.domain_uuid, old.domain_uuid);
        assert!(snapshot.name().starts_with("recovered-"));
    }
    // It can be reverted to.
    let name = after
        .snapshots
        .iter()
        .find(|snapshot| snapshot.id == before.snapshots[0].id);
    super::revert(&host, name.unwrap().name()).unwrap();
    assert_eq!(super::see(&shared).1, ["disk 0"; 2]);
}

#[test]
fn a_snapshot_whose_disks_are_not_known_is_not_made_up() {
    let (root, shared) = prepared();
    let (host, store) = (shared.host(root.path()), store(root.path()));
    let id = first(&store);
    fs::write(store.record_path(), b"torn").unwrap();
    fs::remove_file(store.snapshot_copy_path(id)).unwrap();
    let path = Path::new(IMAGES[1]);
    let tag = id.tag();
    let image = |shared: &Shared| shared.0.borrow_mut().images.get_mut(path).unwrap().clone();
    let mut changed = image(&shared);
    changed.snapshots.remove(&tag).unwrap();
    shared.0.borrow_mut().images.insert(path.into(), changed);
    let left = repair(&host);
    // The other one of its two internal snapshots is explained by nothing.
    assert_eq!(
        kinds(&left),
        [FindingKind::OrphanDirectory, FindingKind::OrphanTag]
    );
    let record = store.load().unwrap();
    assert_eq!(record.snapshots.len(), 1);
    assert_eq!(record.snapshots[0].parent, None);
    assert!(store.memory_path(id).exists());
}

/// A guest that is started on an image that snapshots stand on destroys them.
#[test]
fn without_the_layers_no_record_is_made() {
    let (root, shared) = both_ways();
    let (host, store) = (shared.host(root.path()), store(root.path()));
    fs::write(store.record_path(), b"torn").unwrap();
    fs::remove_file(store.present_path()).unwrap();
    let left = repair(&host);
    assert!(kinds(&left).contains(&FindingKind::DamagedRecord));
    assert_eq!(fs::read(store.record_path()).unwrap(), b"torn");
    for directory in left.findings.iter().filter_map(|found| found.path.as_ref()) {
        assert!(directory.exists() || directory.starts_with("/images"));
    }
}

#[test]
fn a_layer_that_is_gone_or_stands_elsewhere_is_found() {
    let (root, shared) = both_ways();
    let (host, store) = (shared.host(root.path()), store(root.path()));
    let layer = store.load().unwrap().layers[0].image.clone();
    {
        let mut world = shared.0.borrow_mut();
        let image = world.images.get_mut(&*layer).unwrap();
        image.backing = Some("/etc/shadow".into());
    }
    // QEMU would open it; nobody looks into it here.
    shared.0.borrow_mut().domains.clear();
    let found = check(&host);
    assert_eq!(kinds(&found), [FindingKind::Layer]);
    assert!(found.findings[0].what.contains("/etc/shadow"));
    assert_eq!(repair(&host), found, "it is not ours to decide");
    shared.0.borrow_mut().images.remove(&*layer);
    assert_eq!(kinds(&check(&host)), [FindingKind::Layer]);
}

#[test]
fn an_interrupted_operation_is_said_and_ended_first() {
    let (root, shared) = prepared();
    shared.0.borrow_mut().inject(12, Fault::KilledAfter);
    assert!(attempt(&shared, root.path(), |host| create(host, "three")).is_none());
    shared.0.borrow_mut().heal();
    let (host, store) = (shared.host(root.path()), store(root.path()));
    assert!(store.has_journal());
    let found = check(&host);
    assert_eq!(kinds(&found), [FindingKind::InterruptedOperation]);
    assert_eq!(found.repairs, []);
    assert!(store.has_journal(), "looking changes nothing");
    // Whether it is to be finished stands in the record.
    let record = fs::read(store.record_path()).unwrap();
    fs::write(store.record_path(), b"torn").unwrap();
    let found = repair(&host);
    assert_eq!(
        kinds(&found),
        [
            FindingKind::InterruptedOperation,
            FindingKind::DamagedRecord
        ]
    );
    assert_eq!(fs::read(store.record_path()).unwrap(), b"torn");
    fs::write(store.record_path(), record).unwrap();
    assert_eq!(repair(&host), Findings::default());
    assert!(!store.has_journal());
}
