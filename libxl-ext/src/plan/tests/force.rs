//! Reverts that lose the present state.

use super::*;

fn revert(inventory: &Inventory, force: bool) -> Result<Plan> {
    let request = RevertRequest { force, ..to("s1") };
    let plan = super::super::revert(inventory, &request, &fresh())?;
    check(&plan, inventory).map(|()| plan)
}

/// The plan of a revert to `s1` of a domain for whose memory there is no room.
pub(super) fn given_up(inventory: &Inventory) -> Plan {
    let full = Inventory {
        free_bytes: 5,
        ..inventory.clone()
    };
    revert(&full, true).unwrap()
}

/// Another domain of the name, with a disk of its own.
fn replaced() -> Inventory {
    let mut inventory = inventory(&["xvda"], Some(DomainState::Running), 1);
    let live = inventory.live.as_mut().unwrap();
    live.life.uuid = Uuid::from_u128(8);
    live.disks[0].pdev_path = Some("/images/other.qcow2".into());
    inventory
}

fn destroyed(plan: &Plan) -> Option<&Memory> {
    plan.steps.iter().find_map(|step| match step {
        Step::Destroy { memory, .. } => Some(memory),
        _ => None,
    })
}

#[test]
fn forced_revert_over_another_domain() {
    let inventory = replaced();
    let refused = revert(&inventory, false).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::DomainState);
    assert!(
        refused.report().contains("or give --force"),
        "{}",
        refused.report()
    );
    let plan = revert(&inventory, true).unwrap();
    // It is brought back if the revert fails, unless somebody wrote to its disk in the meantime.
    let Some(Memory::Kept { disks, others, .. }) = destroyed(&plan) else {
        panic!("{plan}")
    };
    assert_eq!(disks, &[], "none of the snapshot's disks is its own");
    assert_eq!(others, &[Path::new("/images/other.qcow2").into()]);
    insta::assert_snapshot!(plan);
}

#[test]
fn forced_revert_without_room_for_the_present() {
    let inventory = inventory(&["xvda", "xvdb"], Some(DomainState::Running), 1);
    let plan = given_up(&inventory);
    insta::assert_snapshot!(plan);
    let undo = plan.undo_from(plan.point_of_no_return());
    let lines: Vec<_> = undo.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!("forced_revert_taken_back", lines.join("\n"));
}

/// What cannot be saved is refused without force; with force the plan says why it is lost.
#[test]
fn what_cannot_be_saved_is_lost_by_force_alone() {
    let cases: [(Change<'_>, ErrorKind, &str); 2] = [
        (
            &|i| i.free_bytes = 5,
            ErrorKind::NoSpace,
            "0.0 MiB are free",
        ),
        (
            &|i| i.live.as_mut().unwrap().state = DomainState::Suspended,
            ErrorKind::DomainState,
            "is suspended",
        ),
    ];
    for (change, refusal, words) in cases {
        let mut inventory = inventory(&["xvda"], Some(DomainState::Running), 1);
        change(&mut inventory);
        let error = revert(&inventory, false).unwrap_err();
        assert_eq!(error.kind(), refusal);
        assert!(error.report().contains("--force"), "{}", error.report());
        let plan = revert(&inventory, true).unwrap();
        assert!(matches!(destroyed(&plan), Some(Memory::GivenUp { .. })));
        assert!(plan.notes.iter().any(|note| note.contains(words)), "{plan}");
    }
}

#[test]
fn force_changes_nothing_where_the_present_can_be_saved() {
    for state in [
        None,
        Some(DomainState::Running),
        Some(DomainState::Paused),
        Some(DomainState::Crashed),
        Some(DomainState::Shutdown),
    ] {
        let inventory = inventory(&["xvda"], state, 2);
        assert_eq!(
            revert(&inventory, true).unwrap(),
            revert(&inventory, false).unwrap()
        );
    }
}

#[test]
fn the_check_refuses_a_loss_that_nobody_asked_for() {
    let inventory = inventory(&["xvda"], Some(DomainState::Running), 1);
    let refused = |good: &Plan, change: &dyn Fn(&mut Vec<Step>)| {
        let mut plan = good.clone();
        change(&mut plan.steps);
        check(&plan, &inventory).unwrap_err().report()
    };
    let at = |plan: &Plan| {
        let destroys = |step: &Step| matches!(step, Step::Destroy { .. });
        plan.steps.iter().position(destroys).unwrap()
    };
    let becomes = |steps: &mut Vec<Step>, at: usize, fate: Memory| {
        if let Step::Destroy { memory, .. } = &mut steps[at] {
            *memory = fate;
        }
    };
    let saved = revert(&inventory, false).unwrap();
    let lost = given_up(&inventory);
    let report = refused(&saved, &|steps| {
        becomes(steps, at(&saved), Memory::GivenUp { guest: None });
    });
    assert!(report.contains("a memory that was saved"), "{report}");
    let report = refused(&lost, &|steps| becomes(steps, at(&lost), Memory::Ended));
    assert!(report.contains("that could go on"), "{report}");
    // Before the domain is gone, its disks are still written to.
    let aside = |step: &Step| matches!(step, Step::SnapshotImages { .. });
    let aside = lost.steps.iter().position(aside).unwrap();
    let report = refused(&lost, &|steps| steps.swap(at(&lost), aside));
    assert!(report.contains("that has them open"), "{report}");
    let report = refused(&lost, &|steps| {
        let Step::SnapshotImages { id, disks } = steps.remove(aside) else {
            panic!("{lost}")
        };
        let life = inventory.live.as_ref().unwrap().life;
        steps.insert(
            at(&lost),
            Step::SnapshotDisks {
                life,
                id,
                disks,
                layers: Vec::new(),
            },
        );
    });
    assert!(report.contains("goes on writing to"), "{report}");
}
