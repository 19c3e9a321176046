//! Images that nobody should write to any more, and the last write by which each of them is known: those that are
//! a snapshot's state, and those that a layer stands on. A snapshot that goes takes its word with it; the layer's
//! stays for as long as it stands there.

use super::disk::{DiskKind, DiskTarget, ImageFacts, Stamp};
use super::layer::{Backing, Layer};
use super::record::DomainRecord;
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// A layer that is taken as it is, though somebody else wrote to the image below it: the user said so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The layer.
    pub image: Box<Path>,
    /// When the image below it was last written to.
    pub below_written: Stamp,
}

/// What is not as recorded of the images that a disk consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainFault<'a> {
    /// A layer of which nothing could be seen.
    Layer(&'a Layer),
    /// Nothing could be seen of the image below a layer.
    Below(&'a Layer),
    /// A layer stands on another image than it should, by its own account.
    StandsElsewhere(&'a Layer),
    /// The image below a layer was written to since.
    Written(&'a Layer),
}

impl fmt::Display for ChainFault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let below = |layer: &Layer| layer.below().map(|below| below.to_string());
        let below = |layer| below(layer).unwrap_or_else(|| "nothing".into());
        match self {
            Self::Layer(layer) => write!(f, "the layer {} is missing", layer.target()),
            Self::Below(layer) => write!(f, "the image of {} is missing", below(layer)),
            Self::StandsElsewhere(layer) => write!(
                f,
                "the layer {} does not say that it stands on {}",
                layer.target(),
                below(layer)
            ),
            Self::Written(layer) => write!(f, "{} was written to since", below(layer)),
        }
    }
}

impl ChainFault<'_> {
    /// What a person can do.
    fn ways_out(&self) -> String {
        match self {
            Self::Layer(_) | Self::Below(_) => "is its file system mounted?".into(),
            Self::StandsElsewhere(_) => {
                "somebody changed it; `xl-ext snapshot-verify` tells which snapshots can still be reverted to".into()
            }
            Self::Written(layer) => {
                let below = layer.backing.as_ref().map(|below| below.image.display());
                let below = below.map(|below| below.to_string()).unwrap_or_default();
                let time = layer.below_written.map(|written| {
                    format!("touch -d @{}.{:09}", written.seconds, written.nanoseconds)
                });
                format!(
                    "was the domain started from its configuration file, without the layers? To keep what was \
                     written, copy {below} to a new file and name that in the configuration file; to go back to a \
                     snapshot all the same, `xl-ext snapshot-revert --force`. Where only the time of {below} \
                     changed, `{} {below}` puts that right",
                    time.unwrap_or_default()
                )
            }
        }
    }
}

impl DomainRecord {
    /// The last writes by which an image is known. To layers that nothing needs any more it may be the disk again.
    pub fn last_writes_of<'a>(&'a self, image: &'a Path) -> impl Iterator<Item = Stamp> + 'a {
        let proofs = self.snapshots.iter().flat_map(|snapshot| &snapshot.disks);
        let proofs = proofs
            .filter(move |proof| proof.kind == DiskKind::External && &*proof.target.image == image)
            .filter_map(|proof| proof.stamp);
        let garbage = self.garbage();
        let layers = self
            .layers_on(image)
            .filter(move |layer| !garbage.contains(layer))
            .filter_map(|layer| layer.below_written);
        proofs.chain(layers)
    }

    /// Whether an image was last written to when we know that it was, as far as anybody knows.
    pub fn is_as_written(&self, image: &Path, facts: Option<&ImageFacts>) -> bool {
        let written = facts.map(|facts| facts.written);
        self.last_writes_of(image)
            .all(|stamp| Some(stamp) == written)
    }

    /// Every last write that is known or should be, with its image.
    pub(crate) fn last_writes_mut(
        &mut self,
    ) -> impl Iterator<Item = (Backing, &mut Option<Stamp>)> {
        let proofs = self
            .snapshots
            .iter_mut()
            .flat_map(|snapshot| &mut snapshot.disks)
            .filter(|proof| proof.kind == DiskKind::External)
            .map(|proof| (Backing::from(&proof.target), &mut proof.stamp));
        let layers = self
            .layers
            .iter_mut()
            .filter_map(|layer| Some((layer.backing.clone()?, &mut layer.below_written)));
        proofs.chain(layers)
    }

    /// We are about to write to images, in a way that what stands on them does not notice: until that is done nobody
    /// can say when they were last written to. What did not know of the latest write, which was accepted, does not
    /// hear of this one either.
    pub fn forget_last_writes(&mut self, images: &[&Path]) {
        for image in images {
            let latest = self.last_writes_of(image).max();
            for (_, stamp) in self
                .last_writes_mut()
                .filter(|(known, stamp)| *known.image == **image && **stamp == latest)
            {
                *stamp = None;
            }
        }
    }

    /// Layers that do not know the last write to the image below them, as those of records of old, learn it from the
    /// snapshots whose state that is, before these go. `changed` are images of which none should know it now.
    pub fn remember_last_writes(&mut self, changed: &[Box<Path>]) {
        let learned: Vec<_> = self
            .layers
            .iter()
            .map(|layer| match (layer.below_written, &layer.backing) {
                (None, Some(below)) if !changed.contains(&below.image) => {
                    self.last_writes_of(&below.image).max()
                }
                (known, _) => known,
            })
            .collect();
        for (layer, written) in self.layers.iter_mut().zip(learned) {
            layer.below_written = written;
        }
    }

    /// Layers are taken with what was written below them.
    pub fn accept(&mut self, accepted: &[Accepted]) {
        for layer in &mut self.layers {
            let mut accepted = accepted.iter();
            if let Some(accepted) = accepted.find(|accepted| accepted.image == layer.image) {
                layer.below_written = Some(accepted.below_written);
            }
        }
    }

    /// What is not as recorded of the images that a disk consists of, its own content apart. `facts` is what is seen
    /// of an image.
    pub fn chain_faults<'a>(
        &'a self,
        disk: &'a Path,
        facts: impl Fn(&Path) -> Option<&'a ImageFacts>,
    ) -> Vec<ChainFault<'a>> {
        let mut faults = Vec::new();
        let chain = self.chain(disk);
        for layer in chain.iter().filter_map(|image| self.layer(image)) {
            match facts(&layer.image) {
                None => faults.push(ChainFault::Layer(layer)),
                Some(own) if !self.stands_as_recorded(layer, own) => {
                    faults.push(ChainFault::StandsElsewhere(layer));
                }
                Some(_) => {}
            }
            let Some((below, known)) = layer.backing.as_ref().zip(layer.below_written) else {
                continue;
            };
            match facts(&below.image) {
                // It is a layer, and speaks for itself.
                None if self.layer(&below.image).is_some() => {}
                None => faults.push(ChainFault::Below(layer)),
                Some(facts) if facts.written != known => faults.push(ChainFault::Written(layer)),
                Some(_) => {}
            }
        }
        faults
    }

    /// Refuses a disk of which an image below is not what it was: what is written on top of it would fit neither.
    ///
    /// # Errors
    /// [`ErrorKind::Stale`] with the image, and the ways out.
    pub fn require_chain<'a>(
        &'a self,
        disk: &'a DiskTarget,
        facts: impl Fn(&Path) -> Option<&'a ImageFacts>,
    ) -> Result<()> {
        let Some(fault) = self.chain_faults(&disk.image, facts).into_iter().next() else {
            return Ok(());
        };
        let what = format!("{disk} is not what it was: {fault}");
        Err(Error::new(ErrorKind::Stale, what).hint(fault.ways_out()))
    }

    /// Whether a layer says that it stands where it should. While two images become one, those above them, too,
    /// may be as before or as afterwards.
    fn stands_as_recorded(&self, layer: &Layer, facts: &ImageFacts) -> bool {
        if layer.merging.is_some() {
            return true;
        }
        let below = layer.backing.as_ref();
        let merged = below
            .and_then(|below| self.layer(&below.image))
            .filter(|below| below.merging.is_some());
        facts.stands_on(below)
            || merged.is_some_and(|merged| facts.stands_on(merged.backing.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::disk::ImageFormat;
    use crate::model::record::DiskProof;
    use crate::model::tree::tests::record;

    fn target(image: &str) -> DiskTarget {
        DiskTarget {
            vdev: "xvda".into(),
            image: Path::new(image).into(),
            format: ImageFormat::Qcow2,
        }
    }

    fn stamp(seconds: i64) -> Stamp {
        Stamp {
            seconds,
            nanoseconds: 0,
        }
    }

    fn layer(image: &str, below_written: Stamp, active: bool) -> Layer {
        Layer {
            vdev: "xvda".into(),
            image: Path::new(image).into(),
            backing: Some((&target("/i/base")).into()),
            below_written: Some(below_written),
            base: (&target("/i/base")).into(),
            active,
            merging: None,
        }
    }

    /// What a merge left behind does not know of the writes of the guest, which is on the image below again.
    #[test]
    fn a_layer_that_nothing_needs_says_nothing_of_the_image_below() {
        let mut domain = DomainRecord::new("g");
        domain.add_layers(&[
            layer("/i/left", stamp(1), false),
            layer("/i/disk", stamp(2), true),
        ]);
        let known = |domain: &DomainRecord| -> Vec<Stamp> {
            domain.last_writes_of(Path::new("/i/base")).collect()
        };
        assert_eq!(known(&domain), [stamp(2)]);
        let mut snapshot = record(1);
        snapshot.disks.push(DiskProof {
            target: target("/i/left"),
            kind: DiskKind::Internal,
            stamp: None,
        });
        domain.add(snapshot);
        assert_eq!(known(&domain), [stamp(1), stamp(2)]);
    }

    /// One of two that stand on an image was taken as it was, with what a stranger wrote below it; then we write.
    #[test]
    fn who_did_not_know_of_the_last_write_does_not_learn_of_ours() {
        let mut domain = DomainRecord::new("g");
        domain.add_layers(&[layer("/i/a", stamp(1), true), layer("/i/b", stamp(1), true)]);
        domain.accept(&[Accepted {
            image: Path::new("/i/b").into(),
            below_written: stamp(2),
        }]);
        domain.forget_last_writes(&[Path::new("/i/base")]);
        let known: Vec<_> = domain.layers.iter().map(|it| it.below_written).collect();
        assert_eq!(known, [Some(stamp(1)), None]);
    }
}
