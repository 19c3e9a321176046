use super::pages::{Memory, compare};
use super::*;
use crate::bundle::tests::{NAME, Tree};
use crate::error::ErrorKind;
use crate::event::Unobserved;
use crate::memory::{self, Kept, stream};
use crate::model::disk::ImageFormat;
use crate::model::domain::GuestState;
use crate::model::layer::{Backing, Layer};
use crate::model::record::MemoryProof;
use crate::port::Images;
use crate::port::qemu_img::QemuImg;
use std::path::{Path, PathBuf};
use std::process::Command;

fn image(directory: &Path, name: &str, records: &[&[(u64, Option<u8>)]]) -> (PathBuf, MemoryProof) {
    let path = directory.join(name);
    let mut bytes = memory::header("{\"a\": 1}").unwrap();
    bytes.extend(stream(records));
    bytes.extend(b"what the device model says");
    std::fs::write(&path, &bytes).unwrap();
    let proof = MemoryProof::plain(
        bytes.len() as u64,
        format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&bytes)),
    );
    (path, proof)
}

#[test]
fn changed_pages_are_counted_and_a_damaged_image_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (a, a_proof) = image(
        directory.path(),
        "a",
        &[&[(1, Some(1)), (2, Some(2)), (3, Some(3))]],
    );
    let (b, b_proof) = image(
        directory.path(),
        "b",
        &[
            &[(2, Some(9)), (3, Some(9)), (4, Some(4)), (5, Some(5))],
            &[(3, Some(3))],
        ],
    );
    let read = |path: &Path, proof| {
        let kept = Kept {
            image: path.to_owned(),
            packs: directory.path().join("packs"),
        };
        Memory::read(&kept, proof, &Unobserved)
    };
    let (from, to) = (read(&a, &a_proof).unwrap(), read(&b, &b_proof).unwrap());
    assert_eq!(from.configuration, "{\"a\": 1}");
    assert_eq!(
        compare(&from.pages, &to.pages),
        PageDifference {
            from_pages: 3,
            to_pages: 4,
            changed: 1,
            only_from: 1,
            only_to: 2,
            page_bytes: 4096,
        }
    );
    assert_eq!(compare(&from.pages, &from.pages).changed, 0);
    let whole = std::fs::read(&a).unwrap();
    for at in [0, 60, 100, whole.len() / 2, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&a, &changed).unwrap();
        let error = read(&a, &a_proof).err().expect("it was changed");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}");
        let says = if at == 0 { "begin" } else { "checksum" };
        assert!(error.report().contains(says), "byte {at}");
        std::fs::write(&a, &whole[..at]).unwrap();
        assert!(read(&a, &a_proof).is_err(), "cut at {at}");
    }
    // Whoever wrote the record too gets no further.
    let junk = [memory::header("{}").unwrap(), b"junk".to_vec()].concat();
    std::fs::write(&a, &junk).unwrap();
    let proof = MemoryProof::plain(
        junk.len() as u64,
        format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&junk)),
    );
    let error = read(&a, &proof).err().expect("it is junk");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

fn run(program: &str, words: &[&str]) {
    let status = Command::new(program).args(words).status().unwrap();
    assert!(status.success(), "{program} {words:?}");
}

/// What a guest would read at an offset, in one block.
fn block(chain: &[Backing], tag: Option<&str>, at: u64) -> Vec<u8> {
    let mut content = QemuImg.content(chain, tag).unwrap();
    assert_eq!(content.length(), 8 << 20);
    let mut block = vec![0; 4096];
    content.read_at(at, &mut block).unwrap();
    block
}

#[test]
fn a_guests_view_is_read_through_layers_and_in_internal_snapshots() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (base, other) = (path("base,x.raw"), path("other.raw"));
    for file in [&base, &other] {
        run(
            "qemu-img",
            &["create", "-q", "-f", "raw", &text(file), "8M"],
        );
    }
    run(
        "qemu-io",
        &["-f", "raw", "-c", "write -q -P 1 0 64k", &text(&base)],
    );
    run(
        "qemu-io",
        &["-f", "raw", "-c", "write -q -P 7 0 64k", &text(&other)],
    );
    let below = Backing {
        image: base.as_path().into(),
        format: ImageFormat::Raw,
    };
    let layer = Layer {
        vdev: "xvda".into(),
        image: path("layer.qcow2").into(),
        backing: Some(below.clone()),
        below_written: None,
        base: below.clone(),
        active: true,
        merging: None,
    };
    QemuImg.create_layer(&layer).unwrap();
    let write = |pattern: &str| {
        let command = format!("write -q -P {pattern} 1M 64k");
        run(
            "qemu-io",
            &["-f", "qcow2", "-c", &command, &text(&layer.image)],
        );
    };
    write("2");
    QemuImg
        .create_snapshot(&layer.target(), "xl-ext-1")
        .unwrap();
    write("3");
    let chain = [Backing::from(&layer.target()), below];
    assert_eq!(block(&chain, None, 0), [1; 4096]);
    assert_eq!(block(&chain, None, 1 << 20), [3; 4096]);
    assert_eq!(block(&chain, Some("xl-ext-1"), 1 << 20), [2; 4096]);
    assert_eq!(block(&chain, Some("xl-ext-1"), 0), [1; 4096]);
    assert_eq!(block(&chain, None, 2 << 20), [0; 4096]);
    assert!(QemuImg.content(&chain, Some("xl-ext-2")).is_err());
    // What the image says of the one below it does not count.
    run(
        "qemu-img",
        &[
            "rebase",
            "-u",
            "-F",
            "raw",
            "-f",
            "qcow2",
            "-b",
            &text(&other),
            &text(&layer.image),
        ],
    );
    assert_eq!(block(&chain, None, 0), [1; 4096]);
    let missing = Backing {
        image: path("missing").into(),
        format: ImageFormat::Raw,
    };
    let error = QemuImg
        .content(&[missing], None)
        .err()
        .expect("there is none");
    assert!(
        error.report().contains("No such file"),
        "{}",
        error.report()
    );
}

#[test]
fn two_snapshots_are_compared_as_the_guest_saw_them() {
    let tree = Tree::new();
    let diff = |names| tree.host().diff(NAME, names, &Unobserved);
    let disk = |vdev: &str, changed_bytes, ranges| DiskDifference {
        vdev: vdev.into(),
        from_bytes: Some(8 << 20),
        to_bytes: Some(8 << 20),
        changed_bytes,
        ranges,
    };
    let same = diff(["s1", "s1"]).unwrap();
    assert_eq!(same.disks, [disk("xvda", 0, 0), disk("xvdb", 0, 0)]);
    assert_eq!(same.configuration, Some(Vec::new()));
    assert_eq!(same.memory.unwrap().changed, 0);
    // Between the two, 64 KiB were written on each: in the image itself, and to the layer.
    let found = diff(["s1", "s2"]).unwrap();
    let written = 64 << 10;
    assert_eq!(
        found.disks,
        [disk("xvda", written, 1), disk("xvdb", written, 1)]
    );
    let keys: Vec<_> = found
        .configuration
        .iter()
        .flatten()
        .map(|it| &*it.key)
        .collect();
    assert_eq!(keys, ["disks[1].format", "disks[1].pdev_path"]);
    assert_eq!(found.memory.unwrap().changed, 1);
    // The same where the memory of one is a file of the user's.
    let elsewhere = tree.move_memory("s1");
    assert_eq!(diff(["s1", "s2"]).unwrap().memory.unwrap().changed, 1);
    std::fs::remove_file(elsewhere).unwrap();
    let error = diff(["s1", "s2"]).unwrap_err();
    assert!(error.report().contains("elsewhere"), "{}", error.report());
    let error = diff(["s1", "none"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSuchSnapshot);
}

/// They have no memory images; what the domain was made of is recorded.
#[test]
fn configurations_of_the_disks_alone_are_compared_too() {
    let tree = Tree::new();
    let store = tree.store(NAME);
    let mut record = store.load().unwrap();
    for (snapshot, vcpus) in record.snapshots.iter_mut().zip([1, 2]) {
        snapshot.guest = GuestState::Off;
        snapshot.memory = None;
        snapshot.snapshot.memory_file = None;
        snapshot.configuration = Some(serde_json::json!({ "b_info": { "max_vcpus": vcpus } }));
    }
    store.save(&record).unwrap();
    let found = tree.host().diff(NAME, ["s1", "s2"], &Unobserved).unwrap();
    assert_eq!(found.memory, None);
    let configuration = found.configuration.unwrap();
    let keys: Vec<_> = configuration.iter().map(|it| &*it.key).collect();
    assert_eq!(keys, ["b_info.max_vcpus"]);
}
