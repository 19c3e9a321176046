//! The domain's QEMU, with the images that it has open.

use super::images::format_of;
use super::{Image, Shared, World, impossible};
use crate::error::Result;
use crate::model::disk::DiskTarget;
use crate::model::domain::{DomainLife, DomainState};
use crate::model::layer::{Into, Layer};
use crate::plan::Merge;
use crate::port::{BlockLayer, BlockNode};
use std::path::Path;

impl World {
    /// The image as the domain's QEMU has it open.
    fn open_image(&mut self, domid: u32, path: &Path) -> Result<&mut Image> {
        let domain = self.domain(domid)?;
        if domain.gutted || !domain.images.iter().any(|image| image == path) {
            return Err(impossible("no QEMU has the image open"));
        }
        self.image(path)
    }

    /// The domain's QEMU goes on in another image.
    fn replace_disk(&mut self, domid: u32, from: &Path, to: &Path) -> Result<()> {
        let mut disks = self.domain(domid)?.images.iter_mut();
        let disk = disks.find(|disk| &***disk == from);
        *disk.ok_or_else(|| impossible("no such disk"))? = to.into();
        Ok(())
    }
}

impl BlockLayer for Shared {
    fn nodes(&self, life: DomainLife) -> Result<Vec<BlockNode>> {
        self.call(|world| {
            let domain = world.domain(life.domid)?.clone();
            if domain.images.is_empty() || domain.gutted {
                return Err(impossible("there is no QEMU"));
            }
            let times = domain.openings;
            let paths: Vec<_> = domain
                .images
                .iter()
                .flat_map(|path| world.chain(path))
                .collect();
            let paths = paths.iter().cycle().take(paths.len() * times);
            let nodes = paths.map(|path| BlockNode {
                node_name: path.display().to_string(),
                driver: format_of(path).into(),
                facts: world.images[path].facts(),
                image: path.as_path().into(),
            });
            Ok(nodes.collect())
        })
    }

    fn snapshot(
        &self,
        life: DomainLife,
        tag: &str,
        disks: &[DiskTarget],
        layers: &[Layer],
    ) -> Result<()> {
        self.call(|world| {
            world.clock += 1;
            let clock = world.clock;
            assert_eq!(world.domain(life.domid)?.openings, 1, "open twice");
            if world
                .jobs
                .keys()
                .any(|(domid, _)| *domid == Some(life.domid))
            {
                return Err(impossible("the node is busy: a job uses it"));
            }
            for disk in disks {
                let content = world.content(&disk.image);
                let image = world.open_image(life.domid, &disk.image)?;
                image.snapshots.insert(tag.to_owned(), (content, clock));
            }
            for layer in layers {
                assert_eq!(world.image(&layer.image)?.content, "", "it is new");
                let below = layer.backing.as_ref().unwrap();
                world.replace_disk(life.domid, &below.image, &layer.image)?;
            }
            Ok(())
        })
    }

    fn merge(&self, life: DomainLife, merge: &Merge) -> Result<()> {
        self.call(|world| Self::merge_live(world, life, merge))
    }

    fn bring_in_step(&self, life: DomainLife, layer: &Layer) -> Result<()> {
        self.call(|world| {
            world.merge(layer)?;
            let domain = world.domain(life.domid)?;
            domain.in_step.insert(layer.image.to_path_buf());
            Ok(())
        })
    }

    fn leave_layer(&self, life: DomainLife, layer: &Layer) -> Result<bool> {
        self.call(|world| {
            let below = layer.backing.as_ref().unwrap();
            let domain = world.domain(life.domid)?;
            assert_ne!(
                domain.state(),
                DomainState::Running,
                "it may write to either image"
            );
            if !domain.in_step.remove(&*layer.image) {
                return Ok(false);
            }
            world.merge(layer)?;
            world.replace_disk(life.domid, &layer.image, &below.image)?;
            Ok(true)
        })
    }

    fn delete_snapshot(&self, life: DomainLife, tag: &str, disk: &DiskTarget) -> Result<()> {
        self.call(|world| {
            let domain = world.domain(life.domid)?;
            assert!(
                domain.openings == 1 || domain.state() != DomainState::Running,
                "an image that the guest may write to by two nodes is changed"
            );
            let now = world.now;
            let image = world.open_image(life.domid, &disk.image)?;
            image.snapshots.remove(tag);
            image.touch(now);
            Ok(())
        })
    }
}

impl Shared {
    fn merge_live(world: &mut World, life: DomainLife, merge: &Merge) -> Result<()> {
        let layer = &merge.layer;
        let disks = world.domain(life.domid)?.images.clone();
        let open: Vec<_> = disks.iter().flat_map(|disk| world.chain(disk)).collect();
        if !open.iter().any(|path| **path == *layer.image) {
            return Ok(());
        }
        match merge.into {
            Into::Layer => world.rebase(&layer.image, merge.onto.as_ref(), true),
            Into::Below => {
                world.merge(layer)?;
                if disks.contains(&layer.image.to_path_buf()) {
                    let domain = world.domain(life.domid)?;
                    domain.in_step.insert(layer.image.to_path_buf());
                    return Ok(());
                }
                // As QEMU does it for those that it has open, and for no others.
                for path in open {
                    if world.images[&path].backing.as_deref() == Some(&*layer.image) {
                        world.rebase(&path, layer.backing.as_ref(), false)?;
                    }
                }
                Ok(())
            }
        }
    }
}
