//! Pulls as people read them, and the rules for them.

use super::*;
use crate::model::layer::{Backing, Layer};
use crate::model::pull::{OnError, Pull, PullState};
use crate::plan::{Increment, PullChange, PullRequest, PullStep};

fn backing(image: &str, format: ImageFormat) -> Backing {
    Backing {
        image: Path::new(image).into(),
        format,
    }
}

/// A domain whose disk is a layer on the state of a snapshot, which stands on a template of the user's.
fn layered(state: Option<DomainState>) -> Inventory {
    let mut inventory = inventory(&["xvda"], state, 0);
    let base = backing(&image("xvda"), ImageFormat::Qcow2);
    let layer = Layer {
        vdev: "xvda".into(),
        image: Path::new("/images/layer").into(),
        backing: Some(base.clone()),
        below_written: None,
        base: base.clone(),
        active: true,
        merging: None,
    };
    let facts = inventory.images[Path::new(&*base.image)].clone().unwrap();
    let on = |below: &str, format: &str| {
        Some(ImageFacts {
            backing: Some(below.into()),
            backing_format: Some(format.into()),
            ..facts.clone()
        })
    };
    let images = &mut inventory.images;
    images.insert("/images/layer".into(), on(&image("xvda"), "qcow2"));
    images.insert(base.image.to_path_buf(), on("template", "raw"));
    images.insert("/images/template".into(), Some(facts.clone()));
    let disk = DeviceDisk {
        pdev_path: Some("/images/layer".into()),
        ..device("xvda")
    };
    if let Some(live) = &mut inventory.live {
        live.disks = vec![disk.clone()];
    }
    let record = SnapshotRecord {
        id: SnapshotId(Uuid::from_u128(1)),
        parent: None,
        state: RecordState::Complete,
        guest: GuestState::Running,
        guest_type: GuestType::Pv,
        domain_uuid: Uuid::from_u128(7),
        snapshot: DomainSnapshot {
            name: Some("s1".into()),
            disks: vec![DiskSnapshot {
                disk: device("xvda"),
                ..DiskSnapshot::default()
            }],
            ..DomainSnapshot::default()
        },
        memory: Some(MemoryProof::plain(129 * MIB, "0".repeat(32))),
        disks: vec![DiskProof {
            target: DiskTarget {
                vdev: "xvda".into(),
                image: base.image.clone(),
                format: ImageFormat::Qcow2,
            },
            kind: DiskKind::External,
            stamp: None,
        }],
        configuration: None,
        contents: std::collections::BTreeMap::new(),
    };
    inventory.record.add(record);
    inventory.record.add_layers(&[layer]);
    inventory
}

fn planned(inventory: &Inventory, request: &PullRequest) -> Plan {
    let plan = Request::Pull(request.clone())
        .plan(inventory, &fresh())
        .unwrap_or_else(|error| panic!("{}", error.report()));
    check(&plan, inventory).unwrap();
    plan
}

fn request() -> PullRequest {
    PullRequest {
        disk: "xvda".into(),
        ..PullRequest::default()
    }
}

#[test]
fn nothing_is_pulled_over_an_image_beyond_whose_end_others_go_on() {
    let mut inventory = layered(Some(DomainState::Running));
    let onto_template = PullRequest {
        base: Some("/images/template".into()),
        ..request()
    };
    planned(&inventory, &onto_template);
    let between = inventory.images.get_mut(Path::new(&*image("xvda")));
    between.unwrap().as_mut().unwrap().virtual_size -= 1 << 16;
    let refused = Request::Pull(onto_template.clone())
        .plan(&inventory, &fresh())
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let report = refused.report();
    assert!(
        report.contains(&image("xvda")) && report.contains("without --base"),
        "{report}"
    );
    planned(&inventory, &request());
    let below = inventory.images.get_mut(Path::new("/images/template"));
    below.unwrap().as_mut().unwrap().virtual_size -= 1 << 16;
    planned(&inventory, &onto_template);
}

#[test]
fn a_plan_says_what_is_copied_and_what_stays() {
    let inventory = layered(Some(DomainState::Running));
    let plan = planned(&inventory, &request());
    assert_eq!(
        plan.to_string(),
        "block-pull of domain 'g1':\n   \
         1. see that domain 5's QEMU copies what xvda (/images/layer) lacks\n   \
         2. record that xvda (/images/layer) is being pulled\n  \
         cost: up to 20.0 MiB is copied from image to image\n  \
         note: /images/xvda.qcow2 stays: snapshot 's1' needs it\n  \
         note: /images/template stays, and this disk does not need it any more then\n"
    );
    let increment = PullRequest {
        base: Some("/images/template".into()),
        increment: Some(Increment {
            bytes: MIB,
            cursor: Some(0),
        }),
        ..request()
    };
    assert_eq!(
        planned(&inventory, &increment).to_string(),
        "block-pull of domain 'g1':\n   \
         1. see that domain 5's QEMU copies what xvda (/images/layer) lacks\n   \
         2. wait until xvda (/images/layer) has its first 1048576 bytes\n   \
         3. let the pull of xvda (/images/layer) stand still\n   \
         4. record how far the pull of xvda (/images/layer) is\n  \
         cost: up to 1.0 MiB is copied from image to image\n  \
         note: /images/xvda.qcow2 stays: snapshot 's1' needs it\n"
    );
}

/// The pull of the plan, and the plan without its steps.
fn pull_of(inventory: &Inventory) -> (Plan, Pull) {
    let mut plan = planned(inventory, &request());
    let pull = plan.steps.iter().find_map(|step| match step {
        Step::Pull { step } => Some(step.pull().clone()),
        _ => None,
    });
    plan.steps.clear();
    (plan, pull.unwrap())
}

#[test]
fn a_plan_that_could_lose_something_is_refused() {
    let inventory = layered(Some(DomainState::Running));
    let (empty, pull) = pull_of(&inventory);
    let refused = |steps: Vec<PullStep>, change: PullChange| {
        let mut plan = empty.clone();
        plan.steps = steps.into_iter().map(|step| Step::Pull { step }).collect();
        plan.steps.push(Step::Commit {
            change: StoreChange::Pull { of: change },
        });
        check(&plan, &inventory).unwrap_err().report()
    };
    let begun = || PullChange::Begun { pull: pull.clone() };
    let completed = || PullChange::Ended {
        pull: pull.clone(),
        state: PullState::Completed,
        reason: None,
        at: 0,
    };
    let life = inventory.live.as_ref().unwrap().life;
    let start = |pull: Pull| PullStep::Start {
        life,
        pull,
        anew: true,
        was: None,
    };
    let mut frozen = pull.clone();
    frozen.disk.image = Path::new(&image("xvda")).into();
    let said = refused(vec![start(frozen)], begun());
    assert!(said.contains("that others stand on"), "{said}");
    let copy = PullStep::CopyOff {
        pull: pull.clone(),
        chain: Vec::new(),
        until: None,
    };
    let said = refused(vec![copy], begun());
    assert!(said.contains("that a domain has open"), "{said}");
    let said = refused(vec![start(pull.clone())], completed());
    assert!(said.contains("may still stand on others"), "{said}");
    let complete = PullStep::Complete {
        life: Some(life),
        pull: pull.clone(),
    };
    let release = |image: &str| PullStep::Release {
        pull: pull.clone(),
        images: vec![backing(image, ImageFormat::Raw)],
    };
    let said = refused(vec![complete.clone(), release(&image("xvda"))], completed());
    assert!(said.contains("that the record names"), "{said}");
    let said = refused(vec![release("/images/template"), complete], completed());
    assert!(said.contains("may still stand on"), "{said}");
}

#[test]
fn a_circle_of_images_and_an_old_writer_are_noticed() {
    let mut inventory = layered(Some(DomainState::Running));
    let template = inventory.images.get_mut(Path::new("/images/template"));
    let facts = template.unwrap().as_mut().unwrap();
    facts.backing = Some("layer".into());
    facts.backing_format = Some("qcow2".into());
    // It is raw: what its guest wrote to its beginning leads nowhere.
    planned(&inventory, &request());
    let top = inventory.images.get_mut(Path::new(&image("xvda"))).unwrap();
    top.as_mut().unwrap().backing_format = Some("qcow2".into());
    let refused = |inventory: &Inventory| {
        let plan = Request::Pull(request()).plan(inventory, &fresh());
        plan.unwrap_err()
    };
    assert_eq!(refused(&inventory).kind(), ErrorKind::Corrupt);
    let mut inventory = layered(Some(DomainState::Running));
    inventory.record.layers[0].below_written = Some(Stamp {
        seconds: 1,
        nanoseconds: 0,
    });
    assert_eq!(refused(&inventory).kind(), ErrorKind::Stale);
}

/// The same with a pull that is under way.
fn pulling(change: impl FnOnce(&mut Pull)) -> Inventory {
    let mut inventory = layered(Some(DomainState::Running));
    let (_, mut pull) = pull_of(&inventory);
    change(&mut pull);
    inventory.record.begin_pull(&pull);
    inventory
}

/// What takes back that a pull is gone on with.
fn taken_back(inventory: &Inventory, request: &PullRequest) -> Vec<Step> {
    let plan = planned(inventory, request);
    plan.steps[0].taken_back_by()
}

#[test]
fn what_went_on_by_itself_goes_on_as_it_did_if_it_could_not_be_told_otherwise() {
    let faster = PullRequest {
        bandwidth: 9 << 20,
        ..request()
    };
    let running = pulling(|pull| pull.bandwidth = 1 << 20);
    let steps = taken_back(&running, &faster);
    assert!(
        matches!(
            &steps[..],
            [Step::Pull { step: PullStep::GoOn { speed, .. } }] if *speed == 1 << 20
        ),
        "{steps:?}"
    );
    let held = pulling(|pull| {
        pull.increments = true;
        pull.state = PullState::Held;
    });
    let steps = taken_back(&held, &faster);
    assert!(
        matches!(
            &steps[..],
            [Step::Pull {
                step: PullStep::Hold { .. }
            }]
        ),
        "{steps:?}"
    );
}

#[test]
fn a_pull_of_another_image_of_the_device_is_not_lost_sight_of() {
    let inventory = pulling(|pull| pull.disk.image = Path::new("/images/earlier").into());
    let error = Request::Pull(request())
        .plan(&inventory, &fresh())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DomainState);
    let said = error.report();
    assert!(said.contains("/images/earlier"), "{said}");
}

#[test]
fn what_was_said_when_it_began_stays_said() {
    let inventory = pulling(|pull| {
        pull.on_error = OnError::Pause;
        pull.release_base = true;
    });
    let plan = planned(&inventory, &request());
    let pull = plan.pulled().unwrap();
    assert_eq!((pull.on_error, pull.release_base), (OnError::Pause, true));
    let notes = plan.notes.join("\n");
    assert!(notes.contains("it stands still on an error"), "{notes}");
}

#[test]
fn a_disk_that_qemu_does_not_write_to_as_qcow2_is_refused_with_a_reason() {
    let refused = |change: fn(&mut DeviceDisk)| {
        let mut inventory = layered(Some(DomainState::Running));
        change(&mut inventory.live.as_mut().unwrap().disks[0]);
        let error = Request::Pull(request())
            .plan(&inventory, &fresh())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", error.report());
        error.report()
    };
    let said = refused(|disk| disk.backend = Some("phy".into()));
    assert!(said.contains("phy backend") && said.contains("backendtype=qdisk"));
    let said = refused(|disk| disk.format = Some("raw".into()));
    assert!(said.contains("is raw"), "{said}");
    let said = refused(|disk| disk.format = Some("vhd".into()));
    assert!(said.contains("only qcow2"), "{said}");
    let said = refused(|disk| disk.readwrite = 0);
    assert!(said.contains("read-only"), "{said}");
}
