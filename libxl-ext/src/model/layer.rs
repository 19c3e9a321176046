//! The images that we made: each stands on another one, which is not written to any more.

use crate::model::disk::{DiskKind, DiskTarget, ImageFormat};
use crate::model::record::DomainRecord;
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
    /// The image at the bottom, which the domain's configuration file names.
    pub base: Backing,
    /// Whether it is the disk: what a guest started from that configuration file has to be given.
    pub active: bool,
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

impl From<&DiskTarget> for Backing {
    fn from(target: &DiskTarget) -> Self {
        Self {
            image: target.image.clone(),
            format: target.format,
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

    /// The layer that is the disk whose base is the given image; none if the base is the disk itself.
    pub fn active_layer(&self, base: &Path) -> Option<&Layer> {
        self.layers
            .iter()
            .find(|layer| layer.active && &*layer.base.image == base)
    }

    /// Whether a snapshot's state, or a layer, is lost when the content of the image changes.
    pub fn is_frozen(&self, image: &Path) -> bool {
        self.layers_on(image).next().is_some()
            || self
                .snapshots
                .iter()
                .flat_map(|snapshot| &snapshot.disks)
                .any(|proof| proof.kind == DiskKind::External && &*proof.target.image == image)
    }

    /// Adds layers.
    pub fn add_layers(&mut self, layers: &[Layer]) {
        for new in layers {
            if self.layer(&new.image).is_none() {
                self.layers.push(new.clone());
            }
        }
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
        let is_held = |layer: &Layer| {
            layer.active
                || self
                    .snapshots
                    .iter()
                    .flat_map(|snapshot| &snapshot.disks)
                    .any(|proof| proof.target.image == layer.image)
        };
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
    use crate::model::record::DiskProof;
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
            base: base(),
            active: false,
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
