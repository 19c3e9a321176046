//! Images that somebody else wrote to: found by every command, as long as anything stands on them, and never merged.

use super::delete::delete;
use super::{create_as, execute, prepared_as, revert, revert_to};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Unobserved;
use crate::exec::tests::world::{IMAGES, NAME, Shared};
use crate::model::disk::DiskKind::{External, Internal};
use crate::model::disk::{DeviceDisk, ImageFormat};
use crate::model::layer::{Backing, Layer};
use crate::model::record::DomainRecord;
use crate::plan::{CreateRequest, DeleteScope, Request};
use crate::port::Images;
use crate::port::qemu_img::QemuImg;
use crate::snapshot::Host;
use crate::store::{DomainStore, Store};
use crate::verify::Finding;
use std::path::{Path, PathBuf};
use std::process::Command;

type Prepared = (tempfile::TempDir, Shared);

/// Snapshots `one` and `two` for which the domain went on in layers, and it is off.
fn layered() -> Prepared {
    let (root, shared) = prepared_as([Some(External); 2]);
    shared.0.borrow_mut().domains.clear();
    (root, shared)
}

/// Stock `xl create` with the configuration file, which names the base.
fn a_day_on_the_base(shared: &Shared) {
    let mut world = shared.0.borrow_mut();
    for base in IMAGES {
        let image = world.images.get_mut(Path::new(base)).unwrap();
        image.content = "a day's work".into();
        image.written += 1;
    }
}

fn the_days_work_is_there(shared: &Shared, what: &str) {
    let world = shared.0.borrow();
    for base in IMAGES {
        assert_eq!(world.content(Path::new(base)), "a day's work", "{what}");
    }
}

fn store(root: &tempfile::TempDir) -> DomainStore {
    Store::new(root.path()).domain(NAME)
}

fn changed(root: &tempfile::TempDir, change: impl Fn(&mut DomainRecord)) {
    let store = store(root);
    let mut record = store.load().unwrap();
    change(&mut record);
    store.save(&record).unwrap();
}

fn finds_it(host: &Host) -> bool {
    let found = host.verify(NAME, None, &Unobserved).unwrap();
    found
        .iter()
        .any(|finding| finding.what.ends_with("was written to since"))
}

/// The snapshots that know of it go, one after the other; the layers stay where they stand.
#[test]
fn a_deletion_does_not_forget_it() {
    let old = |record: &mut DomainRecord| {
        for layer in &mut record.layers {
            layer.below_written = None;
        }
    };
    let new = |_: &mut DomainRecord| {};
    for (number, written_by) in [new as fn(&mut DomainRecord), old].into_iter().enumerate() {
        for order in [["one", "two"], ["two", "one"]] {
            let (root, shared) = layered();
            let host = shared.host(root.path());
            changed(&root, written_by);
            a_day_on_the_base(&shared);
            for name in order {
                let what = format!("{order:?}, {name}, record {number}");
                delete(&host, name, DeleteScope::Only).unwrap();
                the_days_work_is_there(&shared, &what);
                assert!(finds_it(&host), "{what}");
            }
        }
    }
}

/// The base is no snapshot's state: it holds the internal `one`, and the external one on top of it was deleted.
#[test]
fn an_image_that_is_no_snapshots_state_is_known_too() {
    let (root, shared) = prepared_as([Some(Internal), Some(External)]);
    let host = shared.host(root.path());
    shared.0.borrow_mut().domains.clear();
    delete(&host, "two", DeleteScope::Only).unwrap();
    assert!(!finds_it(&host));
    a_day_on_the_base(&shared);
    assert!(finds_it(&host));
    delete(&host, "one", DeleteScope::Only).unwrap();
    the_days_work_is_there(&shared, "deleted");
    assert!(finds_it(&host));
}

/// Deleting an internal snapshot writes to the image that it is in: that is no stranger.
#[test]
fn what_we_write_ourselves_is_known() {
    let (root, shared) = prepared_as([Some(Internal), Some(External)]);
    let host = shared.host(root.path());
    create_as(&host, "three", Some(External)).unwrap();
    shared.0.borrow_mut().domains.clear();
    for name in ["two", "one", "three"] {
        delete(&host, name, DeleteScope::Only).unwrap();
        assert_eq!(host.verify(NAME, None, &Unobserved).unwrap(), [], "{name}");
        let record = store(&root).load().unwrap();
        assert!(
            record.layers.iter().all(|it| it.below_written.is_some()),
            "{name}: {record:?}"
        );
    }
    assert_eq!(store(&root).load().unwrap().layers, []);
}

/// By force the user takes what is there; the branches that he did not go back to are no better for it.
#[test]
fn a_revert_by_force_takes_its_own_chain_as_it_is() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    a_day_on_the_base(&shared);
    for name in ["one", "two"] {
        let error = revert(&host, name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.report().contains("--force"), "{}", error.report());
    }
    revert_to(&host, "two", true).unwrap();
    let of_the_disks = |host: &Host| {
        let found = host.verify(NAME, None, &Unobserved).unwrap();
        found.into_iter().filter(|it| it.snapshot.is_none()).count()
    };
    assert_eq!(of_the_disks(&host), 0);
    assert!(finds_it(&host), "the snapshots are not what they were");
    assert!(revert(&host, "two").is_err());
    // The other way round: what stands beside the new layer is as wrong as before.
    let (root, shared) = layered();
    let host = shared.host(root.path());
    a_day_on_the_base(&shared);
    revert_to(&host, "one", true).unwrap();
    assert_eq!(of_the_disks(&host), 0);
    delete(&host, "one", DeleteScope::Only).unwrap();
    let error = revert(&host, "two").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.report());
}

/// As `xl-ext` under the name xl asks before it starts the domain.
fn layers_for_start(host: &Host) -> Result<Vec<Option<Layer>>> {
    let disk = |(path, vdev): (&str, &str)| DeviceDisk {
        pdev_path: Some(path.into()),
        vdev: Some(vdev.into()),
        readwrite: 1,
        ..DeviceDisk::default()
    };
    let disks: Vec<_> = IMAGES.into_iter().zip(["xvda", "xvdb"]).map(disk).collect();
    let layers = host.layers_for_start(NAME, &disks, &Unobserved)?;
    Ok(layers.expect("it was not saved"))
}

/// Neither a start nor a snapshot goes on over it, whether the domain is off or somebody started it on its layers.
#[test]
fn nothing_goes_on_over_it_and_the_ways_out_are_said() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    let record = store(&root).load().unwrap();
    let expected = IMAGES.map(|base| record.active_layer(Path::new(base)).cloned());
    assert_eq!(layers_for_start(&host).unwrap(), expected);
    a_day_on_the_base(&shared);
    let refused = |error: Error| {
        let report = error.report();
        assert_eq!(error.kind(), ErrorKind::Stale, "{report}");
        for words in [
            "xvda (/images/a.qcow2) was written to since",
            "copy /images/a.qcow2 to a new file",
            "snapshot-revert --force",
            "touch -d @",
        ] {
            assert!(report.contains(words), "{report}");
        }
    };
    let disk_only = || {
        let request = CreateRequest {
            disk_only: true,
            kind: Some(External),
            ..CreateRequest::default()
        };
        execute(&host, &Request::Create(request))
    };
    refused(layers_for_start(&host).unwrap_err());
    refused(disk_only().unwrap_err());
    shared.start();
    refused(create_as(&host, "three", Some(External)).unwrap_err());
    refused(create_as(&host, "three", Some(Internal)).unwrap_err());
    the_days_work_is_there(&shared, "refused");
    // The last of the ways: nothing but the time had changed.
    for base in IMAGES {
        let mut world = shared.0.borrow_mut();
        world.images.get_mut(Path::new(base)).unwrap().written -= 1;
    }
    create_as(&host, "three", Some(External)).unwrap();
    shared.0.borrow_mut().domains.clear();
    a_day_on_the_base(&shared);
    // The first: what is there now is what the domain goes on from.
    revert_to(&host, "two", true).unwrap();
    create_as(&host, "four", Some(External)).unwrap();
    shared.0.borrow_mut().domains.clear();
    layers_for_start(&host).unwrap();
}

/// Whoever writes the header of a layer says what QEMU opens.
#[test]
fn a_layer_that_stands_elsewhere_is_not_used() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    let record = store(&root).load().unwrap();
    let below = record.active_layer(Path::new(IMAGES[0])).unwrap();
    let below = below.backing.clone().unwrap().image;
    let edit = |path: Option<PathBuf>| {
        let mut world = shared.0.borrow_mut();
        world.images.get_mut(&*below).unwrap().backing = path;
    };
    edit(Some("/etc/shadow".into()));
    let error = layers_for_start(&host).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stale);
    assert!(error.report().contains("does not say that it stands on"));
    let error = revert_to(&host, "two", true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.report());
    edit(Some(IMAGES[0].into()));
    layers_for_start(&host).unwrap();
    shared.0.borrow_mut().images.get_mut(&*below).unwrap().says = Some("raw");
    let error = layers_for_start(&host).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stale);
    let found = host.verify(NAME, None, &Unobserved).unwrap();
    let takes_it = |finding: &Finding| {
        let words = "takes /images/a.qcow2 for raw and not for qcow2";
        finding.what.contains(words)
    };
    assert!(found.iter().any(takes_it), "{found:?}");
    shared.0.borrow_mut().images.remove(&*below);
    let report = layers_for_start(&host).unwrap_err().report();
    assert!(report.contains("is missing"), "{report}");
}

/// With `qemu-img` itself: a raw base begins with a header of its guest's, and somebody makes the layer take it for what
/// it looks like.
#[test]
fn what_a_layer_takes_the_image_below_for_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let qemu_img = |words: &[&str]| {
        let done = Command::new("qemu-img").args(words).status().unwrap();
        assert!(done.success(), "{words:?}");
    };
    let (base, secret) = (path("base.raw"), path("secret"));
    std::fs::write(&secret, vec![7; 1 << 20]).unwrap();
    let hostile = text(&base);
    let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
    qemu_img(&[&words[..], &[&text(&secret), &hostile, "1M"]].concat());
    let below = Backing {
        image: base.as_path().into(),
        format: ImageFormat::Raw,
    };
    let layer = Layer {
        vdev: "xvda".into(),
        image: path("layer").into(),
        backing: Some(below.clone()),
        below_written: None,
        base: below.clone(),
        active: true,
        merging: None,
    };
    QemuImg.create_layer(&layer).unwrap();
    let stands = || {
        let facts = QemuImg.facts(&layer.image, ImageFormat::Qcow2);
        facts.unwrap().unwrap().stands_on(Some(&below))
    };
    assert!(stands());
    let words = ["rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b"];
    qemu_img(&[&words[..], &[&hostile, &text(&layer.image)]].concat());
    assert!(!stands());
    QemuImg.rebase_layer(&layer, Some(&below), false).unwrap();
    assert!(stands());
}
