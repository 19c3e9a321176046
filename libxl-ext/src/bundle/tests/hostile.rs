//! Bundles that somebody made up, with checksums that are right.

use super::{Tree, id, run, text};
use crate::bundle::manifest::{CHECKSUMS, Checksums, MANIFEST, Manifest, Sum, image_name};
use crate::error::ErrorKind;
use crate::model::disk::ImageFormat;
use crate::model::record::MemoryProof;
use crate::port::Images;
use crate::port::qemu_img::QemuImg;
use crate::store::Envelope;
use std::fs;
use std::io::Read;
use std::path::Path;

type Packed = Vec<(String, Vec<u8>)>;

/// What somebody makes of a bundle.
type Change<'a> = &'a dyn Fn(&mut Manifest, &mut Packed);

fn unpack(bytes: &[u8]) -> (Manifest, Packed) {
    let mut archive = tar::Archive::new(bytes);
    let mut members = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        members.push((name, content));
    }
    let manifest = Envelope::BUNDLE
        .open(&members[0].1, Path::new(MANIFEST))
        .unwrap();
    members.pop();
    members.remove(0);
    (manifest, members)
}

/// A bundle whose checksums are right, whatever is in it.
fn pack(manifest: &Manifest, members: &Packed) -> Vec<u8> {
    let sealed = Envelope::BUNDLE.seal(manifest).unwrap();
    let mut all = vec![(MANIFEST.to_owned(), sealed)];
    all.extend(members.iter().cloned());
    let sums = all.iter().map(|(_, content)| {
        let mut sum = Sum::default();
        sum.add(content);
        sum.proof()
    });
    let members: Vec<MemoryProof> = sums.collect();
    let sums = Envelope::CHECKSUMS.seal(&Checksums { members }).unwrap();
    all.push((CHECKSUMS.to_owned(), sums));
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in all {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        archive.append(&header, &*content).unwrap();
    }
    archive.into_inner().unwrap()
}

/// Puts another file in the place of an image.
fn replace(manifest: &mut Manifest, members: &mut Packed, was: &Path, with: Vec<u8>) {
    let number = manifest
        .images
        .iter()
        .position(|entry| *entry.was == *was)
        .unwrap();
    manifest.images[number].bytes = Some(with.len() as u64);
    manifest.images[number].data = vec![(0, with.len() as u64)];
    let name = image_name(number);
    members.iter_mut().find(|(it, _)| *it == name).unwrap().1 = with;
}

#[test]
fn a_bundle_made_to_reach_out_is_refused() {
    let tree = Tree::new();
    let (manifest, members) = unpack(&tree.export());
    assert!(tree.import(&pack(&manifest, &members)).is_ok());
    tree.assert_came();
    tree.forget();
    let a = tree.image("a.qcow2");
    let made = |words: &[&str]| {
        let path = tree.root.path().join("made.qcow2");
        let words = [
            &["create", "-q", "-u", "-f", "qcow2"],
            words,
            &[text(&path), "8M"],
        ]
        .concat();
        run("qemu-img", &words);
        fs::read(path).unwrap()
    };
    let stands = made(&["-b", "/etc/shadow", "-F", "raw"]);
    let elsewhere = {
        let data = tree.root.path().join("data");
        let option = format!("data_file={},data_file_raw=on", text(&data));
        made(&["-o", &option])
    };
    let changes: &[(&str, Change<'_>)] = &[
        ("a base on another image", &|manifest, members| {
            replace(manifest, members, &a, stands.clone());
        }),
        ("data in another file", &|manifest, members| {
            replace(manifest, members, &a, elsewhere.clone());
        }),
        ("an image without the snapshots", &|manifest, members| {
            replace(manifest, members, &a, made(&[]));
        }),
        ("an image that is none", &|manifest, members| {
            replace(manifest, members, &a, b"none".to_vec());
        }),
        ("a disk that is not in it", &|manifest, _| {
            manifest.record.snapshots[0].disks[0].target.image = Path::new("/etc/shadow").into();
        }),
        ("an image without content", &|manifest, members| {
            manifest.images[0].bytes = None;
            manifest.images[0].data.clear();
            members.retain(|(name, _)| *name != image_name(0));
        }),
        ("a layer under two formats", &|manifest, _| {
            manifest.record.layers[1].backing.as_mut().unwrap().format = ImageFormat::Raw;
        }),
        ("data beyond the end", &|manifest, _| {
            manifest.images[0].data[0].0 = u64::MAX - 5;
        }),
        ("more data than there is", &|manifest, _| {
            let length = 1 << 60;
            manifest.images[0].bytes = Some(length);
            manifest.images[0].data = vec![(0, length)];
        }),
        ("data that overlaps", &|manifest, _| {
            let (offset, length) = manifest.images[0].data[0];
            manifest.images[0].data = vec![(offset, length), (offset, length)];
        }),
        ("a name that leaves the directory", &|_, members| {
            members[0].0 = "../../../../tmp/x".into();
        }),
        ("members in another order", &|_, members| members.swap(0, 1)),
        ("one member too many", &|_, members| {
            members.push(("image/99".into(), Vec::new()));
        }),
        ("another memory image", &|_, members| {
            members[0].1 = b"short".to_vec();
        }),
        ("a memory image of the same length", &|_, members| {
            let last = members[0].1.last_mut().unwrap();
            *last ^= 1;
        }),
        ("a parent that is not there", &|manifest, _| {
            manifest.record.snapshots[1].parent = Some(id(9));
        }),
        ("a snapshot whose deletion has begun", &|manifest, _| {
            manifest.record.snapshots[0].state = crate::model::record::RecordState::Deleting;
        }),
        ("a snapshot of another name", &|manifest, _| {
            manifest.record.snapshots[0].snapshot.name = Some("../x".into());
        }),
        ("disks in another order", &|manifest, _| {
            manifest.record.snapshots[0].disks.swap(0, 1);
        }),
    ];
    for (what, change) in changes {
        let (mut manifest, mut members) = (manifest.clone(), members.clone());
        change(&mut manifest, &mut members);
        let error = tree.import(&pack(&manifest, &members)).expect_err(what);
        assert!(
            matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::InvalidRequest),
            "{what}: {}",
            error.report()
        );
        // QEMU never gets to see these two.
        let why = match *what {
            "a base on another image" => "stands on one that is not in it",
            "data in another file" => "keeps its data elsewhere",
            _ => "",
        };
        assert!(error.report().contains(why), "{what}: {}", error.report());
        tree.assert_nothing_came(what);
    }
    // A link, or an extension that would give a member another name, is no member of ours.
    for kind in [
        tar::EntryType::Symlink,
        tar::EntryType::Link,
        tar::EntryType::GNULongName,
        tar::EntryType::GNUSparse,
        tar::EntryType::XHeader,
    ] {
        let mut bytes = pack(&manifest, &members);
        let header: &mut [u8; 512] = (&mut bytes[..512]).try_into().unwrap();
        let mut changed = tar::Header::from_byte_slice(header).clone();
        changed.set_entry_type(kind);
        changed.set_cksum();
        bytes[..512].copy_from_slice(changed.as_bytes());
        assert_eq!(tree.import(&bytes).unwrap_err().kind(), ErrorKind::Corrupt);
        tree.assert_nothing_came("another kind of member");
    }
    let newer = {
        let text = String::from_utf8_lossy(&bytes_of(&manifest)).replacen(" 1 ", " 2 ", 1);
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_path(MANIFEST).unwrap();
        header.set_size(text.len() as u64);
        header.set_cksum();
        archive.append(&header, text.as_bytes()).unwrap();
        archive.into_inner().unwrap()
    };
    assert_eq!(
        tree.import(&newer).unwrap_err().kind(),
        ErrorKind::NewerVersion
    );
    tree.assert_nothing_came("a newer one");
}

fn bytes_of(manifest: &Manifest) -> Vec<u8> {
    Envelope::BUNDLE.seal(manifest).unwrap()
}

/// What a guest writes into a raw disk is never taken for the head of an image.
#[test]
fn a_raw_disk_that_looks_like_qcow2_stays_raw() {
    let tree = Tree::new();
    let bytes = tree.export();
    let (mut manifest, mut members) = unpack(&bytes);
    let path = tree.root.path().join("evil.qcow2");
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            "/etc/shadow",
            text(&path),
            "8M",
        ],
    );
    let mut evil = fs::read(&path).unwrap();
    evil.resize(8 << 20, 0);
    replace(
        &mut manifest,
        &mut members,
        &tree.image("b.raw"),
        evil.clone(),
    );
    tree.import(&pack(&manifest, &members)).unwrap();
    let record = tree.store("h").load().unwrap();
    let target = &record.snapshots[0].disks[1].target;
    assert_eq!(target.format, ImageFormat::Raw);
    assert_eq!(fs::read(&target.image).unwrap(), evil);
    let facts = QemuImg.facts(&record.layers[0].image, ImageFormat::Qcow2);
    assert_eq!(
        facts.unwrap().unwrap().backing.as_deref(),
        Some(&*target.image)
    );
}
