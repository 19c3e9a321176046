//! Bundles of real images, whole and damaged, honest and hostile.

mod hostile;

use super::manifest::Sum;
use super::{ImportRequest, Imported};
use crate::error::{ErrorKind, Result};
use crate::event::Unobserved;
use crate::exec::tests::host_with_files;
use crate::memory;
use crate::model::disk::{DeviceDisk, DiskKind, DiskTarget, ImageFormat, Stamp};
use crate::model::layer::{Backing, Layer};
use crate::model::name::SnapshotId;
use crate::model::record::{DiskProof, DomainRecord};
use crate::model::tree::tests::record;
use crate::port::Images;
use crate::port::qemu_img::QemuImg;
use crate::snapshot::Host;
use crate::store::{DomainStore, Store};
use crate::types::DiskSnapshot;
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use uuid::Uuid;

pub(crate) const NAME: &str = "g2";

/// What libxl wrote for the snapshot of the number: one page of three changes.
fn stream(number: u128) -> Vec<u8> {
    let changing = u8::try_from(number).unwrap();
    memory::stream(&[&[(1, Some(7)), (2, Some(changing)), (3, Some(7))]])
}

fn id(number: u128) -> SnapshotId {
    SnapshotId(Uuid::from_u128(number))
}

fn run(program: &str, words: &[&str]) {
    let status = Command::new(program).args(words).status().unwrap();
    assert!(status.success(), "{program} {words:?}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Writes a pattern of 64 KiB.
fn write(path: &Path, format: &str, at: &str, pattern: &str) {
    let command = format!("write -q -P {pattern} {at} 64k");
    run("qemu-io", &["-f", format, "-c", &command, text(path)]);
}

/// The content that a guest would see; of an internal snapshot, if one is named.
fn content(path: &Path, format: &str, tag: Option<&str>) -> Vec<u8> {
    let out = path.with_extension("content");
    let select = tag.map(|tag| format!("snapshot.name={tag}"));
    let mut words = vec!["convert", "-U", "-f", format, "-O", "raw"];
    words.extend(select.iter().flat_map(|select| ["-l", select]));
    words.extend([text(path), text(&out)]);
    run("qemu-img", &words);
    let bytes = fs::read(&out).unwrap();
    fs::remove_file(out).unwrap();
    bytes
}

/// A tree of a domain with a qcow2 disk, xvda, whose states are inside the image, and a raw one, xvdb, whose states
/// are images, a disk that is only read, and a CD-ROM drive.
pub(crate) struct Tree {
    root: tempfile::TempDir,
}

impl Tree {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let tree = Self { root };
        let [a, b, read_only] = ["a.qcow2", "b.raw", "c.raw"].map(|name| tree.image(name));
        fs::create_dir(tree.root.path().join("images")).unwrap();
        fs::create_dir(tree.root.path().join("new")).unwrap();
        run("qemu-img", &["create", "-q", "-f", "qcow2", text(&a), "8M"]);
        for path in [&b, &read_only] {
            run("qemu-img", &["create", "-q", "-f", "raw", text(path), "8M"]);
        }
        write(&read_only, "raw", "0", "0x77");
        let mut domain = DomainRecord::new(NAME);
        let base = Backing {
            image: b.as_path().into(),
            format: ImageFormat::Raw,
        };
        let mut below = base.clone();
        for number in [1, 2] {
            let pattern = format!("0x{number}{number}");
            write(&a, "qcow2", "1M", &pattern);
            write(&below.image, below.format.driver(), "2M", &pattern);
            let target = |vdev: &str, backing: &Backing| DiskTarget {
                vdev: vdev.into(),
                image: backing.image.clone(),
                format: backing.format,
            };
            let disk_a = target(
                "xvda",
                &Backing {
                    image: a.as_path().into(),
                    format: ImageFormat::Qcow2,
                },
            );
            QemuImg.create_snapshot(&disk_a, &id(number).tag()).unwrap();
            let layer = Layer {
                vdev: "xvdb".into(),
                image: tree
                    .image(&format!("b.raw.xl-ext-{}.qcow2", id(number)))
                    .into(),
                backing: Some(below.clone()),
                below_written: None,
                base: base.clone(),
                active: number == 2,
                merging: None,
            };
            QemuImg.create_layer(&layer).unwrap();
            let disks = [
                (disk_a, DiskKind::Internal),
                (target("xvdb", &below), DiskKind::External),
            ];
            tree.add(&mut domain, number, disks, &read_only);
            below = Backing::from(&layer.target());
            domain.layers.push(layer);
        }
        write(&a, "qcow2", "1M", "0x99");
        write(&below.image, "qcow2", "2M", "0x99");
        let own = tree.store(NAME);
        own.save(&domain).unwrap();
        tree
    }

    fn add(
        &self,
        domain: &mut DomainRecord,
        number: u128,
        disks: [(DiskTarget, DiskKind); 2],
        read_only: &Path,
    ) {
        let own = self.store(NAME);
        let mut snapshot = record(number);
        snapshot.domain_uuid = Uuid::from_u128(1234);
        let mut configured = Vec::new();
        for (target, kind) in disks {
            let facts = QemuImg
                .facts(&target.image, target.format)
                .unwrap()
                .unwrap();
            let stamp: Option<Stamp> = match kind {
                DiskKind::Internal => facts.snapshot(&snapshot.id.tag()).map(|held| held.stamp),
                DiskKind::External => Some(facts.written),
            };
            let disk = DeviceDisk {
                pdev_path: Some(text(&target.image).into()),
                vdev: Some(target.vdev.clone()),
                format: Some(target.format.driver().into()),
                readwrite: 1,
                ..DeviceDisk::default()
            };
            configured.push(serde_json::to_value(&disk).unwrap());
            snapshot.snapshot.disks.push(DiskSnapshot {
                disk,
                name: snapshot.snapshot.name.clone(),
                external: kind == DiskKind::External,
                ..DiskSnapshot::default()
            });
            snapshot.disks.push(DiskProof {
                target,
                kind,
                stamp,
            });
        }
        configured.push(json!({ "vdev": "xvdc", "pdev_path": read_only, "format": "raw" }));
        configured
            .push(json!({ "vdev": "hdc", "pdev_path": "/x.iso", "format": "raw", "is_cdrom": 1 }));
        let configuration = json!({
            "c_info": { "name": NAME, "uuid": snapshot.domain_uuid, "type": "pv" },
            "disks": configured,
        });
        let mut bytes = memory::header(&configuration.to_string()).unwrap();
        bytes.extend(stream(number));
        let mut sum = Sum::default();
        sum.add(&bytes);
        snapshot.memory = Some(sum.proof());
        own.create_snapshot_directory(snapshot.id).unwrap();
        fs::write(own.memory_path(snapshot.id), bytes).unwrap();
        domain.add(snapshot);
    }

    fn image(&self, name: &str) -> PathBuf {
        self.root.path().join("images").join(name)
    }

    fn new_images(&self) -> PathBuf {
        self.root.path().join("new")
    }

    pub(crate) fn store(&self, name: &str) -> DomainStore {
        Store::new(self.root.path().join("store")).domain(name)
    }

    /// Makes the memory image of a snapshot a file of the user's, as `--memory-file` does.
    pub(crate) fn move_memory(&self, name: &str) -> PathBuf {
        let own = self.store(NAME);
        let mut record = own.load().unwrap();
        let elsewhere = self.root.path().join("elsewhere.memory");
        let mut snapshots = record.snapshots.iter_mut();
        let snapshot = snapshots.find(|it| it.name() == name).unwrap();
        fs::rename(own.memory_path(snapshot.id), &elsewhere).unwrap();
        snapshot.snapshot.memory_file = elsewhere.to_str().map(str::to_owned);
        own.save(&record).unwrap();
        elsewhere
    }

    pub(crate) fn host(&self) -> Host {
        host_with_files(&self.root.path().join("store"))
    }

    fn bundle(&self) -> PathBuf {
        self.root.path().join("bundle")
    }

    fn export(&self) -> Vec<u8> {
        self.host()
            .export(NAME, &self.bundle(), &Unobserved)
            .unwrap();
        fs::read(self.bundle()).unwrap()
    }

    /// Imports these bytes under another name.
    fn import(&self, bytes: &[u8]) -> Result<Imported> {
        let path = self.root.path().join("arrived");
        fs::write(&path, bytes).unwrap();
        let request = ImportRequest {
            name: Some("h".into()),
            directory: Some(self.new_images()),
            keep_paths: false,
        };
        self.host().import(&path, &request, &Unobserved)
    }

    /// Nothing came of an import.
    fn assert_nothing_came(&self, what: &str) {
        let left: Vec<_> = fs::read_dir(self.new_images()).unwrap().flatten().collect();
        assert!(left.is_empty(), "{what}: {left:?}");
        let store = fs::read_dir(self.store("h").directory());
        let left: Vec<_> = store
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name())
            .filter(|name| name != "lock")
            .collect();
        assert!(left.is_empty(), "{what}: {left:?}");
    }

    /// What came of an import holds what the tree does.
    fn assert_came(&self) {
        let (was, now) = (
            self.store(NAME).load().unwrap(),
            self.store("h").load().unwrap(),
        );
        assert_eq!(was.snapshots.len(), now.snapshots.len());
        assert_eq!(was.current, now.current);
        for (was, now) in was.snapshots.iter().zip(&now.snapshots) {
            assert_eq!(
                (was.id, was.parent, was.name()),
                (now.id, now.parent, now.name())
            );
            for (was, now) in was.disks.iter().zip(&now.disks) {
                assert!(now.target.image.starts_with(self.new_images()));
                assert_eq!(was.kind, now.kind);
            }
            for (at, proof) in now.disks.iter().enumerate() {
                let tag = now.id.tag();
                let tag = (proof.kind == DiskKind::Internal).then_some(&*tag);
                let format = proof.target.format.driver();
                assert!(
                    content(&was.disks[at].target.image, format, tag)
                        == content(&proof.target.image, format, tag)
                );
            }
        }
        for (was, now) in was.layers.iter().zip(&now.layers) {
            assert_eq!(was.active, now.active);
            assert!(content(&was.image, "qcow2", None) == content(&now.image, "qcow2", None));
        }
        let host = self.host();
        assert_eq!(host.verify("h", None, &Unobserved).unwrap(), []);
        let inspection = host.inspect("h", false, &Unobserved).unwrap();
        assert_eq!(inspection.found().findings, []);
    }

    fn forget(&self) {
        fs::remove_dir_all(self.store("h").directory()).unwrap();
        for entry in fs::read_dir(self.new_images()).unwrap().flatten() {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

#[test]
fn a_tree_comes_out_as_it_went_in_with_names_of_ours() {
    let tree = Tree::new();
    let bytes = tree.export();
    let done = tree.import(&bytes).unwrap();
    assert_eq!((done.snapshots, done.images.len()), (2, 5));
    tree.assert_came();
    let (was, now) = (tree.store(NAME), tree.store("h"));
    for snapshot in now.load().unwrap().snapshots {
        let kept = now.kept_memory(&snapshot);
        kept.prove(snapshot.memory.as_ref().unwrap(), &Unobserved)
            .unwrap();
        assert!(matches!(kept.open().unwrap(), memory::Content::Packed(_)));
        let mut file = kept.open().unwrap();
        let configuration: Value =
            serde_json::from_str(&memory::read_header(&mut file).unwrap()).unwrap();
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, stream(snapshot.id.0.as_u128()));
        assert_eq!(configuration["c_info"]["name"], "h");
        let uuid: Uuid = serde_json::from_value(configuration["c_info"]["uuid"].clone()).unwrap();
        assert_eq!(uuid, snapshot.domain_uuid);
        assert_ne!(uuid, Uuid::from_u128(1234));
        for (at, proof) in snapshot.disks.iter().enumerate() {
            let disk = &configuration["disks"][at];
            assert_eq!(disk["pdev_path"], text(&proof.target.image));
            let configured = snapshot.snapshot.disks[at].disk.pdev_path.as_deref();
            assert_eq!(configured, Some(text(&proof.target.image)));
        }
        let read_only = configuration["disks"][2]["pdev_path"].as_str().unwrap();
        assert!(Path::new(read_only).starts_with(tree.new_images()));
        assert!(
            content(Path::new(read_only), "raw", None)
                == content(&tree.image("c.raw"), "raw", None)
        );
        assert_eq!(configuration["disks"][3]["format"], "empty");
    }
    assert!(was.load().is_ok());
    // The name is taken now, and that of a running domain is.
    assert_eq!(
        tree.import(&bytes).unwrap_err().kind(),
        ErrorKind::InvalidRequest
    );
    tree.assert_came();
    for name in ["g1", "", "17", "a/b", "a\nb"] {
        let request = ImportRequest {
            name: Some(name.into()),
            ..ImportRequest::default()
        };
        let error = tree.host().import(&tree.bundle(), &request, &Unobserved);
        assert_eq!(
            error.unwrap_err().kind(),
            ErrorKind::InvalidRequest,
            "{name:?}"
        );
    }
    // In the store, if no directory is named.
    let request = ImportRequest {
        name: Some("i".into()),
        ..ImportRequest::default()
    };
    let done = tree
        .host()
        .import(&tree.bundle(), &request, &Unobserved)
        .unwrap();
    let images = tree.store("i").images_directory();
    assert!(done.images.iter().all(|image| image.starts_with(&images)));
    let inspection = tree
        .host()
        .inspect("i", false, &Unobserved)
        .unwrap()
        .found()
        .clone();
    assert_eq!(inspection.findings, []);
}

#[test]
fn an_export_is_refused_where_the_content_would_not_be_that_of_the_snapshots() {
    let tree = Tree::new();
    let export = || tree.host().export(NAME, &tree.bundle(), &Unobserved);
    // Somebody's file stays.
    fs::write(tree.bundle(), b"theirs").unwrap();
    assert!(export().is_err());
    assert_eq!(fs::read(tree.bundle()).unwrap(), b"theirs");
    fs::remove_file(tree.bundle()).unwrap();
    // Written to behind our back.
    write(&tree.image("b.raw"), "raw", "3M", "0x55");
    assert_eq!(export().unwrap_err().kind(), ErrorKind::Corrupt);
    let tree = Tree::new();
    let own = tree.store(NAME);
    let memory = own.memory_path(id(1));
    let mut bytes = fs::read(&memory).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(memory, bytes).unwrap();
    let error = tree.host().export(NAME, &tree.bundle(), &Unobserved);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(!tree.bundle().exists());
    let left = fs::read_dir(tree.root.path()).unwrap().flatten();
    assert!(left.count() <= 3, "a part of the file is left");
}

#[test]
fn a_bundle_that_was_cut_anywhere_is_refused_and_nothing_is_left() {
    let tree = Tree::new();
    let bytes = tree.export();
    // Of the two empty blocks at the end the one says the same as both.
    let end = bytes.len() - 1024;
    let lengths = (0..end)
        .step_by(end / 61)
        .chain([1, 511, 512, 513, end - 1]);
    for length in lengths {
        let error = tree.import(&bytes[..length]).expect_err("it was cut");
        assert_eq!(
            error.kind(),
            ErrorKind::Corrupt,
            "{length}: {}",
            error.report()
        );
        tree.assert_nothing_came(&format!("cut at {length}"));
    }
    tree.import(&bytes).unwrap();
    tree.assert_came();
}

#[test]
fn no_changed_byte_changes_what_comes_of_it() {
    let tree = Tree::new();
    let bytes = tree.export();
    let places = (0..4096)
        .step_by(61)
        .chain((0..bytes.len()).step_by(bytes.len() / 31));
    let (mut refused, mut harmless) = (0, 0);
    for at in places {
        let mut changed = bytes.clone();
        changed[at] ^= 0x41;
        if tree.import(&changed).is_err() {
            tree.assert_nothing_came(&format!("byte {at}"));
            refused += 1;
        } else {
            // Between the members there is padding.
            tree.assert_came();
            tree.forget();
            harmless += 1;
        }
    }
    assert!(refused > 60 && harmless < 20, "{refused} {harmless}");
}

#[test]
fn what_an_import_that_was_killed_left_goes_or_is_named() {
    let tree = Tree::new();
    tree.export();
    let own = tree.store("k");
    let import = || {
        let request = ImportRequest {
            name: Some("k".into()),
            ..ImportRequest::default()
        };
        tree.host().import(&tree.bundle(), &request, &Unobserved)
    };
    let images = own.images_directory();
    let partial = images.join("k-1.partial");
    own.ensure_directory().unwrap();
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join("disk-0.raw"), b"half").unwrap();
    own.create_snapshot_directory(id(1)).unwrap();
    fs::write(own.partial_memory_path(id(1)), b"half").unwrap();
    // Killed between the last rename and the record: it may be all that is left of something.
    own.create_snapshot_directory(id(5)).unwrap();
    fs::write(own.memory_path(id(5)), b"whole").unwrap();
    let error = import().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(
        error.report().contains("snapshot-check"),
        "{}",
        error.report()
    );
    assert!(own.memory_path(id(5)).exists() && partial.exists());
    fs::remove_dir_all(own.snapshot_directory(id(5))).unwrap();
    import().unwrap();
    assert!(!partial.exists());
    let host = tree.host();
    let inspection = host.inspect("k", false, &Unobserved).unwrap();
    assert_eq!(inspection.found().findings, []);
}
