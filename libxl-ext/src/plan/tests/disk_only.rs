//! Plans for the disks alone, of a domain that is off.

use super::*;
use crate::observe::OffDomain;
use serde_json::json;

/// The domain of [`inventory`], off, as its snapshot `s1` says, with a raw disk besides.
fn off(snapshots: u128) -> Inventory {
    let mut inventory = inventory(&["xvda"], None, snapshots);
    let raw = DeviceDisk {
        pdev_path: Some("/images/xvdb.raw".into()),
        format: Some("raw".into()),
        ..device("xvdb")
    };
    let facts = inventory.images[Path::new("/images/xvda.qcow2")].clone();
    inventory.images.insert("/images/xvdb.raw".into(), facts);
    inventory.off = Some(OffDomain {
        told_by: Some("s1".into()),
        configuration: json!({ "c_info": { "name": "g1" } }),
        guest_type: GuestType::Pv,
        uuid: Uuid::from_u128(7),
        disks: vec![device("xvda"), raw],
    });
    inventory
}

fn request() -> CreateRequest {
    CreateRequest {
        disk_only: true,
        ..named("new")
    }
}

/// The same, running, and the first snapshot is one of the disks alone.
fn running() -> Inventory {
    let mut inventory = inventory(&["xvda"], Some(DomainState::Running), 2);
    let first = &mut inventory.record.snapshots[0];
    first.guest = GuestState::Off;
    first.memory = None;
    inventory.memory.remove(&first.id);
    inventory
}

#[test]
fn create_of_a_qcow2_and_a_raw_disk() {
    insta::assert_snapshot!(super::super::create(&off(1), &request(), &fresh()).unwrap());
}

#[test]
fn revert_of_a_running_domain_to_its_disks() {
    insta::assert_snapshot!(super::super::revert(&running(), &to("s1"), &fresh()).unwrap());
}

#[test]
fn the_check_misses_every_step_that_disks_need() {
    let mut only_internal = off(1);
    only_internal.off.as_mut().unwrap().disks.pop();
    let crippled = [
        (off(1), super::super::create(&off(1), &request(), &fresh())),
        (
            only_internal.clone(),
            super::super::create(&only_internal, &request(), &fresh()),
        ),
        (
            running(),
            super::super::revert(&running(), &to("s1"), &fresh()),
        ),
    ];
    let mut missed = Vec::new();
    for (inventory, plan) in crippled {
        let plan = plan.unwrap();
        check(&plan, &inventory).unwrap();
        for at in 0..plan.steps.len() {
            let mut crippled = plan.clone();
            let step = crippled.steps.remove(at);
            if check(&crippled, &inventory).is_err() {
                missed.push(format!("{}: {step}", plan.operation.as_str()));
            }
        }
    }
    insta::assert_snapshot!(missed.join("\n"));
}

#[test]
fn the_disks_alone_are_not_taken_of_a_guest_that_writes_to_them() {
    let off = off(1);
    let plan = super::super::create(&off, &request(), &fresh()).unwrap();
    let started = Inventory {
        live: Some(live(&["xvda"], DomainState::Paused)),
        ..off.clone()
    };
    assert!(check(&plan, &started).is_err());
    let error = super::super::create(&started, &request(), &fresh()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DomainState);
    let unknown = Inventory {
        off: None,
        off_unknown: Some("it is damaged".into()),
        ..off
    };
    let error = super::super::create(&unknown, &request(), &fresh()).unwrap_err();
    let report = error.report();
    assert!(
        report.contains("it is damaged") && report.contains("--domain-config"),
        "{report}"
    );
}
