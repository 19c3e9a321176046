//! Deletions of a part of the tree.

use super::*;

/// Something that is changed in a plan.
type Edit<'a> = &'a dyn Fn(&mut Vec<Step>);

fn id(number: u128) -> SnapshotId {
    SnapshotId(Uuid::from_u128(number))
}

/// `s1` with the children `s2` and `s4`, and `s3` below `s2`; the present state comes from `s4`.
fn branched() -> Inventory {
    let mut inventory = inventory(&["xvda", "xvdb"], Some(DomainState::Running), 4);
    inventory.record.snapshots[3].parent = Some(id(1));
    inventory
}

fn delete(inventory: &Inventory, name: &str, scope: DeleteScope) -> Plan {
    let request = DeleteRequest {
        name: name.into(),
        scope,
    };
    let plan = super::super::delete(inventory, &request, &fresh()).unwrap();
    check(&plan, inventory).unwrap();
    plan
}

#[test]
fn delete_with_children() {
    let mut inventory = branched();
    inventory.images.insert(image("xvdb").into(), None);
    inventory.record.mark_deleting(&[id(3)]);
    insta::assert_snapshot!(delete(&inventory, "s1", DeleteScope::WithChildren));
}

#[test]
fn delete_children_only() {
    insta::assert_snapshot!(delete(&branched(), "s2", DeleteScope::ChildrenOnly));
}

#[test]
fn without_children_there_is_only_the_snapshot_or_nothing_to_delete() {
    let inventory = branched();
    let plan = delete(&inventory, "s3", DeleteScope::WithChildren);
    assert_eq!(plan, delete(&inventory, "s3", DeleteScope::Only));
    let plan = delete(&inventory, "s3", DeleteScope::ChildrenOnly);
    assert_eq!((plan.steps.len(), plan.deleted().len()), (0, 0));
    insta::assert_snapshot!(plan);
}

#[test]
fn the_check_refuses_a_deletion_that_is_not_whole() {
    let inventory = branched();
    let good = delete(&inventory, "s1", DeleteScope::WithChildren);
    let broken = |change: Edit<'_>| {
        let mut plan = good.clone();
        change(&mut plan.steps);
        check(&plan, &inventory).unwrap_err().report()
    };
    let of = |number| {
        let at = |wanted: fn(&Step) -> bool| {
            good.steps.iter().position(|step| {
                let concerned = matches!(step, Step::DeleteTags { id: of, .. } | Step::RemoveDirectory { id: of } if *of == id(number));
                concerned && wanted(step)
            })
        };
        (
            at(|step| matches!(step, Step::DeleteTags { .. })).unwrap(),
            at(|step| matches!(step, Step::RemoveDirectory { .. })).unwrap(),
        )
    };
    let last = good.steps.len() - 1;
    let refusals: [(Edit<'_>, &str); 7] = [
        (
            &|steps| drop(steps.remove(of(3).0)),
            "before those below it",
        ),
        (
            &|steps| drop(steps.remove(of(3).1)),
            "before those below it",
        ),
        (
            &|steps| drop(steps.remove(of(1).0)),
            "of which something is left",
        ),
        (
            &|steps| drop(steps.remove(of(1).1)),
            "of which something is left",
        ),
        (
            &|steps| steps.swap(of(1).0, of(2).0),
            "before those below it",
        ),
        (
            &|steps| drop(steps.remove(last)),
            "would be left unfinished",
        ),
        (
            &|steps| {
                let change = StoreChange::Remove {
                    ids: vec![id(2)],
                    left_over: Vec::new(),
                    tidied: Vec::new(),
                    changed: Vec::new(),
                };
                steps.splice(.., [Step::Commit { change }]);
            },
            "whose deletion was not recorded",
        ),
    ];
    for (change, words) in refusals {
        let report = broken(change);
        assert!(report.contains(words), "{report}");
    }
}
