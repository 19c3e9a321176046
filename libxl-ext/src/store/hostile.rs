//! What somebody else may have put in the place of the store's files.

use super::*;
use crate::model::tree::tests::record;
use std::os::unix::fs::symlink;

const NAME: &str = "g1";

/// A store with a snapshot in it, and a directory beside it that is not ours, with a file.
struct Planted {
    directory: tempfile::TempDir,
    store: DomainStore,
    id: SnapshotId,
}

impl Planted {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("root")).domain(NAME);
        let mut domain = DomainRecord::new(NAME);
        domain.add(record(1));
        store.save(&domain).unwrap();
        let id = domain.snapshots[0].id;
        let theirs = directory.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        for name in ["memory", "memory.partial", "precious"] {
            fs::write(theirs.join(name), b"precious").unwrap();
        }
        fs::copy(store.record_path(), theirs.join("domain")).unwrap();
        Self {
            directory,
            store,
            id,
        }
    }

    fn theirs(&self, name: &str) -> PathBuf {
        self.directory.path().join("theirs").join(name)
    }

    fn assert_untouched(&self) {
        for name in ["memory", "memory.partial", "precious"] {
            assert_eq!(fs::read(self.theirs(name)).unwrap(), b"precious", "{name}");
        }
        let count = fs::read_dir(self.theirs("precious").parent().unwrap()).unwrap();
        assert_eq!(count.count(), 4, "nothing is added");
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T>) {
    let kind = result.unwrap_err().kind();
    assert!(
        matches!(kind, ErrorKind::Io | ErrorKind::Corrupt),
        "{kind:?}"
    );
}

#[test]
fn a_record_with_any_cut_or_any_changed_byte_is_refused() {
    let Planted { store, .. } = &Planted::new();
    let path = store.record_path();
    let good = fs::read(&path).unwrap();
    for length in 0..good.len() {
        fs::write(&path, &good[..length]).unwrap();
        assert_eq!(store.load().unwrap_err().kind(), ErrorKind::Corrupt);
    }
    for at in 0..good.len() {
        for change in [1, 0x20, 0x80] {
            let mut changed = good.clone();
            changed[at] ^= change;
            fs::write(&path, &changed).unwrap();
            let kind = store.load().unwrap_err().kind();
            let is_refused = matches!(kind, ErrorKind::Corrupt | ErrorKind::NewerVersion);
            assert!(is_refused, "byte {at}: {kind:?}");
        }
    }
    fs::remove_file(&path).unwrap();
    assert!(store.load().unwrap().snapshots.is_empty());
}

#[test]
fn a_link_in_the_place_of_the_record_is_refused_wherever_it_leads() {
    let planted = Planted::new();
    let path = planted.store.record_path();
    for target in [planted.theirs("domain"), planted.theirs("nowhere")] {
        fs::remove_file(&path).unwrap();
        symlink(target, &path).unwrap();
        assert!(planted.store.exists());
        refused(planted.store.load());
    }
    // A commit takes the place of the link and does not follow it.
    let domain = DomainRecord::new(NAME);
    planted.store.save(&domain).unwrap();
    assert_eq!(planted.store.load().unwrap(), domain);
    planted.assert_untouched();
}

#[test]
fn what_is_no_file_is_refused_in_the_place_of_the_record_and_not_waited_for() {
    let Planted { store, .. } = &Planted::new();
    let path = store.record_path();
    fs::remove_file(&path).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    refused(store.load());
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused(store.load());
}

#[test]
fn a_record_without_an_end_is_not_read_to_its_end() {
    let Planted { store, .. } = &Planted::new();
    let file = fs::File::create(store.record_path()).unwrap();
    file.set_len(1 << 40).unwrap();
    assert_eq!(store.load().unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_link_in_the_place_of_the_lock_is_refused() {
    let planted = Planted::new();
    symlink(
        planted.theirs("precious"),
        planted.store.directory().join("lock"),
    )
    .unwrap();
    refused(planted.store.lock(LockWait::No));
    planted.assert_untouched();
}

#[test]
fn links_in_the_place_of_memory_images_are_refused_and_removed_without_their_targets() {
    let planted = Planted::new();
    let Planted { store, id, .. } = &planted;
    store.create_snapshot_directory(*id).unwrap();
    symlink(planted.theirs("memory"), store.partial_memory_path(*id)).unwrap();
    refused(atomic::create_new(&store.partial_memory_path(*id)));
    refused(store.seal_memory(*id));
    assert!(!store.memory_path(*id).exists());
    fs::rename(store.partial_memory_path(*id), store.memory_path(*id)).unwrap();
    refused(store.seal_memory(*id));
    refused(atomic::open_own(&store.memory_path(*id)));
    store.remove_snapshot_directory(*id).unwrap();
    planted.assert_untouched();
}

#[test]
fn a_link_in_the_place_of_a_snapshots_directory_is_refused() {
    let planted = Planted::new();
    let Planted { store, id, .. } = &planted;
    for target in [planted.theirs(""), planted.theirs("nowhere")] {
        symlink(target, store.snapshot_directory(*id)).unwrap();
        refused(store.create_snapshot_directory(*id));
        refused(store.seal_memory(*id));
        refused(atomic::open_own(&store.memory_path(*id)));
        refused(store.remove_snapshot_directory(*id));
        planted.assert_untouched();
        fs::remove_file(store.snapshot_directory(*id)).unwrap();
    }
}

#[test]
fn a_link_in_the_place_of_the_domains_directory_is_refused_but_the_root_may_be_one() {
    let planted = Planted::new();
    let Planted { store, .. } = &planted;
    let moved = planted.directory.path().join("moved");
    let root = store.directory().parent().unwrap();
    fs::rename(root, &moved).unwrap();
    symlink(&moved, root).unwrap();
    assert_eq!(store.load().unwrap().snapshots.len(), 1);
    drop(store.lock(LockWait::No).unwrap());
    fs::remove_dir_all(store.directory()).unwrap();
    symlink(planted.theirs(""), store.directory()).unwrap();
    refused(store.load());
    refused(store.lock(LockWait::No));
    refused(store.save(&DomainRecord::new(NAME)));
    planted.assert_untouched();
}

#[test]
fn a_link_in_the_place_of_a_temporary_goes_without_its_target() {
    let planted = Planted::new();
    let temporary = planted.store.directory().join(".new-abc");
    symlink(planted.theirs("precious"), &temporary).unwrap();
    planted.store.remove_temporaries().unwrap();
    assert!(!atomic::is_there(&temporary));
    planted.assert_untouched();
}
