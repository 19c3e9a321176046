use super::mend::mend;
use super::survey::unexplained;
use super::*;
use crate::model::name::SnapshotId;
use crate::model::record::DomainRecord;
use crate::model::tree::tests::record;
use proptest::prelude::*;
use uuid::Uuid;

fn id(number: u128) -> SnapshotId {
    SnapshotId(Uuid::from_u128(number))
}

#[test]
fn ancestors_that_go_round_in_circles_end() {
    let mut domain = DomainRecord::new("g");
    let mut lost = record(1);
    lost.parent = Some(id(8));
    domain.snapshots.push(lost);
    let parent_of = |gone| Some(if gone == id(8) { id(9) } else { id(8) });
    let mut found = Findings::default();
    let mended = mend(&domain, parent_of, &mut found);
    assert_eq!(mended.snapshots[0].parent, None);
    mended.check().unwrap();
}

proptest! {
    /// Whatever a record says, what becomes of it holds together, and mending it again changes nothing.
    #[test]
    fn any_record_is_mended(
        snapshots in prop::collection::vec((0u128..6, prop::option::of(0u128..8), 0u8..4), 0..8),
        current in prop::option::of(0u128..8),
    ) {
        let mut domain = DomainRecord::new("g");
        for (number, parent, name) in snapshots {
            let mut snapshot = record(number);
            snapshot.parent = parent.map(id);
            snapshot.snapshot.name = Some(["a", "b", "", "../x"][usize::from(name)].into());
            domain.snapshots.push(snapshot);
        }
        domain.current = current.map(id);
        let mut found = Findings::default();
        let mended = mend(&domain, |_| None, &mut found);
        mended.check().unwrap();
        for snapshot in &domain.snapshots {
            prop_assert!(mended.get(snapshot.id).is_some(), "it was lost");
        }
        prop_assert_eq!(mended != domain, !found.findings.is_empty());
        let mut again = Findings::default();
        prop_assert_eq!(&mend(&mended, |_| None, &mut again), &mended);
        prop_assert_eq!(again, Findings::default());
    }
}

/// Images of ours that nothing explains are those beside the domain's that no record of the store names.
#[test]
fn an_image_is_explained_by_any_record_of_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let images = directory.path().join("images");
    std::fs::create_dir(&images).unwrap();
    let name =
        |base: &str, number: u128| images.join(format!("{base}.xl-ext-{}.qcow2", id(number)));
    let (ours, others, orphan) = (name("a", 1), name("b", 2), name("c", 3));
    for path in [&ours, &others, &orphan] {
        std::fs::write(path, b"x").unwrap();
    }
    for stranger in ["a.qcow2", "a.xl-ext-1.qcow2", "xl-ext-x.qcow2"] {
        std::fs::write(images.join(stranger), b"x").unwrap();
    }
    let store = crate::store::Store::new(directory.path().join("store"));
    let layer = |path: &std::path::Path| crate::model::layer::Layer {
        vdev: "xvda".into(),
        image: path.into(),
        backing: None,
        below_written: None,
        base: crate::model::layer::Backing {
            image: images.join("a.qcow2").into(),
            format: crate::model::disk::ImageFormat::Qcow2,
        },
        active: true,
        merging: None,
    };
    let mut other = DomainRecord::new("other");
    other.layers.push(layer(&others));
    store.domain("other").save(&other).unwrap();
    let mut domain = DomainRecord::new("g");
    domain.layers.push(layer(&ours));
    let inventory = crate::observe::Inventory {
        elsewhere: std::collections::BTreeMap::new(),
        domain: "g".into(),
        live: None,
        record: domain,
        images: std::collections::BTreeMap::new(),
        unreadable: std::collections::BTreeMap::new(),
        memory: std::collections::BTreeMap::new(),
        packs: crate::observe::Packs::default(),
        replicated: None,
        claimed: crate::observe::claimed(&store.domain("g")),
        free_bytes: 0,
        off: None,
        off_unknown: None,
    };
    assert_eq!(unexplained(&inventory), [orphan]);
}
