//! The images that we made: each stands on another one, which is not written to any more.

use crate::model::disk::{DeviceDisk, DiskKind, DiskTarget, ImageFacts, ImageFormat, Stamp};
use crate::model::record::{DiskProof, DomainRecord, RecordState, SnapshotRecord};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// An image of ours, always qcow2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Name of the virtual device that it was made for.
    pub vdev: String,
    /// The image.
    pub image: Box<Path>,
    /// The image below it; none where it holds everything itself.
    pub backing: Option<Backing>,
    /// When the image below was last written to, since nobody should write to it any more; none while we do, and in
    /// records of old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below_written: Option<Stamp>,
    /// The image at the bottom, which the domain's configuration file names.
    pub base: Backing,
    /// Whether it is the disk: what a guest started from that configuration file has to be given.
    pub active: bool,
    /// Whether it and the image below it are becoming one: either may be as before or as afterwards. If the
    /// file of a layer that goes into the image below is empty, that is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merging: Option<Into>,
}

/// Which image is left of two that become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Into {
    /// The layer is written to the image below it. (QEMU: commit.)
    Below,
    /// The layer gets what it lacks from the image below it. (QEMU: stream.)
    Layer,
}

/// An image that others stand on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backing {
    /// The image.
    pub image: Box<Path>,
    /// Its format, always said and never probed.
    pub format: ImageFormat,
}

impl Layer {
    /// The layer as the disk that it is.
    pub fn target(&self) -> DiskTarget {
        DiskTarget {
            vdev: self.vdev.clone(),
            image: self.image.clone(),
            format: ImageFormat::Qcow2,
        }
    }
}

impl Layer {
    /// The disk that the layer stands on.
    pub fn below(&self) -> Option<DiskTarget> {
        self.backing.as_ref().map(|backing| DiskTarget {
            vdev: self.vdev.clone(),
            image: backing.image.clone(),
            format: backing.format,
        })
    }
}

impl Backing {
    /// The image that a device has, if it has one. One of a format that stands on nothing that we know counts as raw.
    pub(crate) fn of_disk(disk: &DeviceDisk) -> Option<Self> {
        let path = disk.pdev_path.as_deref().filter(|path| !path.is_empty())?;
        let format = disk.format.as_deref().and_then(ImageFormat::of);
        Some(Self {
            image: Path::new(path).into(),
            format: format.unwrap_or(ImageFormat::Raw),
        })
    }
}

impl From<&DiskTarget> for Backing {
    fn from(target: &DiskTarget) -> Self {
        Self {
            image: target.image.clone(),
            format: target.format,
        }
    }
}

impl ImageFacts {
    /// Whether the image says that it stands on another one, of that one's format, or on none. A raw image begins
    /// with what its guest wrote: taken for qcow2, it says what is opened next.
    pub fn stands_on(&self, below: Option<&Backing>) -> bool {
        match below {
            None => self.backing.is_none(),
            Some(below) => {
                self.backing.as_deref() == Some(&*below.image)
                    && self.backing_format.as_deref() == Some(below.format.driver())
            }
        }
    }

    /// What it says of that, beside what it should say; for people.
    pub fn stands_instead_of(&self, below: Option<&Backing>) -> String {
        let image = |path: Option<&Path>| {
            path.map_or_else(|| "nothing".into(), |path| path.display().to_string())
        };
        let (found, wanted) = (self.backing.as_deref(), below.map(|below| &*below.image));
        match below.filter(|_| found == wanted) {
            None => format!("stands on {} and not on {}", image(found), image(wanted)),
            Some(below) => format!(
                "takes {} for {} and not for {}",
                image(found),
                self.backing_format
                    .as_deref()
                    .unwrap_or("what it looks like"),
                below.format.driver()
            ),
        }
    }
}

impl DomainRecord {
    /// The layer of the given image.
    pub fn layer(&self, image: &Path) -> Option<&Layer> {
        self.layers.iter().find(|layer| &*layer.image == image)
    }

    /// The layers that stand directly on an image.
    pub fn layers_on(&self, image: &Path) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(move |layer| {
            layer
                .backing
                .as_ref()
                .is_some_and(|below| &*below.image == image)
        })
    }

    /// What stands at the bottom of an image: the image itself, unless it is a layer.
    pub fn base_of(&self, target: &DiskTarget) -> Backing {
        match self.layer(&target.image) {
            Some(layer) => layer.base.clone(),
            None => target.into(),
        }
    }

    /// What a disk is now of which a snapshot held another image.
    pub fn disk_now(&self, was: &DiskTarget) -> DiskTarget {
        let base = self.base_of(was);
        let active = self.active_layer(&base.image);
        let Backing { image, format } = active.map_or(base, |layer| (&layer.target()).into());
        DiskTarget {
            vdev: was.vdev.clone(),
            image,
            format,
        }
    }

    /// The layer that is the disk whose base is the given image; none if the base is the disk itself.
    pub fn active_layer(&self, base: &Path) -> Option<&Layer> {
        self.layers
            .iter()
            .find(|layer| layer.active && &*layer.base.image == base)
    }

    /// Whether a snapshot's state, or a layer, is lost when the content of the image changes.
    pub fn is_frozen(&self, image: &Path) -> bool {
        self.layers_on(image).next().is_some() || self.is_a_state(image)
    }

    /// Whether the image itself is the state of a snapshot.
    pub fn is_a_state(&self, image: &Path) -> bool {
        self.proofs()
            .any(|proof| proof.kind == DiskKind::External && &*proof.target.image == image)
    }

    /// Every image that a snapshot, a layer or the saved state names, with its format.
    fn named(&self) -> impl Iterator<Item = (&Path, ImageFormat)> {
        let disks = self.snapshots.iter().flat_map(|snapshot| &snapshot.disks);
        let managed = self.managed.iter().flat_map(|managed| &managed.disks);
        let proofs = disks.chain(managed);
        let layers = self.layers.iter().flat_map(|layer| {
            let backings = layer.backing.iter().chain([&layer.base]);
            let own = (&*layer.image, layer.target().format);
            backings
                .map(|backing| (&*backing.image, backing.format))
                .chain([own])
        });
        proofs
            .map(|proof| (&*proof.target.image, proof.target.format))
            .chain(layers)
    }

    /// The same without the formats.
    pub fn images(&self) -> impl Iterator<Item = &Path> {
        self.named().map(|(image, _)| image)
    }

    /// The same with the formats, and the disks of the last pulls with what those stand on.
    pub(crate) fn image_files(&self) -> impl Iterator<Item = Backing> {
        let named = self.named().map(|(image, format)| Backing {
            image: image.into(),
            format,
        });
        let pulls = self.pulls.iter().flat_map(|pull| {
            let own = Backing::from(&pull.disk);
            pull.onto.clone().into_iter().chain([own])
        });
        named.chain(pulls)
    }

    /// The disks of all snapshots that are not being deleted.
    pub fn proofs(&self) -> impl Iterator<Item = &DiskProof> {
        self.snapshots
            .iter()
            .filter(|snapshot| snapshot.state == RecordState::Complete)
            .flat_map(|snapshot| &snapshot.disks)
    }

    /// Whether a snapshot's state is in the image, in either way.
    fn is_in_a_snapshot(&self, image: &Path) -> bool {
        self.proofs().any(|proof| &*proof.target.image == image)
    }

    /// A layer that is the only one on the image below it, where that holds nothing else that is needed: the
    /// two may become one image. One with internal snapshots stays: they read through to the image below.
    pub fn mergeable(&self) -> impl Iterator<Item = (&Layer, &Backing)> {
        self.layers.iter().filter_map(|layer| {
            let below = layer.backing.as_ref()?;
            let has_tags = self
                .proofs()
                .any(|proof| proof.kind == DiskKind::Internal && proof.target.image == layer.image);
            let below_is_disk = match self.layer(&below.image) {
                Some(below) => below.active,
                None => self.active_layer(&below.image).is_none(),
            };
            let alone = self.layers_on(&below.image).count() == 1;
            let may = alone && !has_tags && !below_is_disk && !self.is_in_a_snapshot(&below.image);
            may.then_some((layer, below))
        })
    }

    /// A layer and the image below it are becoming one.
    pub fn mark_merging(&mut self, image: &Path, into: Into) {
        for layer in self
            .layers
            .iter_mut()
            .filter(|layer| &*layer.image == image)
        {
            layer.merging = Some(into);
        }
    }

    /// What a layer held is in the image below it now. The layer is of no use any more.
    pub fn merge_down(&mut self, image: &Path) {
        let Some(merged) = self.layer(image).cloned() else {
            return;
        };
        let Some(below) = merged.backing.clone() else {
            return;
        };
        for layer in &mut self.layers {
            if &*layer.image == image {
                layer.active = false;
            } else if layer.image == below.image {
                layer.active |= merged.active;
            } else if layer.backing.as_ref().is_some_and(|on| &*on.image == image) {
                layer.backing = Some(below.clone());
                layer.below_written = None;
            }
        }
        for proof in self
            .snapshots
            .iter_mut()
            .flat_map(|snapshot| &mut snapshot.disks)
        {
            if &*proof.target.image == image {
                proof.target.image.clone_from(&below.image);
                proof.target.format = below.format;
            }
        }
    }

    /// What the image below a layer held is in the layer now, which stands on `onto`.
    pub fn merge_up(&mut self, image: &Path, onto: Option<&Backing>) {
        let below = self.layer(image).and_then(|layer| layer.backing.as_ref());
        // Done a second time, it is there.
        let was_below = below.filter(|below| Some(*below) != onto);
        let onto_written = was_below
            .and_then(|below| self.layer(&below.image))
            .map(|below| below.below_written);
        if let Some(layer) = self.layers.iter_mut().find(|layer| &*layer.image == image) {
            if layer.backing.as_ref() != onto {
                layer.backing = onto.cloned();
                layer.below_written = onto_written.flatten();
            }
            layer.merging = None;
        }
    }

    /// Adds layers.
    pub fn add_layers(&mut self, layers: &[Layer]) {
        for new in layers {
            if self.layer(&new.image).is_none() {
                self.layers.push(new.clone());
            }
        }
    }

    /// What is known of the images that the disks of a snapshot stand on, as far as they are states of snapshots.
    pub fn below<'a>(
        &'a self,
        snapshot: &'a SnapshotRecord,
    ) -> impl Iterator<Item = &'a DiskProof> {
        let images = snapshot
            .disks
            .iter()
            .flat_map(|proof| self.chain(&proof.target.image).into_iter().skip(1));
        let images: Vec<&Path> = images.collect();
        self.proofs().filter(move |proof| {
            proof.kind == DiskKind::External && images.contains(&&*proof.target.image)
        })
    }

    /// Takes out layers whose files are gone, with what was left over in them.
    pub fn forget_layers(&mut self, images: &[Box<Path>]) {
        self.layers.retain(|layer| !images.contains(&layer.image));
        self.left_over
            .retain(|left| !images.contains(&left.target.image));
    }

    /// The images that a disk consists of, the disk itself first, as far as they are ours, with the first one
    /// below that is not.
    pub fn chain<'a>(&'a self, disk: &'a Path) -> Vec<&'a Path> {
        let mut chain = vec![disk];
        while let Some(below) = chain
            .last()
            .and_then(|image| self.layer(image)?.backing.as_ref())
        {
            // A record that says that an image stands on itself has no end.
            if chain.contains(&&*below.image) {
                break;
            }
            chain.push(&below.image);
        }
        chain
    }

    /// Makes images the disks, each instead of the others with the same base.
    pub fn make_disks(&mut self, disks: &[DiskTarget]) {
        for disk in disks {
            let base = self.base_of(disk);
            self.activate(&disk.image, &base.image);
        }
    }

    /// Makes an image the disk, instead of the others with the same base.
    pub fn activate(&mut self, image: &Path, base: &Path) {
        for layer in &mut self.layers {
            if &*layer.base.image == base {
                layer.active = &*layer.image == image;
            }
        }
    }

    /// The layers that nothing needs any more: none of them is a disk, holds a snapshot's state or has
    /// something needed above it. Those above before those below.
    pub fn garbage(&self) -> Vec<Layer> {
        let is_held = |layer: &Layer| layer.active || self.is_in_a_snapshot(&layer.image);
        let mut garbage: Vec<Layer> = Vec::new();
        loop {
            let found = self.layers.iter().find(|layer| {
                let is_garbage = |other: &Layer| garbage.iter().any(|known| known == other);
                !is_held(layer)
                    && !is_garbage(layer)
                    && self.layers_on(&layer.image).all(is_garbage)
            });
            match found {
                Some(layer) => garbage.push(layer.clone()),
                None => return garbage,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tree::tests::record;

    fn base() -> Backing {
        Backing {
            image: Path::new("/i/base.raw").into(),
            format: ImageFormat::Raw,
        }
    }

    fn layer(name: &str, below: &str) -> Layer {
        let backing = match below {
            "base" => base(),
            other => Backing {
                image: Path::new(&format!("/i/{other}")).into(),
                format: ImageFormat::Qcow2,
            },
        };
        Layer {
            vdev: "xvda".into(),
            image: Path::new(&format!("/i/{name}")).into(),
            backing: Some(backing),
            below_written: None,
            base: base(),
            active: false,
            merging: None,
        }
    }

    fn names(layers: &[Layer]) -> Vec<&str> {
        layers
            .iter()
            .map(|layer| layer.image.file_name().unwrap().to_str().unwrap())
            .collect()
    }

    #[test]
    fn garbage_is_what_no_disk_and_no_snapshot_stands_on() {
        let mut domain = DomainRecord::new("g");
        domain.add_layers(&[
            layer("a", "base"),
            layer("b", "a"),
            layer("c", "a"),
            layer("d", "c"),
        ]);
        domain.activate(Path::new("/i/b"), &base().image);
        assert_eq!(names(&domain.garbage()), ["d", "c"]);
        let mut snapshot = record(1);
        snapshot.disks.push(DiskProof {
            target: layer("c", "a").target(),
            kind: DiskKind::Internal,
            stamp: None,
        });
        domain.add(snapshot);
        assert_eq!(names(&domain.garbage()), ["d"]);
        assert!(domain.is_frozen(Path::new("/i/c")), "d stands on it");
        domain.layers.pop();
        assert!(
            !domain.is_frozen(Path::new("/i/c")),
            "an internal snapshot survives writes"
        );
        domain.activate(&base().image, &base().image);
        domain.snapshots.clear();
        assert_eq!(names(&domain.garbage()), ["b", "c", "a"]);
    }

    #[test]
    fn two_images_become_one_where_nothing_else_needs_either() {
        let mut domain = DomainRecord::new("g");
        domain.add_layers(&[layer("a", "base"), layer("b", "a"), layer("c", "b")]);
        domain.activate(Path::new("/i/c"), &base().image);
        let mergeable = |domain: &DomainRecord| -> Vec<String> {
            let pairs = domain.mergeable();
            pairs
                .map(|(layer, _)| layer.image.display().to_string())
                .collect()
        };
        assert_eq!(mergeable(&domain), ["/i/a", "/i/b", "/i/c"]);
        let mut snapshot = record(1);
        snapshot.disks.push(DiskProof {
            target: layer("b", "a").target(),
            kind: DiskKind::External,
            stamp: None,
        });
        domain.add(snapshot);
        assert_eq!(
            mergeable(&domain),
            ["/i/a", "/i/b"],
            "b is the snapshot's state"
        );
        domain.merge_down(Path::new("/i/b"));
        assert_eq!(
            &*domain.snapshots[0].disks[0].target.image,
            Path::new("/i/a")
        );
        assert_eq!(names(&domain.garbage()), ["b"]);
        domain
            .layers
            .retain(|layer| &*layer.image != Path::new("/i/b"));
        assert_eq!(
            domain.layer(Path::new("/i/c")).unwrap().backing,
            layer("c", "a").backing
        );
        domain.snapshots[0].disks[0].kind = DiskKind::Internal;
        assert_eq!(
            mergeable(&domain),
            Vec::<String>::new(),
            "tags read through to the base"
        );
        domain.snapshots.clear();
        let onto = layer("a", "base").backing;
        domain.merge_up(Path::new("/i/c"), onto.as_ref());
        domain.merge_up(Path::new("/i/c"), onto.as_ref());
        assert_eq!(names(&domain.garbage()), ["a"]);
        assert_eq!(
            domain.layer(Path::new("/i/c")).unwrap().backing,
            Some(base())
        );
        domain.layers.remove(0);
        domain.merge_down(Path::new("/i/c"));
        assert!(
            domain.active_layer(&base().image).is_none(),
            "the base is the disk again"
        );
    }

    #[test]
    fn of_the_layers_on_one_base_one_is_the_disk() {
        let mut domain = DomainRecord::new("g");
        domain.add_layers(&[layer("a", "base"), layer("b", "base")]);
        domain.activate(Path::new("/i/a"), &base().image);
        assert_eq!(
            &*domain.active_layer(&base().image).unwrap().image,
            Path::new("/i/a")
        );
        domain.activate(Path::new("/i/b"), &base().image);
        assert_eq!(
            &*domain.active_layer(&base().image).unwrap().image,
            Path::new("/i/b")
        );
        assert_eq!(domain.base_of(&layer("b", "base").target()), base());
    }
}
