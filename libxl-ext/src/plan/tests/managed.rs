//! Saved domains: the steps, and that none of them can be left out.

use super::*;
use crate::model::record::ManagedImage;
use crate::plan::{ManagedSaveRequest, ManagedStartRequest, Request};

fn save() -> Request {
    Request::ManagedSave(ManagedSaveRequest::default())
}

fn start() -> Request {
    Request::ManagedStart(ManagedStartRequest::default())
}

/// The domain of [`inventory`], which was saved.
fn saved() -> Inventory {
    let mut inventory = inventory(&["xvda"], None, 1);
    let id = SnapshotId(Uuid::from_u128(0xee));
    let written = inventory.images[Path::new(&image("xvda"))].as_ref();
    let mut disk = inventory.record.snapshots[0].disks[0].clone();
    disk.kind = DiskKind::External;
    disk.stamp = written.map(|facts| facts.written);
    inventory.record.managed = Some(ManagedImage {
        seen_running: None,
        id,
        guest: GuestState::Running,
        guest_type: GuestType::Pv,
        domain_uuid: Uuid::from_u128(7),
        saved_at: 1_700_000_000,
        at_boot: false,
        memory: Some(MemoryProof {
            packed: None,
            bytes: 129 * MIB,
            xxh3: "0".repeat(32),
        }),
        disks: vec![disk],
    });
    inventory.memory.insert(id, 129 * MIB);
    inventory
}

#[test]
fn save_of_a_paused_domain_that_was_started_behind_our_back() {
    let mut inventory = inventory(&["xvda", "xvdb"], Some(DomainState::Paused), 1);
    inventory.record.managed = saved().record.managed;
    let plan = save().plan(&inventory, &fresh()).unwrap();
    check(&plan, &inventory).unwrap();
    insta::assert_snapshot!(plan);
}

#[test]
fn start_of_a_saved_domain() {
    let plan = start().plan(&saved(), &fresh()).unwrap();
    check(&plan, &saved()).unwrap();
    insta::assert_snapshot!(plan);
}

/// Which steps cannot be left out without the check's noticing.
#[test]
fn the_check_misses_every_step_that_a_saved_domain_needs() {
    let running = inventory(&["xvda"], Some(DomainState::Running), 1);
    let mut missed = Vec::new();
    for (inventory, request) in [
        (running, save()),
        (saved(), start()),
        (saved(), Request::ManagedSaveRemove),
    ] {
        let plan = request.plan(&inventory, &fresh()).unwrap();
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

/// A device's time of the last write says nothing, so it is said that nobody will know.
#[test]
fn of_a_device_it_is_said_that_nobody_will_know() {
    let notes = |is_device| {
        let mut inventory = inventory(&["xvda"], Some(DomainState::Running), 0);
        for facts in inventory.images.values_mut().flatten() {
            facts.is_device = is_device;
        }
        save().plan(&inventory, &fresh()).unwrap().notes
    };
    assert!(notes(false).is_empty());
    let told = notes(true);
    assert!(told[0].contains("xvda is no image file"), "{told:?}");
}

#[test]
fn a_domain_is_not_gone_back_to_over_newer_disks_or_beside_itself() {
    let refused = |change: fn(&mut Inventory)| {
        let mut inventory = saved();
        change(&mut inventory);
        let error = start().plan(&inventory, &fresh()).unwrap_err();
        (error.kind(), error.report())
    };
    let (kind, report) = refused(|it| {
        for facts in it.images.values_mut().flatten() {
            facts.written.nanoseconds += 1;
        }
    });
    assert!(
        kind == ErrorKind::Corrupt && report.contains("--fresh"),
        "{report}"
    );
    let (kind, report) = refused(|it| {
        let saved = it.record.managed.as_ref().unwrap().domain_uuid;
        it.elsewhere.insert(saved, 9);
    });
    assert!(
        kind == ErrorKind::DomainState && report.contains("domain 9"),
        "{report}"
    );
    let (kind, _) = refused(|it| it.live = Some(live(&["xvda"], DomainState::Running)));
    assert_eq!(kind, ErrorKind::DomainState);
    let (kind, _) = refused(|it| it.memory.clear());
    assert_eq!(kind, ErrorKind::Corrupt);
}
