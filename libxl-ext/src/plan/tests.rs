//! Plans as people read them, and the rules that none may break.

mod delete;
mod disk_only;
mod external;
mod force;
mod managed;
mod pull;
mod replicate;

use super::*;
use crate::ErrorKind;
use crate::model::disk::{
    DeviceDisk, DiskKind, DiskTarget, ImageFacts, ImageFormat, InternalSnapshot, Stamp,
};
use crate::model::domain::{DomainLife, DomainState, GuestState, GuestType};
use crate::model::name::SnapshotName;
use crate::model::process::ProcessId;
use crate::model::record::{DiskProof, DomainRecord, MemoryProof, RecordState, SnapshotRecord};
use crate::observe::{LiveDomain, Packs};
use crate::types::{DiskSnapshot, DomainSnapshot};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

const MIB: u64 = 1 << 20;

fn fresh() -> Fresh {
    Fresh {
        operation: Uuid::from_u128(0xaa),
        snapshot: SnapshotId(Uuid::from_u128(0xff)),
        now: 1_700_000_000,
    }
}

fn image(vdev: &str) -> String {
    format!("/images/{vdev}.qcow2")
}

fn device(vdev: &str) -> DeviceDisk {
    DeviceDisk {
        pdev_path: Some(image(vdev)),
        vdev: Some(vdev.into()),
        backend: Some("qdisk".into()),
        format: Some("qcow2".into()),
        readwrite: 1,
        ..DeviceDisk::default()
    }
}

fn live(vdevs: &[&str], state: DomainState) -> LiveDomain {
    LiveDomain {
        dirty_pages_known: true,
        life: DomainLife {
            domid: 5,
            uuid: Uuid::from_u128(7),
        },
        state,
        guest_type: GuestType::Pv,
        memory_bytes: 128 * MIB,
        monitor: Some(ProcessId {
            pid: 4321,
            started: 99,
        }),
        disks: vdevs.iter().map(|vdev| device(vdev)).collect(),
    }
}

/// A domain with the given disks, running or not, and so many snapshots of them.
fn inventory(vdevs: &[&str], state: Option<DomainState>, snapshots: u128) -> Inventory {
    let mut record = DomainRecord::new("g1");
    let mut facts = ImageFacts {
        virtual_size: 64 * MIB,
        allocated: 10 * MIB,
        written: Stamp {
            seconds: 1_650_000_000,
            nanoseconds: 7,
        },
        is_device: false,
        retired: false,
        backing: None,
        backing_format: None,
        snapshots: Vec::new(),
    };
    let stamp = Stamp {
        seconds: 1_600_000_000,
        nanoseconds: 5,
    };
    for number in 1..=snapshots {
        let id = SnapshotId(Uuid::from_u128(number));
        facts.snapshots.push(InternalSnapshot {
            tag: id.tag(),
            stamp,
        });
        record.add(SnapshotRecord {
            id,
            parent: None,
            state: RecordState::Complete,
            guest: GuestState::Running,
            guest_type: GuestType::Pv,
            domain_uuid: Uuid::from_u128(7),
            snapshot: DomainSnapshot {
                name: Some(format!("s{number}")),
                disks: vdevs
                    .iter()
                    .map(|vdev| DiskSnapshot {
                        disk: device(vdev),
                        ..DiskSnapshot::default()
                    })
                    .collect(),
                ..DomainSnapshot::default()
            },
            memory: Some(MemoryProof::plain(129 * MIB, "0".repeat(32))),
            disks: vdevs
                .iter()
                .map(|vdev| DiskProof {
                    target: DiskTarget {
                        vdev: (*vdev).into(),
                        image: Path::new(&image(vdev)).into(),
                        format: ImageFormat::Qcow2,
                    },
                    kind: DiskKind::Internal,
                    stamp: Some(stamp),
                })
                .collect(),
            configuration: None,
            contents: BTreeMap::new(),
        });
    }
    Inventory {
        domain: "g1".into(),
        live: state.map(|state| live(vdevs, state)),
        off: None,
        off_unknown: None,
        images: vdevs
            .iter()
            .map(|vdev| (image(vdev).into(), Some(facts.clone())))
            .collect(),
        unreadable: BTreeMap::new(),
        memory: record
            .snapshots
            .iter()
            .map(|snapshot| (snapshot.id, 129 * MIB))
            .collect(),
        record,
        packs: Packs::default(),
        claimed: BTreeMap::new(),
        replicated: None,
        elsewhere: BTreeMap::new(),
        free_bytes: 1000 * MIB,
    }
}

fn named(name: &str) -> CreateRequest {
    CreateRequest {
        name: Some(SnapshotName::new(name).unwrap()),
        ..CreateRequest::default()
    }
}

fn to(name: &str) -> RevertRequest {
    RevertRequest {
        name: name.into(),
        state: None,
        force: false,
    }
}

fn only(name: &str) -> DeleteRequest {
    DeleteRequest {
        name: name.into(),
        scope: DeleteScope::Only,
    }
}

#[test]
fn create() {
    let inventory = inventory(&["xvda", "xvdb"], Some(DomainState::Running), 0);
    insta::assert_snapshot!(super::create(&inventory, &named("s1"), &fresh()).unwrap());
}

#[test]
fn create_of_a_paused_domain_with_a_read_only_disk() {
    let mut inventory = inventory(&["xvda"], Some(DomainState::Paused), 1);
    let cdrom = DeviceDisk {
        is_cdrom: 1,
        ..device("xvdc")
    };
    inventory.live.as_mut().unwrap().disks.push(cdrom);
    insta::assert_snapshot!(
        super::create(&inventory, &CreateRequest::default(), &fresh()).unwrap()
    );
}

#[test]
fn revert_of_a_running_domain() {
    let mut inventory = inventory(&["xvda", "xvdb"], Some(DomainState::Running), 1);
    inventory.live.as_mut().unwrap().disks.push(device("xvdz"));
    insta::assert_snapshot!(super::revert(&inventory, &to("s1"), &fresh()).unwrap());
}

#[test]
fn revert_of_a_domain_that_lost_a_disk_and_crashed() {
    let mut inventory = inventory(&["xvda", "xvdb"], Some(DomainState::Crashed), 1);
    inventory.live.as_mut().unwrap().disks.pop();
    let request = RevertRequest {
        state: Some(GuestState::Paused),
        ..to("s1")
    };
    insta::assert_snapshot!(super::revert(&inventory, &request, &fresh()).unwrap());
}

#[test]
fn revert_of_a_domain_that_is_off() {
    let inventory = inventory(&["xvda"], None, 1);
    insta::assert_snapshot!(super::revert(&inventory, &to("s1"), &fresh()).unwrap());
}

#[test]
fn delete_with_a_child_and_a_missing_image() {
    let mut inventory = inventory(&["xvda", "xvdb"], None, 2);
    inventory.images.insert(image("xvdb").into(), None);
    insta::assert_snapshot!(super::delete(&inventory, &only("s1"), &fresh()).unwrap());
}

/// The type of the guest is recorded; the steps are the same. An HVM guest has a QEMU also without a disk.
#[test]
fn every_type_of_guest_is_snapshotted_alike() {
    let of_type = |guest_type| {
        let mut inventory = inventory(&["xvda"], Some(DomainState::Running), 1);
        inventory.live.as_mut().unwrap().guest_type = guest_type;
        inventory
    };
    let steps =
        |plan: &Plan| -> Vec<String> { plan.steps.iter().map(ToString::to_string).collect() };
    for guest_type in [GuestType::Pvh, GuestType::Hvm] {
        for force in [false, true] {
            let request = RevertRequest { force, ..to("s1") };
            let revert =
                |guest_type| super::revert(&of_type(guest_type), &request, &fresh()).unwrap();
            assert_eq!(steps(&revert(guest_type)), steps(&revert(GuestType::Pv)));
        }
        let create =
            |guest_type| super::create(&of_type(guest_type), &named("n"), &fresh()).unwrap();
        assert_eq!(steps(&create(guest_type)), steps(&create(GuestType::Pv)));
        let types = create(guest_type)
            .steps
            .into_iter()
            .find_map(|step| match step {
                Step::Commit {
                    change: StoreChange::Add { record, .. },
                } => Some(record.guest_type),
                _ => None,
            });
        assert_eq!(types, Some(guest_type));
    }
    let mut bare = live(&[], DomainState::Running);
    assert!(!bare.has_qemu());
    bare.guest_type = GuestType::Hvm;
    assert!(bare.has_qemu());
}

/// Something that is changed in an inventory.
type Change<'a> = &'a dyn Fn(&mut Inventory);

fn disk(inventory: &mut Inventory) -> &mut DeviceDisk {
    &mut inventory.live.as_mut().unwrap().disks[0]
}

#[test]
fn what_stands_in_the_way_is_named() {
    let running = || inventory(&["xvda"], Some(DomainState::Running), 1);
    let create = |change: &dyn Fn(&mut Inventory)| {
        let mut inventory = running();
        change(&mut inventory);
        let error = super::create(&inventory, &named("new"), &fresh()).unwrap_err();
        (error.kind(), error.report())
    };
    let refusals: [(Change<'_>, ErrorKind, &str); 8] = [
        (
            &|i| i.live = None,
            ErrorKind::DomainState,
            "'g1' is not running",
        ),
        (
            &|i| i.live.as_mut().unwrap().state = DomainState::Crashed,
            ErrorKind::DomainState,
            "is crashed",
        ),
        (
            &|i| disk(i).format = Some("vhd".into()),
            ErrorKind::Unsupported,
            "xvda (/images",
        ),
        (
            &|i| disk(i).backend = Some("phy".into()),
            ErrorKind::Unsupported,
            "xvda is on the phy",
        ),
        (
            &|i| disk(i).pdev_path = Some("nbd://host".into()),
            ErrorKind::Unsupported,
            "no absolute path",
        ),
        (
            &|i| {
                let twin = DeviceDisk {
                    vdev: Some("xvdb".into()),
                    ..disk(i).clone()
                };
                i.live.as_mut().unwrap().disks.push(twin);
            },
            ErrorKind::Unsupported,
            "xvda and xvdb are the same image",
        ),
        (
            &|i| {
                let image = disk(i).pdev_path.clone().unwrap();
                i.claimed.insert(image.into(), "other".into());
            },
            ErrorKind::Stale,
            "domain 'other' need",
        ),
        (
            &|i| i.free_bytes = MIB,
            ErrorKind::NoSpace,
            "MiB, and 1.0 MiB are free",
        ),
    ];
    for (change, kind, words) in refusals {
        let (was, report) = create(change);
        assert_eq!(was, kind, "{report}");
        assert!(report.contains(words), "{report}");
    }
}

#[test]
fn a_live_save_needs_to_know_what_the_guest_writes_to() {
    let mut inventory = inventory(&["xvda"], Some(DomainState::Running), 0);
    let mut request = named("new");
    request.live = true;
    super::create(&inventory, &request, &fresh()).unwrap();
    inventory.live.as_mut().unwrap().dirty_pages_known = false;
    let error = super::create(&inventory, &request, &fresh()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.report().contains("shadow"), "{}", error.report());
    inventory.live.as_mut().unwrap().state = DomainState::Paused;
    super::create(&inventory, &request, &fresh()).unwrap();
}

#[test]
fn a_snapshot_that_is_not_whole_is_not_reverted_to() {
    let revert = |change: &dyn Fn(&mut Inventory)| {
        let mut inventory = inventory(&["xvda"], Some(DomainState::Running), 1);
        change(&mut inventory);
        let error = super::revert(&inventory, &to("s1"), &fresh()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        error.report()
    };
    let facts = |i: &mut Inventory, change: &dyn Fn(&mut ImageFacts)| {
        change(
            i.images
                .get_mut(Path::new(&image("xvda")))
                .unwrap()
                .as_mut()
                .unwrap(),
        );
    };
    let missing: [(Change<'_>, &str); 6] = [
        (&|i| i.memory.clear(), "memory image is missing"),
        (
            &|i| i.memory.values_mut().for_each(|bytes| *bytes = 5),
            "5 bytes instead of",
        ),
        (
            &|i| drop(i.images.insert(image("xvda").into(), None)),
            "of xvda is missing",
        ),
        (
            &|i| facts(i, &|facts| facts.snapshots.clear()),
            "no longer holds xl-ext-",
        ),
        (
            &|i| facts(i, &|facts| facts.snapshots[0].stamp.nanoseconds += 1),
            "made at another time",
        ),
        (
            &|i| i.record.snapshots[0].state = RecordState::Deleting,
            "its deletion has begun",
        ),
    ];
    for (change, words) in missing {
        let report = revert(change);
        assert!(report.contains(words), "{report}");
    }
}

/// Takes steps out of plans that are sound, one at a time: each that matters for safety is missed.
#[test]
fn the_check_misses_every_step_that_safety_needs() {
    let inventory = inventory(&["xvda", "xvdb"], Some(DomainState::Running), 2);
    let plans = [
        super::create(&inventory, &named("new"), &fresh()).unwrap(),
        super::revert(&inventory, &to("s1"), &fresh()).unwrap(),
        super::delete(&inventory, &only("s1"), &fresh()).unwrap(),
        force::given_up(&inventory),
    ];
    let mut missed = Vec::new();
    for plan in &plans {
        check(plan, &inventory).unwrap();
        for at in 0..plan.steps.len() {
            let mut crippled = plan.clone();
            let step = crippled.steps.remove(at);
            if check(&crippled, &inventory).is_err() {
                let name = serde_json::to_value(&step).unwrap()["do"].clone();
                missed.push(format!(
                    "{}: {}",
                    plan.operation.as_str(),
                    name.as_str().unwrap()
                ));
            }
        }
    }
    insta::assert_snapshot!(missed.join("\n"));
}

#[test]
fn the_check_refuses_what_loses_data() {
    let inventory = inventory(&["xvda"], Some(DomainState::Running), 2);
    let good = super::revert(&inventory, &to("s1"), &fresh()).unwrap();
    let refused = |steps: Vec<Step>| {
        let error = check(
            &Plan {
                steps,
                ..good.clone()
            },
            &inventory,
        )
        .unwrap_err();
        error.report()
    };
    let (first, second) = (
        inventory.record.snapshots[0].id,
        inventory.record.snapshots[1].id,
    );
    let commit = Step::Commit {
        change: StoreChange::MarkDeleting {
            ids: vec![first],
            changing: Vec::new(),
        },
    };
    let report = refused(vec![commit, Step::RemoveDirectory { id: second }]);
    assert!(
        report.contains("deletes what a snapshot refers to"),
        "{report}"
    );
    let report = refused(vec![Step::RemoveDirectory {
        id: fresh().snapshot,
    }]);
    assert!(report.contains("before the point of no return"), "{report}");
    let mut steps = good.steps.clone();
    let apply = steps
        .iter()
        .position(|step| matches!(step, Step::ApplyImages { .. }))
        .unwrap();
    let destroy = steps
        .iter()
        .position(|step| matches!(step, Step::Destroy { .. }))
        .unwrap();
    steps.swap(apply, destroy);
    let report = refused(steps);
    assert!(
        report.contains("under a domain that has them open"),
        "{report}"
    );
}

#[test]
fn taking_back_a_plan_is_its_mirror_image() {
    let inventory = inventory(&["xvda"], Some(DomainState::Running), 1);
    let plan = super::revert(&inventory, &to("s1"), &fresh()).unwrap();
    let undo = plan.undo_from(plan.point_of_no_return());
    let lines: Vec<_> = undo.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

const SCOPES: [DeleteScope; 3] = [
    DeleteScope::Only,
    DeleteScope::WithChildren,
    DeleteScope::ChildrenOnly,
];

const STATES: [Option<DomainState>; 6] = [
    None,
    Some(DomainState::Running),
    Some(DomainState::Paused),
    Some(DomainState::Crashed),
    Some(DomainState::Shutdown),
    Some(DomainState::Suspended),
];

proptest! {
    /// Whatever the planners accept is sound, and written to the journal and read back it is the same.
    #[test]
    fn every_plan_is_sound(
        disks in 0usize..5,
        snapshots in 0u128..5,
        state in prop::sample::select(&STATES[..]),
        pick in 1u128..5,
        attached in 0usize..5,
        paused: bool,
        force: bool,
        scope in prop::sample::select(&SCOPES[..]),
        parents in prop::collection::vec(0usize..5, 5),
        guest_type in prop::sample::select(&[GuestType::Pv, GuestType::Pvh, GuestType::Hvm][..]),
        room in prop::sample::select(&[0, 1000 * MIB][..]),
    ) {
        let vdevs = ["xvda", "xvdb", "xvdc", "xvdd", "xvde"];
        let mut inventory = inventory(&vdevs[..disks], state, snapshots);
        inventory.free_bytes = room;
        // Any tree: a parent comes before its children.
        let ids: Vec<_> = inventory.record.snapshots.iter().map(|record| record.id).collect();
        let records = inventory.record.snapshots.iter_mut().zip(parents);
        for (at, (record, pick)) in records.enumerate().skip(1) {
            record.parent = Some(ids[pick % at]);
        }
        if let Some(live) = &mut inventory.live {
            live.disks.truncate(attached);
            live.guest_type = guest_type;
        }
        let name = format!("s{pick}");
        let state = paused.then_some(GuestState::Paused);
        let plans = [
            super::create(&inventory, &named("new"), &fresh()),
            super::revert(&inventory, &RevertRequest { name: name.clone(), state, force }, &fresh()),
            super::delete(&inventory, &DeleteRequest { name, scope }, &fresh()),
        ];
        for plan in plans.into_iter().flatten() {
            let gives_up = |step: &Step| {
                matches!(step, Step::Destroy { memory: Memory::GivenUp { .. }, .. })
            };
            prop_assert!(force || !plan.steps.iter().any(gives_up));
            check(&plan, &inventory).map_err(|error| TestCaseError::fail(error.report()))?;
            let text = serde_json::to_string(&plan).unwrap();
            prop_assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
        }
    }
}
