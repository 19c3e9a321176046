//! Removing the images of the user's that a disk was pulled out of, as far as nothing that is known stands on them.

use super::perform::Performer;
use crate::error::{Error, ErrorKind, Result};
use crate::model::below::follow;
use crate::model::configuration::disks_of;
use crate::model::layer::{Backing, Layer};
use crate::model::pull::Pull;
use crate::model::record::DomainRecord;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

impl Performer<'_> {
    /// Removes those images that nothing needs; where that cannot be seen, or done, they stay, and it is said. What is
    /// needed is looked at now, under the lock: since the pull began, snapshots were made and disks attached.
    pub(super) fn release_images(&self, pull: &Pull, images: &[Backing]) {
        let needed = match self.needed(pull) {
            Ok(needed) => needed,
            Err(error) => {
                let names = images.iter().map(|it| it.image.display().to_string());
                let names: Vec<_> = names.collect();
                let error = error.while_doing("look for what stands on it");
                self.observer
                    .note(&format!("{} stays: {}", names.join(", "), error.report()));
                return;
            }
        };
        for below in images {
            let image = below.image.display();
            if needed.contains(&real(&below.image)) {
                self.observer
                    .note(&format!("{image} stays: something else stands on it"));
            } else if let Err(error) = self.release(pull, below) {
                self.observer
                    .note(&format!("{image} stays: {}", error.report()));
            }
        }
    }

    fn release(&self, pull: &Pull, below: &Backing) -> Result<()> {
        let images = &self.ports.images;
        let facts = images.facts(&below.image, below.format)?;
        if facts.is_some_and(|facts| facts.is_device) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a block device is not removed",
            ));
        }
        images.remove_layer(&Layer {
            vdev: pull.disk.vdev.clone(),
            image: below.image.clone(),
            backing: None,
            below_written: None,
            base: below.clone(),
            active: false,
            merging: None,
        })
    }

    /// Every image that a record, or a disk of the domain, names or stands on.
    fn needed(&self, pull: &Pull) -> Result<BTreeSet<PathBuf>> {
        let mut found = BTreeSet::new();
        // One that cannot be read may name anything.
        let records = self.store.all_records()?;
        let recorded = records.iter().flat_map(DomainRecord::image_files);
        for disk in recorded.chain(self.disks_beside(pull)?) {
            let facts = |at: &Backing| {
                self.ports
                    .images
                    .facts(&at.image, at.format)?
                    .ok_or_else(|| {
                        let image = at.image.display();
                        Error::new(ErrorKind::Io, format!("{image} is not there"))
                            .hint("is its file system mounted?")
                    })
            };
            follow(&disk, facts, &mut found)?;
        }
        Ok(found.iter().map(|image| real(image)).collect())
    }

    /// The domain's disks as they are now; those that it had when it was on last, or was said to have, if it is off.
    fn disks_beside(&self, pull: &Pull) -> Result<Vec<Backing>> {
        let Some(view) = self.find_by_name()? else {
            return pull.beside.clone().ok_or_else(|| {
                let domain = &self.plan.domain;
                Error::new(
                    ErrorKind::DomainState,
                    format!("domain '{domain}' is off, and nobody knows its other disks"),
                )
            });
        };
        let domid = view.life.domid;
        let configuration = self.ports.toolstack.configuration(domid)?;
        let disks = disks_of(&configuration.value).map_err(|error| {
            let what = format!("read the disks of domain {domid}");
            Error::new(ErrorKind::Toolstack, what).because(error)
        })?;
        Ok(disks.iter().filter_map(Backing::of_disk).collect())
    }
}

/// An image by the one name of its file, whatever links lead to it.
fn real(image: &Path) -> PathBuf {
    image.canonicalize().unwrap_or_else(|_| image.into())
}
