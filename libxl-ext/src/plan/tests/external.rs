//! Plans for disks that go on in layers.

use super::*;
use crate::model::layer::{Backing, Into, Layer};
use std::collections::BTreeMap;

fn base() -> Backing {
    Backing {
        image: Path::new("/images/xvda.raw").into(),
        format: ImageFormat::Raw,
    }
}

fn layer(number: u64) -> Layer {
    let backing = match number {
        1 => base(),
        _ => Backing {
            image: layer(number - 1).image,
            format: ImageFormat::Qcow2,
        },
    };
    Layer {
        vdev: "xvda".into(),
        image: Path::new(&format!("/images/layer{number}.qcow2")).into(),
        backing: Some(backing),
        below_written: None,
        base: base(),
        active: false,
        merging: None,
    }
}

fn facts(backing: Option<&Backing>, allocated: u64) -> ImageFacts {
    ImageFacts {
        virtual_size: 64 * MIB,
        allocated,
        written: Stamp {
            seconds: 1_650_000_000,
            nanoseconds: 7,
        },
        is_device: false,
        retired: false,
        backing: backing.map(|below| below.image.to_path_buf()),
        backing_format: backing.map(|below| below.format.driver().into()),
        snapshots: Vec::new(),
    }
}

/// A domain whose disk was raw and has an external snapshot `s1` ... for each layer; `sizes` are those of the
/// base and the layers.
fn chain(sizes: &[u64], state: Option<DomainState>) -> Inventory {
    let last = sizes.len() as u64 - 1;
    let mut inventory = inventory(&["xvda"], state, 0);
    inventory.images.clear();
    inventory
        .images
        .insert(base().image.into(), Some(facts(None, sizes[0] * MIB)));
    for number in 1..=last {
        let layer = layer(number);
        let below = layer.backing.clone().unwrap();
        let allocated = sizes[usize::try_from(number).unwrap()] * MIB;
        let seen = facts(Some(&below), allocated);
        let stamp = Some(seen.written);
        inventory
            .images
            .insert(layer.image.to_path_buf(), Some(seen));
        let id = SnapshotId(Uuid::from_u128(number.into()));
        let target = DiskTarget {
            vdev: "xvda".into(),
            image: below.image.clone(),
            format: below.format,
        };
        let disk = DeviceDisk {
            pdev_path: Some(below.image.display().to_string()),
            format: Some(below.format.driver().into()),
            ..device("xvda")
        };
        inventory.memory.insert(id, 129 * MIB);
        inventory.record.add(SnapshotRecord {
            id,
            parent: None,
            state: RecordState::Complete,
            guest: GuestState::Running,
            guest_type: GuestType::Pv,
            domain_uuid: Uuid::from_u128(7),
            snapshot: DomainSnapshot {
                name: Some(format!("s{number}")),
                disks: vec![DiskSnapshot {
                    disk,
                    external: true,
                    ..DiskSnapshot::default()
                }],
                ..DomainSnapshot::default()
            },
            memory: Some(MemoryProof::plain(129 * MIB, "0".repeat(32))),
            disks: vec![DiskProof {
                target,
                kind: DiskKind::External,
                stamp,
            }],
            configuration: None,
            contents: BTreeMap::new(),
        });
        inventory.record.add_layers(&[layer]);
    }
    let active = match last {
        0 => DiskTarget {
            vdev: "xvda".into(),
            image: base().image,
            format: ImageFormat::Raw,
        },
        _ => layer(last).target(),
    };
    inventory.record.make_disks(std::slice::from_ref(&active));
    if let Some(live) = &mut inventory.live {
        live.disks[0].pdev_path = Some(active.image.display().to_string());
        live.disks[0].format = Some(active.format.driver().into());
    }
    inventory
}

fn sound(plan: crate::Result<Plan>, inventory: &Inventory) -> Plan {
    let plan = plan.unwrap();
    check(&plan, inventory).unwrap();
    plan
}

fn running(sizes: &[u64]) -> Inventory {
    chain(sizes, Some(DomainState::Running))
}

#[test]
fn create_of_a_raw_disk() {
    let inventory = running(&[20]);
    let plan = super::super::create(&inventory, &named("new"), &fresh());
    insta::assert_snapshot!(sound(plan, &inventory));
}

#[test]
fn revert_to_the_first_of_two() {
    let inventory = running(&[20, 3, 5]);
    let plan = super::super::revert(&inventory, &to("s1"), &fresh());
    insta::assert_snapshot!(sound(plan, &inventory));
}

#[test]
fn delete_the_last_merges_the_layer_into_the_base() {
    let inventory = running(&[20, 3]);
    let plan = super::super::delete(&inventory, &only("s1"), &fresh());
    insta::assert_snapshot!(sound(plan, &inventory));
}

#[test]
fn delete_in_the_middle_moves_the_smaller_side() {
    for (sizes, into, moved) in [
        ([20, 3, 5], Into::Layer, 3),
        ([20, 5, 3], Into::Below, 3),
        ([2, 5, 3], Into::Below, 3),
    ] {
        let inventory = running(&sizes);
        let plan = super::super::delete(&inventory, &only("s2"), &fresh());
        let plan = sound(plan, &inventory);
        let merge = plan.steps.iter().find_map(|step| match step {
            Step::MergeLayer { merge } => Some(merge),
            _ => None,
        });
        assert_eq!(merge.map(|merge| merge.into), Some(into), "{sizes:?}");
        assert_eq!(plan.cost.disk_copied, moved * MIB, "{sizes:?}");
    }
}

#[test]
fn why_a_larger_layer_goes_down_into_the_base_is_said() {
    let note = |sizes: &[u64]| {
        let inventory = running(sizes);
        let plan = super::super::delete(&inventory, &only("s1"), &fresh());
        let plan = sound(plan, &inventory);
        let words = "layer1.qcow2 is written to /images/xvda.raw, though that is the smaller one";
        assert_eq!(plan.cost.disk_copied, sizes[1] * MIB);
        plan.notes.iter().any(|note| note.contains(words))
    };
    assert!(note(&[2, 5]));
    assert!(!note(&[5, 2]));
}

#[test]
fn what_somebody_else_wrote_to_is_neither_used_nor_hidden() {
    let written = |inventory: &mut Inventory, image: &Path| {
        let facts = inventory.images.get_mut(image).unwrap().as_mut().unwrap();
        facts.written.seconds += 1;
    };
    let mut inventory = running(&[20, 3, 5]);
    written(&mut inventory, &base().image);
    let error = super::super::revert(&inventory, &to("s1"), &fresh()).unwrap_err();
    assert!(
        error.report().contains("was written to since"),
        "{}",
        error.report()
    );
    let forced = super::super::RevertRequest {
        force: true,
        ..to("s1")
    };
    let plan = sound(
        super::super::revert(&inventory, &forced, &fresh()),
        &inventory,
    );
    assert!(
        plan.to_string()
            .contains("note: /images/xvda.raw was written to since"),
        "{plan}"
    );
    // s2 is in layer1, which would go into a base that is not what it was; the proof of s1 would be new then.
    let plan = super::super::delete(&inventory, &only("s2"), &fresh());
    let plan = sound(plan, &inventory);
    let merges_base = plan.steps.iter().any(|step| match step {
        Step::MergeLayer { merge } => merge.images().contains(&&*base().image),
        _ => false,
    });
    assert!(!merges_base, "{plan}");
    // The base is raw: taken for qcow2, its guest says what is opened.
    let mut inventory = running(&[20, 3]);
    let upper = inventory.images.get_mut(&*layer(1).image).unwrap();
    upper.as_mut().unwrap().backing_format = Some("qcow2".into());
    let plan = sound(
        super::super::delete(&inventory, &only("s1"), &fresh()),
        &inventory,
    );
    assert!(
        !plan
            .steps
            .iter()
            .any(|step| matches!(step, Step::MergeLayer { .. })),
        "{plan}"
    );
    // Started from its configuration file.
    let mut inventory = running(&[20, 3]);
    let disk = &mut inventory.live.as_mut().unwrap().disks[0];
    disk.pdev_path = Some(base().image.display().to_string());
    disk.format = Some("raw".into());
    let error = super::super::create(&inventory, &named("new"), &fresh()).unwrap_err();
    assert!(
        error.report().contains("which others stand on"),
        "{}",
        error.report()
    );
}

/// Takes steps out, one at a time: each that matters for safety is missed.
#[test]
fn the_check_misses_every_step_that_layers_need() {
    let cases = [
        (running(&[20]), "create"),
        (running(&[20, 3, 5]), "revert"),
        (running(&[20, 3]), "delete"),
    ];
    let mut missed = Vec::new();
    for (inventory, operation) in &cases {
        let plan = match *operation {
            "create" => super::super::create(inventory, &named("new"), &fresh()),
            "revert" => super::super::revert(inventory, &to("s1"), &fresh()),
            _ => super::super::delete(inventory, &only("s1"), &fresh()),
        };
        let plan = sound(plan, inventory);
        for at in 0..plan.steps.len() {
            let mut crippled = plan.clone();
            let step = crippled.steps.remove(at);
            if check(&crippled, inventory).is_err() {
                missed.push(format!("{operation}: {step}"));
            }
        }
    }
    insta::assert_snapshot!(missed.join("\n"));
}
