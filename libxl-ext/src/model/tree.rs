//! The tree that a domain's snapshots form: look-ups and the changes that a commit makes.

use crate::error::{Error, ErrorKind, Result};
use crate::model::name::{SnapshotId, SnapshotName};
use crate::model::record::{DomainRecord, RecordState, SnapshotRecord};
use std::collections::BTreeMap;

impl DomainRecord {
    /// The snapshot of the given name.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchSnapshot`], with the names that there are.
    pub fn find(&self, name: &str) -> Result<&SnapshotRecord> {
        self.snapshots
            .iter()
            .find(|record| record.name() == name)
            .ok_or_else(|| {
                let error = Error::new(
                    ErrorKind::NoSuchSnapshot,
                    format!("domain '{}' has no snapshot '{name}'", self.domain),
                );
                let names: Vec<_> = self
                    .snapshots
                    .iter()
                    .map(|s| format!("'{}'", s.name()))
                    .collect();
                if names.is_empty() {
                    error.hint("it has no snapshots at all")
                } else {
                    error.hint(format!("it has {}", names.join(", ")))
                }
            })
    }

    /// The snapshot of the given identity.
    pub fn get(&self, id: SnapshotId) -> Option<&SnapshotRecord> {
        self.snapshots.iter().find(|record| record.id == id)
    }

    /// The snapshots whose parent is `id`, oldest first; with `None`, the roots.
    pub fn children(&self, id: Option<SnapshotId>) -> impl Iterator<Item = &SnapshotRecord> {
        self.snapshots
            .iter()
            .filter(move |record| record.parent == id)
    }

    /// Every snapshot below `id`, parents before children.
    pub fn descendants(&self, id: SnapshotId) -> Vec<&SnapshotRecord> {
        let mut above = vec![id];
        let is_below = |record: &&SnapshotRecord| {
            let below = record.parent.is_some_and(|parent| above.contains(&parent));
            above.extend(below.then_some(record.id));
            below
        };
        self.snapshots.iter().filter(is_below).collect()
    }

    /// Every snapshot with its depth, each parent directly above its descendants.
    pub fn walk(&self) -> Vec<(usize, &SnapshotRecord)> {
        let mut order = Vec::with_capacity(self.snapshots.len());
        let mut stack: Vec<_> = self.children(None).map(|root| (0, root)).collect();
        stack.reverse();
        // A record lists parents before children and refers to no other, so this ends.
        while let Some((depth, record)) = stack.pop() {
            order.push((depth, record));
            let below = stack.len();
            stack.extend(
                self.children(Some(record.id))
                    .map(|child| (depth + 1, child)),
            );
            stack[below..].reverse();
        }
        order
    }

    /// Appends a snapshot below the current one and makes it current.
    pub fn add(&mut self, mut record: SnapshotRecord) {
        record.parent = self.current;
        self.current = Some(record.id);
        self.snapshots.push(record);
    }

    /// Marks snapshots whose deletion has begun. The present state, where it came from one of them, goes
    /// to the nearest snapshot above that stays: one that is taken before the deletion is finished does
    /// not stand below what is being deleted.
    pub fn mark_deleting(&mut self, ids: &[SnapshotId]) {
        for record in &mut self.snapshots {
            if ids.contains(&record.id) {
                record.state = RecordState::Deleting;
            }
        }
        while let Some(current) = self.current.and_then(|id| self.get(id)) {
            if current.state != RecordState::Deleting {
                break;
            }
            self.current = current.parent;
        }
    }

    /// Changes what is said of a snapshot; what is none stays as it is.
    pub fn edit(&mut self, id: SnapshotId, name: Option<&SnapshotName>, description: Option<&str>) {
        let found = self.snapshots.iter_mut().find(|record| record.id == id);
        let Some(record) = found else { return };
        if let Some(name) = name {
            record.snapshot.name = Some(name.to_string());
            for disk in &mut record.snapshot.disks {
                disk.name = Some(name.to_string());
            }
        }
        if let Some(description) = description {
            record.snapshot.description = Some(description.to_owned());
        }
    }

    /// It was read what the disks of a snapshot hold.
    pub fn hold(&mut self, id: SnapshotId, sums: &BTreeMap<String, String>) {
        if let Some(record) = self.snapshots.iter_mut().find(|record| record.id == id) {
            record.contents.clone_from(sums);
        }
    }

    /// Takes a snapshot out: its children, and the present state where it came from it, go to its
    /// parent.
    pub fn remove(&mut self, id: SnapshotId) {
        let Some(at) = self.snapshots.iter().position(|record| record.id == id) else {
            return;
        };
        let removed = self.snapshots.remove(at);
        for record in &mut self.snapshots {
            if record.parent == Some(id) {
                record.parent = removed.parent;
            }
        }
        if self.current == Some(id) {
            self.current = removed.parent;
        }
    }

    /// Checks what the rest of the code relies on: unique names and identities, parents that exist and
    /// come first, a current snapshot that exists, proofs for every disk, layers that stand on something else than
    /// themselves in the end.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] naming the first rule that is broken.
    pub fn check(&self) -> Result<()> {
        let corrupt = |what: String| {
            Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the snapshot record of domain '{}' is inconsistent: {what}",
                    self.domain
                ),
            ))
        };
        for (at, record) in self.snapshots.iter().enumerate() {
            record.checked_name()?;
            let earlier = &self.snapshots[..at];
            if earlier
                .iter()
                .any(|other| other.id == record.id || other.name() == record.name())
            {
                return corrupt(format!("snapshot '{}' stands in it twice", record.name()));
            }
            if record
                .parent
                .is_some_and(|parent| earlier.iter().all(|other| other.id != parent))
            {
                return corrupt(format!("the parent of '{}' is missing", record.name()));
            }
            if record.is_disk_only() && record.memory.is_some() {
                return corrupt(format!("'{}' has a memory of nothing", record.name()));
            }
            if record.disks.len() != record.snapshot.disks.len() {
                return corrupt(format!("a disk of '{}' has no proof", record.name()));
            }
        }
        for layer in &self.layers {
            let image = layer.image.display();
            let same = self.layers.iter().filter(|it| it.image == layer.image);
            if same.count() > 1 {
                return corrupt(format!("the layer {image} stands in it twice"));
            }
            let chain = self.chain(&layer.image);
            let last = chain.last().and_then(|image| self.layer(image));
            if last.is_some_and(|layer| layer.backing.is_some()) {
                return corrupt(format!("the layer {image} stands on itself in the end"));
            }
        }
        if self.current.is_some_and(|id| self.get(id).is_none()) {
            return corrupt("the current snapshot is missing".into());
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::disk::{DiskTarget, ImageFormat};
    use crate::model::domain::{GuestState, GuestType};
    use crate::model::layer::Layer;
    use crate::types::DomainSnapshot;
    use proptest::prelude::*;
    use std::path::Path;
    use uuid::Uuid;

    pub(crate) fn record(number: u128) -> SnapshotRecord {
        SnapshotRecord {
            id: SnapshotId(Uuid::from_u128(number)),
            parent: None,
            state: RecordState::Complete,
            guest: GuestState::Running,
            guest_type: GuestType::Pv,
            domain_uuid: Uuid::nil(),
            snapshot: DomainSnapshot {
                name: Some(format!("s{number}")),
                ..Default::default()
            },
            memory: None,
            disks: Vec::new(),
            configuration: None,
            contents: BTreeMap::new(),
        }
    }

    fn names(domain: &DomainRecord) -> Vec<(usize, &str)> {
        domain
            .walk()
            .into_iter()
            .map(|(depth, record)| (depth, record.name()))
            .collect()
    }

    #[test]
    fn a_branch_begins_at_the_snapshot_that_was_reverted_to() {
        let mut domain = DomainRecord::new("g");
        (1..=3).for_each(|n| domain.add(record(n)));
        domain.current = Some(SnapshotId(Uuid::from_u128(1)));
        domain.add(record(4));
        assert_eq!(names(&domain), [(0, "s1"), (1, "s2"), (2, "s3"), (1, "s4")]);
        domain.check().unwrap();
    }

    #[test]
    fn removing_a_parent_hands_its_children_to_its_own_parent() {
        let mut domain = DomainRecord::new("g");
        (1..=3).for_each(|n| domain.add(record(n)));
        domain.remove(SnapshotId(Uuid::from_u128(2)));
        assert_eq!(names(&domain), [(0, "s1"), (1, "s3")]);
        domain.remove(SnapshotId(Uuid::from_u128(3)));
        assert_eq!(domain.current, Some(SnapshotId(Uuid::from_u128(1))));
        domain.check().unwrap();
    }

    #[test]
    fn what_comes_from_a_snapshot_that_is_being_deleted_goes_to_the_nearest_one_that_stays() {
        let id = |number| SnapshotId(Uuid::from_u128(number));
        let mut domain = DomainRecord::new("g");
        (1..=4).for_each(|n| domain.add(record(n)));
        domain.current = Some(id(2));
        domain.add(record(5));
        let below: Vec<_> = domain.descendants(id(2)).iter().map(|s| s.id).collect();
        assert_eq!(below, [id(3), id(4), id(5)]);
        domain.mark_deleting(&[id(4)]);
        assert_eq!(domain.current, Some(id(5)), "it is not concerned");
        domain.mark_deleting(&[id(5), id(3), id(2)]);
        assert_eq!(domain.current, Some(id(1)));
        domain.add(record(6));
        assert_eq!(domain.get(id(6)).unwrap().parent, Some(id(1)));
        domain.current = Some(id(6));
        domain.mark_deleting(&[id(6), id(1)]);
        assert_eq!(domain.current, None);
        domain.check().unwrap();
    }

    #[test]
    fn a_dangling_parent_is_corruption() {
        let mut domain = DomainRecord::new("g");
        let mut orphan = record(1);
        orphan.parent = Some(SnapshotId(Uuid::from_u128(9)));
        domain.snapshots.push(orphan);
        assert_eq!(domain.check().unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn layers_that_stand_on_each_other_are_corruption() {
        let target = |image: &str| DiskTarget {
            vdev: "xvda".into(),
            image: Path::new(image).into(),
            format: ImageFormat::Qcow2,
        };
        let layer = |image: &str, below: &str| Layer {
            vdev: "xvda".into(),
            image: Path::new(image).into(),
            backing: Some((&target(below)).into()),
            below_written: None,
            base: (&target("/i/base")).into(),
            active: false,
            merging: None,
        };
        let with = |layers: &[Layer]| {
            let mut domain = DomainRecord::new("g");
            domain.layers.extend_from_slice(layers);
            domain.check().map_err(|error| error.kind())
        };
        let first = layer("/i/a", "/i/base");
        assert_eq!(with(&[first.clone(), layer("/i/b", "/i/a")]), Ok(()));
        for layers in [
            vec![layer("/i/a", "/i/a")],
            vec![layer("/i/a", "/i/b"), layer("/i/b", "/i/a")],
            vec![
                layer("/i/c", "/i/a"),
                layer("/i/a", "/i/b"),
                layer("/i/b", "/i/a"),
            ],
            vec![first.clone(), first.clone()],
        ] {
            assert_eq!(with(&layers), Err(ErrorKind::Corrupt), "{layers:?}");
        }
    }

    proptest! {
        /// Whatever is added, reverted to and removed, the tree holds together and walks completely.
        #[test]
        fn any_history_keeps_the_tree_whole(history in prop::collection::vec((0u8..4, 0u128..12), 0..60)) {
            let mut domain = DomainRecord::new("g");
            for (next, (action, pick)) in (100u128..).zip(history) {
                let id = SnapshotId(Uuid::from_u128(100 + pick));
                match action {
                    0 => domain.add(record(next)),
                    1 if domain.get(id).is_some() => domain.current = Some(id),
                    2 => domain.mark_deleting(&[id]),
                    _ => domain.remove(id),
                }
                domain.check().unwrap();
                prop_assert_eq!(domain.walk().len(), domain.snapshots.len());
            }
        }
    }
}
