//! The images that no QEMU has open, and what every image tells of itself.

use super::{Image, Shared, World, impossible};
use crate::error::Result;
use crate::model::disk::{DiskTarget, ImageFacts, ImageFormat, InternalSnapshot, Stamp};
use crate::model::layer::{Backing, Layer};
use crate::model::pull::Extent;
use crate::port::{DiskContent, Durable, Images};
use std::path::Path;

/// By the name of the image.
pub(super) fn format_of(path: &Path) -> &'static str {
    match path.extension() {
        Some(raw) if raw == "raw" => "raw",
        _ => "qcow2",
    }
}

impl World {
    /// What the real port makes sure of before it writes.
    pub(in crate::exec::tests) fn closed_image(&mut self, path: &Path) -> Result<&mut Image> {
        let open = self.domains.values().filter(|domain| !domain.gutted);
        let mut open = open
            .flat_map(|domain| domain.images.iter().flat_map(|image| self.chain(image)))
            .chain(self.served.iter().cloned());
        if open.any(|image| image == path) {
            Err(impossible("the image is in use"))
        } else {
            self.image(path)
        }
    }

    /// Puts an image onto another one; `copy` what it lacks then.
    pub(super) fn rebase(&mut self, path: &Path, onto: Option<&Backing>, copy: bool) -> Result<()> {
        let content = self.content(path);
        let now = self.now;
        let image = self.image(path)?;
        image.backing = onto.map(|onto| onto.image.to_path_buf());
        image.touch(now);
        if copy {
            image.content = content;
        }
        Ok(())
    }

    /// Writes what a layer holds to the image below.
    pub(super) fn merge(&mut self, layer: &Layer) -> Result<()> {
        let content = self.image(&layer.image)?.content.clone();
        if !content.is_empty() {
            let now = self.now;
            let below = self.image(&layer.backing.as_ref().unwrap().image)?;
            below.content = content;
            below.touch(now);
        }
        Ok(())
    }
}

impl Image {
    fn backing_format(&self) -> Option<String> {
        let own = self.backing.as_deref().map(format_of);
        self.says.or(own).map(str::to_owned)
    }

    pub(super) fn facts(&self) -> ImageFacts {
        let snapshots = self
            .snapshots
            .iter()
            .map(|(tag, (_, seconds))| InternalSnapshot {
                tag: tag.clone(),
                stamp: Stamp {
                    seconds: *seconds,
                    nanoseconds: 0,
                },
            });
        ImageFacts {
            virtual_size: 1 << 20,
            allocated: self.allocated,
            written: Stamp {
                seconds: self.written,
                nanoseconds: 0,
            },
            is_device: false,
            retired: self.retired,
            backing: self.backing.clone(),
            backing_format: self.backing_format(),
            snapshots: snapshots.collect(),
        }
    }
}

impl Images for Shared {
    fn facts(&self, path: &Path, _format: ImageFormat) -> Result<Option<ImageFacts>> {
        self.call(|world| Ok(world.images.get(path).map(Image::facts)))
    }

    fn create_snapshot(&self, disk: &DiskTarget, tag: &str) -> Result<()> {
        self.call(|world| {
            let image = world.closed_image(&disk.image)?;
            image
                .snapshots
                .insert(tag.to_owned(), (image.content.clone(), 1));
            Ok(())
        })
    }

    fn apply_snapshot(&self, disk: &DiskTarget, tag: &str) -> Result<()> {
        self.call(|world| {
            let now = world.now;
            let image = world.closed_image(&disk.image)?;
            let (content, _) = image
                .snapshots
                .get(tag)
                .ok_or_else(|| impossible("no such snapshot"))?;
            image.content = content.clone();
            image.touch(now);
            Ok(())
        })
    }

    fn require_absent(&self, image: &Path) -> Result<()> {
        self.call(|world| match world.images.get(image) {
            None => Ok(()),
            Some(_) => Err(impossible("there is such an image")),
        })
    }

    fn require_closed(&self, image: &Path) -> Result<()> {
        self.call(|world| world.closed_image(image).map(drop))
    }

    fn create_layer(&self, layer: &Layer) -> Result<()> {
        self.call(|world| {
            let image = Image {
                backing: layer
                    .backing
                    .as_ref()
                    .map(|below| below.image.to_path_buf()),
                ..Image::default()
            };
            let old = world.images.insert(layer.image.to_path_buf(), image);
            assert!(old.is_none(), "{layer} overwrites an image");
            Ok(())
        })
    }

    fn extract(&self, from: &DiskTarget, tag: &str, layer: &Layer) -> Result<()> {
        self.call(|world| {
            let (content, _) = world.images[&*from.image].snapshots[tag].clone();
            let below = layer.backing.as_ref();
            let image = Image {
                content,
                backing: below.map(|below| below.image.to_path_buf()),
                ..Image::default()
            };
            world.images.insert(layer.image.to_path_buf(), image);
            Ok(())
        })
    }

    fn commit_layer(&self, layer: &Layer) -> Result<()> {
        self.call(|world| {
            world.closed_image(&layer.image)?;
            world.closed_image(&layer.backing.as_ref().unwrap().image)?;
            world.merge(layer)
        })
    }

    fn rebase_layer(&self, layer: &Layer, onto: Option<&Backing>, copy: bool) -> Result<()> {
        self.call(|world| {
            let onto_image = onto.map(|onto| onto.image.to_path_buf());
            if world.image(&layer.image)?.backing == onto_image {
                return Ok(());
            }
            world.closed_image(&layer.image)?;
            world.rebase(&layer.image, onto, copy)
        })
    }

    fn retire_layer(&self, layer: &Layer) -> Result<()> {
        self.call(|world| {
            let image = world.closed_image(&layer.image)?;
            *image = Image {
                retired: true,
                ..Image::default()
            };
            Ok(())
        })
    }

    fn remove_layer(&self, layer: &Layer) -> Result<()> {
        self.call(|world| {
            if world.images.contains_key(&*layer.image) {
                world.closed_image(&layer.image)?;
                world.images.remove(&*layer.image);
            }
            Ok(())
        })
    }

    fn content(&self, chain: &[Backing], tag: Option<&str>) -> Result<Box<dyn DiskContent>> {
        self.call(|world| {
            let image = &chain[0].image;
            let text = match tag {
                Some(tag) => world.image(image)?.snapshots[tag].0.clone(),
                None => world.content(image),
            };
            Ok(Box::new(Text(text.into_bytes())) as Box<dyn DiskContent>)
        })
    }

    fn extents(&self, chain: &[Backing]) -> Result<Vec<Extent>> {
        self.call(|world| {
            let holds = |below: &Backing| {
                let image = world.images.get(&*below.image);
                image.is_some_and(|image| !image.content.is_empty())
            };
            let holder = chain.iter().position(holds);
            let end = 1 << 20;
            let rest = Extent {
                start: 0,
                length: end,
                depth: holder.unwrap_or(chain.len()),
                present: holder.is_some(),
                zero: holder.is_none(),
            };
            let pulled = world.pulled.get(&*chain[0].image).copied();
            Ok(match pulled.filter(|pulled| (1..end).contains(pulled)) {
                None => vec![rest],
                Some(pulled) => vec![
                    Extent {
                        length: pulled,
                        depth: 0,
                        present: true,
                        zero: false,
                        ..rest
                    },
                    Extent {
                        start: pulled,
                        length: end - pulled,
                        ..rest
                    },
                ],
            })
        })
    }

    fn open_to_sync(&self, image: &Path) -> Result<Box<dyn Durable>> {
        self.call(|world| world.image(image).map(drop))?;
        Ok(Box::new(Synced(self.clone())))
    }

    fn last_write(&self, image: &Path) -> Option<Stamp> {
        let world = self.0.borrow();
        let image = world.images.get(image)?.facts();
        (!image.is_device).then_some(image.written)
    }

    fn make_durable(&self, _image: &Path) -> Result<()> {
        self.call(|_| Ok(()))
    }

    fn release_leaks(&self, disk: &DiskTarget) -> Result<()> {
        self.call(|world| world.closed_image(&disk.image).map(drop))
    }

    fn delete_snapshot(&self, disk: &DiskTarget, tag: &str) -> Result<()> {
        self.call(|world| {
            let now = world.now;
            let image = world.closed_image(&disk.image)?;
            if image.snapshots.remove(tag).is_some() {
                image.touch(now);
            }
            Ok(())
        })
    }
}

struct Synced(Shared);

impl Durable for Synced {
    fn sync(&self) -> Result<()> {
        self.0.call(|_| Ok(()))
    }
}

/// What a guest would read.
struct Text(Vec<u8>);

impl DiskContent for Text {
    fn length(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let offset = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.0[offset..offset + buffer.len()]);
        Ok(())
    }
}
