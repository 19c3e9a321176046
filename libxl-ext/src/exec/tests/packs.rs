//! Pages that several snapshots share: they go with the last one that needs them, and what is damaged hurts those that
//! need it and no others.

use super::delete::delete;
use super::*;
use crate::check::FindingKind;
use crate::event::Observer;
use crate::memory::packed::list;
use crate::plan::{DeleteScope, ManagedSaveRequest, ManagedStartRequest};
use std::fs;

fn packs(root: &Path) -> Vec<(String, u64)> {
    let store = Store::new(root).domain(NAME);
    let record = store.load().unwrap();
    let name = |id| {
        let snapshot = record.get(id);
        snapshot.map_or_else(|| "gone".to_owned(), |it| it.name().to_owned())
    };
    let files = list(&store.packs_directory()).unwrap();
    let mut packs: Vec<_> = files.iter().map(|it| (name(it.id), it.bytes)).collect();
    packs.sort();
    packs
}

fn names_of(packs: &[(String, u64)]) -> Vec<&str> {
    packs.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn the_second_snapshot_outlives_the_first_with_its_pages() {
    let (root, shared) = prepared();
    let host = shared.host(root.path());
    assert_eq!(names_of(&packs(root.path())), ["one", "two"]);
    delete(&host, "one", DeleteScope::Only).unwrap();
    // The page that all have came with the first.
    assert_eq!(names_of(&packs(root.path())), ["gone", "two"]);
    assert_eq!(host.verify(NAME, None, &Unobserved).unwrap(), []);
    assert_whole(&shared, root.path(), "after the deletion");
    revert(&host, "two").unwrap();
    assert_eq!(see(&shared), running("1"));
    // A third one finds what the first had.
    create(&host, "three").unwrap();
    assert_eq!(names_of(&packs(root.path())), ["gone", "two"]);
    delete(&host, "two", DeleteScope::Only).unwrap();
    assert_eq!(names_of(&packs(root.path())), ["gone", "gone"]);
    delete(&host, "three", DeleteScope::Only).unwrap();
    assert_eq!(packs(root.path()), []);
    let packs = Store::new(root.path()).domain(NAME).packs_directory();
    assert!(!packs.exists());
}

#[test]
fn each_snapshot_s_room_is_told_and_given_back() {
    let (root, shared) = prepared();
    let host = shared.host(root.path());
    let record = host.snapshots(NAME, &Unobserved).unwrap();
    let rooms = host.memory_rooms(&record).unwrap();
    let store = Store::new(root.path()).domain(NAME);
    let taken = |snapshot: &SnapshotRecord| fs::metadata(store.memory_of(snapshot)).unwrap().len();
    let images: u64 = record.snapshots.iter().map(taken).sum();
    let of_packs: u64 = packs(root.path()).iter().map(|(_, bytes)| bytes).sum();
    let stored: u64 = rooms.values().map(|room| room.stored).sum();
    assert_eq!(stored, images + of_packs);
    let [one, two] = &record.snapshots[..] else {
        panic!()
    };
    assert_eq!(rooms[&one.id].alone, taken(one), "its pack is needed");
    assert_eq!(rooms[&two.id].alone, rooms[&two.id].stored);
    let plan = |scope| {
        let request = Request::Delete(crate::plan::DeleteRequest {
            name: "one".into(),
            scope,
        });
        host.plan(NAME, &request, &Unobserved).unwrap()
    };
    let released = |scope| plan(scope).cost.room_released;
    assert_eq!(released(DeleteScope::Only), taken(one));
    assert_eq!(released(DeleteScope::WithChildren), stored);
    assert_eq!(
        host.plan(
            NAME,
            &Request::Create(CreateRequest::default()),
            &Unobserved
        )
        .unwrap()
        .cost
        .room_last,
        Some(rooms[&two.id].stored)
    );
}

/// A byte of a page that only the first one has, and of one that both have.
#[test]
fn a_damaged_block_hurts_those_that_need_it_and_no_others() {
    for (damaged, hurt, whole) in [
        ("two", &["two"][..], Some("one")),
        ("one", &["one", "two"], None),
    ] {
        let (root, shared) = prepared();
        let host = shared.host(root.path());
        let store = Store::new(root.path()).domain(NAME);
        let id = store.load().unwrap().find(damaged).unwrap().id;
        let path = store.packs_directory().join(id.to_string());
        let mut bytes = fs::read(&path).unwrap();
        // Behind the head and that of the first block.
        bytes[240] ^= 1;
        fs::write(&path, &bytes).unwrap();

        let inspection = host.inspect(NAME, true, &Unobserved).unwrap();
        let found = &inspection.found().findings;
        let named: Vec<_> = found
            .iter()
            .filter(|finding| finding.kind == FindingKind::Pack)
            .filter_map(|finding| finding.snapshot.as_deref())
            .collect();
        assert_eq!(named, hurt, "{found:?}");
        assert!(
            found.iter().all(|it| it.what.contains("block 0")),
            "{found:?}"
        );
        drop(inspection);
        let verified = host.verify(NAME, None, &Unobserved).unwrap();
        let verified: Vec<_> = verified
            .iter()
            .filter_map(|it| it.snapshot.as_deref())
            .collect();
        assert_eq!(verified, hurt);
        for name in hurt {
            let before = see(&shared);
            let error = revert(&host, name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.report().contains("block 0"), "{}", error.report());
            assert_eq!(see(&shared), before);
        }
        // A new one does not stand on it, but on the rest of the pack.
        create(&host, "three").unwrap();
        shared.live_on("4");
        revert(&host, "three").unwrap();
        assert_eq!(see(&shared), running("2"));
        if let Some(name) = whole {
            revert(&host, name).unwrap();
            assert_eq!(see(&shared), running("0"));
        }
        // What is damaged can go.
        for name in hurt {
            delete(&host, name, DeleteScope::Only).unwrap();
        }
        assert_eq!(host.verify(NAME, None, &Unobserved).unwrap(), []);
        assert!(!packs(root.path()).iter().any(|(pack, _)| pack == damaged));
        let left = host.inspect(NAME, true, &Unobserved).unwrap();
        assert_eq!(left.found().findings, []);
    }
}

/// Notes what it is told.
#[derive(Default)]
struct Notes(std::sync::Mutex<Vec<String>>);

impl Observer for Notes {
    fn step(&self, _what: &str) {}
    fn progress(&self, _progress: crate::event::Progress) {}
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
    fn wants_abort(&self) -> bool {
        false
    }
}

#[test]
fn as_long_as_an_image_cannot_be_asked_no_pack_goes() {
    let (root, shared) = prepared();
    let host = shared.host(root.path());
    let store = Store::new(root.path()).domain(NAME);
    let path = store.memory_path(store.load().unwrap().find("one").unwrap().id);
    let good = fs::read(&path).unwrap();
    // In its end, and in its first byte, by which it is told from a file of xl's.
    for at in [good.len() - 1, 0] {
        create(&host, "three").unwrap();
        let before = packs(root.path());
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        let notes = Notes::default();
        let request = Request::Delete(crate::plan::DeleteRequest {
            name: "three".into(),
            scope: DeleteScope::Only,
        });
        host.execute(NAME, &request, &notes).unwrap();
        let notes = notes.0.into_inner().unwrap();
        assert!(
            notes.iter().any(|it| it.contains("no pack is removed")),
            "{notes:?}"
        );
        assert_eq!(packs(root.path()).len(), before.len());
        fs::write(&path, &good).unwrap();
        let left = host.inspect(NAME, true, &Unobserved).unwrap();
        let left = left.repair(&Unobserved).unwrap();
        assert_eq!(left.findings, []);
        assert_whole(&shared, root.path(), "mended");
    }
}

/// An image of an earlier release, or of `--format stock`, beside packed ones.
#[test]
fn plain_and_packed_images_live_side_by_side() {
    let (root, shared) = prepared();
    let host = shared.host(root.path());
    let stock = |name: &str| {
        execute(
            &host,
            &Request::Create(CreateRequest {
                name: Some(SnapshotName::new(name).unwrap()),
                format: crate::model::record::MemoryFormat::Stock,
                ..CreateRequest::default()
            }),
        )
    };
    stock("plain").unwrap();
    let store = Store::new(root.path()).domain(NAME);
    let record = store.load().unwrap();
    let plain = record.find("plain").unwrap();
    assert_eq!(plain.memory.as_ref().unwrap().packed, None);
    let bytes = fs::read(store.memory_of(plain)).unwrap();
    assert!(bytes.starts_with(b"Xen saved domain, xl format"));
    // What comes out of a packed one is what xl would have written.
    create(&host, "four").unwrap();
    for name in ["plain", "four"] {
        let to = root.path().join(format!("exported {name}"));
        host.export_memory(NAME, name, &to, &Unobserved).unwrap();
        assert_eq!(fs::read(&to).unwrap(), bytes, "{name}");
        assert!(host.export_memory(NAME, name, &to, &Unobserved).is_err());
        fs::remove_file(to).unwrap();
    }
    assert_eq!(host.verify(NAME, None, &Unobserved).unwrap(), []);
    shared.live_on("4");
    revert(&host, "plain").unwrap();
    assert_eq!(see(&shared), running("2"));
    delete(&host, "plain", DeleteScope::Only).unwrap();
    delete(&host, "four", DeleteScope::Only).unwrap();
    assert_whole(&shared, root.path(), "both are gone");
}

/// A saved domain shares its pages with its snapshots, and gives back its own.
#[test]
fn what_was_saved_shares_pages_with_the_snapshots() {
    let (root, shared) = prepared();
    let host = shared.host(root.path());
    execute(&host, &Request::ManagedSave(ManagedSaveRequest::default())).unwrap();
    assert_eq!(packs(root.path()).len(), 3);
    assert_whole(&shared, root.path(), "saved");
    let to = root.path().join("exported");
    host.export_managed_save(NAME, &to, &Unobserved).unwrap();
    let bytes = fs::read(&to).unwrap();
    assert!(bytes.starts_with(b"Xen saved domain, xl format"));
    assert!(host.export_managed_save(NAME, &to, &Unobserved).is_err());
    assert_eq!(fs::read(&to).unwrap(), bytes, "a file is not replaced");
    execute(
        &host,
        &Request::ManagedStart(ManagedStartRequest::default()),
    )
    .unwrap();
    assert_eq!(packs(root.path()).len(), 2);
    assert_eq!(see(&shared), running("2"));
    fs::remove_file(&to).unwrap();
    let error = host
        .export_managed_save(NAME, &to, &Unobserved)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSuchSnapshot);
    assert!(!to.exists());
}
