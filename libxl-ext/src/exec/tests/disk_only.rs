//! The same faults with snapshots of the disks alone: taken of a domain that is off, reverted to from one that runs
//! or is off, deleted.

use super::delete::delete;
use super::{
    CALLS_MAX, Case, FAULTS, Prepare, Seen, execute, names, prepared_as, revert, running,
    survives_two_kills,
};
use crate::error::{ErrorKind, Result};
use crate::event::Unobserved;
use crate::exec::tests::world::{Fault, IMAGES, NAME, Shared};
use crate::model::disk::DiskKind::{self, External, Internal};
use crate::model::domain::GuestState;
use crate::model::name::SnapshotName;
use crate::plan::{CreateRequest, DeleteScope, DiskChoice, Request, RevertRequest, Take};
use crate::snapshot::Host;
use crate::store::Store;
use serde_json::{Value, json};
use std::path::Path;

pub(super) fn off_request(name: &str, kinds: [DiskKind; 2]) -> CreateRequest {
    request(name, kinds)
}

fn request(name: &str, kinds: [DiskKind; 2]) -> CreateRequest {
    let disk = |(vdev, kind): (&str, DiskKind)| DiskChoice {
        vdev: vdev.into(),
        take: Some(Take::As(kind)),
        file: None,
    };
    CreateRequest {
        name: Some(SnapshotName::new(name).unwrap()),
        disk_only: true,
        disks: ["xvda", "xvdb"].into_iter().zip(kinds).map(disk).collect(),
        ..CreateRequest::default()
    }
}

fn create(host: &Host, name: &str, kinds: [DiskKind; 2]) -> Result<()> {
    execute(host, &Request::Create(request(name, kinds)))
}

fn off(which: &str) -> Seen {
    (None, vec![format!("disk {which}"); IMAGES.len()])
}

/// Snapshot `one` of a running domain in state 0, `two` of its disks alone in state 1, and the domain is off, in
/// state 2.
fn prepared(kinds: [DiskKind; 2]) -> (tempfile::TempDir, Shared) {
    let (root, shared) = prepared_as([None, None]);
    let host = shared.host(root.path());
    delete(&host, "two", DeleteScope::Only).unwrap();
    shared.live_on("1");
    shared.0.borrow_mut().domains.clear();
    create(&host, "two", kinds).unwrap();
    shared.start();
    shared.live_on("2");
    shared.0.borrow_mut().domains.clear();
    (root, shared)
}

fn internal() -> (tempfile::TempDir, Shared) {
    prepared([Internal; 2])
}

fn external() -> (tempfile::TempDir, Shared) {
    prepared([External; 2])
}

fn mixed() -> (tempfile::TempDir, Shared) {
    prepared([Internal, External])
}

fn started((root, shared): (tempfile::TempDir, Shared)) -> (tempfile::TempDir, Shared) {
    shared.start();
    shared.live_on("2");
    (root, shared)
}

const PREPARATIONS: [Prepare; 3] = [internal, external, mixed];
const RUNNING: [Prepare; 3] = [
    || started(internal()),
    || started(external()),
    || started(mixed()),
];

#[test]
fn create_is_all_or_nothing() {
    let kinds = [[External, Internal], [Internal; 2], [External; 2]];
    for (prepare, kinds) in PREPARATIONS.into_iter().zip(kinds) {
        let case = Case {
            prepare,
            before: (off("2"), &["one", "two"]),
            after: (off("2"), &["one", "two", "three"]),
            given_up: None,
        };
        let points = case.every_fault(|host| create(host, "three", kinds));
        assert!(points > 20, "{points}");
    }
}

#[test]
fn revert_of_a_domain_that_is_off_is_all_or_nothing() {
    for prepare in PREPARATIONS {
        for (to, after) in [("one", running("0")), ("two", off("1"))] {
            let case = Case {
                prepare,
                before: (off("2"), &["one", "two"]),
                after: (after, &["one", "two"]),
                given_up: None,
            };
            let points = case.every_fault(|host| revert(host, to));
            assert!(points > 20, "{points}");
        }
    }
}

#[test]
fn revert_of_a_running_domain_turns_it_off_or_leaves_it() {
    for prepare in RUNNING {
        let case = Case {
            prepare,
            before: (running("2"), &["one", "two"]),
            after: (off("1"), &["one", "two"]),
            given_up: None,
        };
        let points = case.every_fault(|host| revert(host, "two"));
        assert!(points > 60, "{points}");
    }
}

#[test]
fn a_revert_survives_two_kills() {
    survives_two_kills(
        || started(mixed()),
        ("two", false),
        &[running("2"), off("1")],
    );
}

#[test]
fn delete_is_all_or_nothing() {
    // An image that cannot be read when all is looked at is left as it is, and that is said.
    let killed = &FAULTS[1..];
    let before: [(&[Prepare], Seen, &[Fault]); 2] = [
        (&PREPARATIONS, off("2"), killed),
        (&RUNNING[2..], running("2"), &FAULTS),
    ];
    for (preparations, seen, faults) in before {
        for prepare in preparations {
            for (name, left) in [("one", "two"), ("two", "one")] {
                let case = Case {
                    prepare: *prepare,
                    before: (seen.clone(), &["one", "two"]),
                    after: (seen.clone(), &[left]),
                    given_up: None,
                };
                let points =
                    case.every_one_of(faults, |host| delete(host, name, DeleteScope::Only));
                assert!(points > 15, "{points}");
            }
        }
    }
}

/// The disks of a domain that somebody starts while they are snapshotted are of no instant. Between the last look and
/// the record there is a moment in which nobody notices, before it is known when the image was written to last.
#[test]
fn a_domain_that_is_started_meanwhile_is_noticed() {
    for prepare in PREPARATIONS {
        let (mut refused, mut too_late, mut untouched) = (0, 0, 0);
        for at in 0..CALLS_MAX {
            let (root, shared) = prepare();
            shared.0.borrow_mut().start_at(at);
            let host = shared.host(root.path());
            let result = create(&host, "three", [Internal, External]);
            let what = format!("started at call {at}: {result:?}");
            if shared.0.borrow().domains.is_empty() {
                break;
            }
            let names = names(&host);
            shared.0.borrow_mut().domains.clear();
            let findings = host.verify(NAME, None, &Unobserved).unwrap();
            if result.is_err() {
                refused += 1;
                assert_eq!(names, ["one", "two"], "{what}");
                assert_eq!(findings, [], "{what}");
                super::assert_whole(&shared, root.path(), &what);
            } else if findings.is_empty() {
                untouched += 1;
                super::assert_whole(&shared, root.path(), &what);
            } else {
                too_late += 1;
                // And of its disk, which stands on what is written to.
                let is_three = |name: &str| name == "three";
                let of_three = |name: &Option<String>| name.as_deref().is_none_or(is_three);
                assert!(findings.iter().all(|found| of_three(&found.snapshot)));
            }
        }
        println!("{refused} refused, {too_late} too late, {untouched} untouched");
        assert!(refused > 10 && too_late <= 1 && untouched > 0);
    }
}

fn configuration(images: &[&str]) -> Value {
    let disks: Vec<_> = images
        .iter()
        .zip(["xvda", "xvdb"])
        .map(|(path, vdev)| {
            json!({ "pdev_path": path, "vdev": vdev, "format": "qcow2", "readwrite": 1 })
        })
        .collect();
    json!({ "c_info": { "name": NAME, "type": "pvh" }, "disks": disks, "on_reboot": "restart" })
}

/// Its configuration is what the snapshot keeps for the next one, with the backend that libxl would choose.
#[test]
fn a_domain_that_was_never_seen_is_told_by_its_configuration() {
    let root = tempfile::tempdir().unwrap();
    let shared = Shared::new();
    shared.0.borrow_mut().root = root.path().into();
    let host = shared.host(root.path());
    let told = CreateRequest {
        configuration: Some(configuration(&IMAGES)),
        ..request("first", [Internal, External])
    };
    let error = execute(&host, &Request::Create(told.clone())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DomainState);
    assert!(error.report().contains("is running"), "{}", error.report());
    shared.0.borrow_mut().domains.clear();
    let error = create(&host, "first", [Internal; 2]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSuchDomain);
    execute(&host, &Request::Create(told)).unwrap();
    create(&host, "second", [Internal; 2]).unwrap();
    let record = Store::new(root.path()).domain(NAME).load().unwrap();
    let second = record.find("second").unwrap();
    assert_eq!(second.guest_type, crate::model::domain::GuestType::Pvh);
    let kept = second.configuration.as_ref().unwrap();
    assert_eq!(kept["on_reboot"], "restart");
    let layer = record.active_layer(Path::new(IMAGES[1])).unwrap();
    assert_eq!(kept["disks"][0]["backend"], "qdisk");
    assert_eq!(
        kept["disks"][1]["pdev_path"],
        layer.image.display().to_string()
    );
    let broken = CreateRequest {
        configuration: Some(json!({ "c_info": { "type": "pv" }, "disks": 5 })),
        ..request("third", [Internal; 2])
    };
    let error = execute(&host, &Request::Create(broken)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
}

/// V6: a snapshot of the disks alone "will be limited to the disks described".
#[test]
fn a_disk_is_left_out_that_is_not_wanted_or_not_named() {
    let (root, shared) = internal();
    let host = shared.host(root.path());
    let mut named = request("three", [Internal, External]);
    named.disks.pop();
    named.only_disks = true;
    let mut unwanted = request("four", [Internal, External]);
    unwanted.disks[1].take = Some(Take::No);
    let mut every = named.clone();
    every.name = Some(SnapshotName::new("five").unwrap());
    every.only_disks = false;
    for (request, expected) in [
        (named, vec!["xvda"]),
        (unwanted, vec!["xvda"]),
        (every, vec!["xvda", "xvdb"]),
    ] {
        let name = request.name.clone().unwrap();
        execute(&host, &Request::Create(request)).unwrap();
        let record = Store::new(root.path()).domain(NAME).load().unwrap();
        let disks = &record.find(name.as_str()).unwrap().disks;
        let vdevs: Vec<_> = disks.iter().map(|proof| &*proof.target.vdev).collect();
        assert_eq!(vdevs, expected, "{}", name.as_str());
    }
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let (root, shared) = internal();
    let host = shared.host(root.path());
    let to_running = RevertRequest {
        name: "two".into(),
        state: Some(GuestState::Running),
        force: false,
    };
    let error = execute(&host, &Request::Revert(to_running)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.report().contains("xl create"), "{}", error.report());
    let live = CreateRequest {
        live: true,
        ..request("three", [Internal; 2])
    };
    let error = execute(&host, &Request::Create(live)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    shared.start();
    for (pauses, word) in [(0, "power cut"), (1, "not flushed")] {
        let mut world = shared.0.borrow_mut();
        world
            .domains
            .values_mut()
            .for_each(|domain| domain.pauses = pauses);
        drop(world);
        let error = create(&host, "three", [Internal; 2]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DomainState);
        assert!(error.report().contains(word), "{}", error.report());
    }
}

/// With `qemu-img` itself: the content of a qcow2 image and of a raw one, as a guest would read it.
#[test]
fn real_images_hold_what_they_held() {
    let root = tempfile::tempdir().unwrap();
    let shared = Shared::new();
    shared.0.borrow_mut().root = root.path().into();
    shared.0.borrow_mut().domains.clear();
    let (base, raw) = (root.path().join("a.qcow2"), root.path().join("b.raw"));
    let qemu = |program: &str, words: &[&std::ffi::OsStr]| {
        let output = std::process::Command::new(program)
            .args(words)
            .output()
            .expect("it is installed (package qemu-utils)");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{program} {words:?}: {said}");
        said
    };
    let words = ["create", "-q", "-f", "qcow2"].map(std::ffi::OsStr::new);
    qemu(
        "qemu-img",
        &[&words[..], &[base.as_os_str(), "1M".as_ref()]].concat(),
    );
    std::fs::write(&raw, vec![0; 1 << 20]).unwrap();
    let io = |image: &Path, format: &str, command: &str| {
        let words = ["-f", format, "-c", command].map(std::ffi::OsStr::new);
        let said = qemu("qemu-io", &[&words[..], &[image.as_os_str()]].concat());
        assert!(!said.contains("failed"), "{command} of {image:?}: {said}");
    };
    let disks = json!([
        { "pdev_path": base, "vdev": "xvda", "format": "qcow2", "readwrite": 1 },
        { "pdev_path": raw, "vdev": "xvdb", "format": "raw", "readwrite": 1 },
    ]);
    let configuration = json!({ "c_info": { "name": NAME, "type": "pv" }, "disks": disks });
    let mut ports = shared.ports();
    ports.images = Box::new(crate::port::qemu_img::QemuImg);
    let host = Host::new(ports, Store::new(root.path()));
    let take = |name: &str, configuration: Option<Value>| {
        let request = CreateRequest {
            name: Some(SnapshotName::new(name).unwrap()),
            disk_only: true,
            configuration,
            ..CreateRequest::default()
        };
        execute(&host, &Request::Create(request)).unwrap();
    };
    let store = Store::new(root.path()).domain(NAME);
    let disk = || match store.load().unwrap().active_layer(&raw) {
        Some(layer) => (layer.image.to_path_buf(), "qcow2"),
        None => (raw.clone(), "raw"),
    };
    let both = |command: &str| {
        let (image, format) = disk();
        io(&base, "qcow2", command);
        io(&image, format, command);
    };

    both("write -P 1 0 64k");
    take("one", Some(configuration));
    both("write -P 2 0 64k");
    take("two", None);
    both("write -P 3 0 64k");
    assert_eq!(host.verify(NAME, None, &Unobserved).unwrap(), []);
    for (name, command) in [
        ("one", "read -P 1 0 64k"),
        ("two", "read -P 2 0 64k"),
        ("one", "read -P 1 0 64k"),
    ] {
        revert(&host, name).unwrap();
        both(command);
        both("write -P 4 0 64k");
    }
    for name in ["two", "one"] {
        delete(&host, name, DeleteScope::Only).unwrap();
        both("read -P 4 0 64k");
    }
    assert_eq!(disk(), (raw.clone(), "raw"));
    io(&base, "qcow2", "write -P 5 0 64k");
    let left = std::fs::read_dir(root.path()).unwrap().count();
    assert_eq!(left, ["a.qcow2", "b.raw", NAME].len());
}
