//! The steps in words, for people: in `--plan`, in the log, in errors.

use super::step::{Extracted, Memory, Merge, Step, StoreChange, Switch};
use crate::model::domain::GuestState;
use crate::model::layer::{Into, Layer};
use crate::model::name::SnapshotId;
use std::fmt;
use std::path::Path;

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prove { id, .. } => write!(f, "check that {id} is whole"),
            Self::CreateDirectory { id } => write!(f, "make directory {id} in the store"),
            Self::Wake { life } => {
                write!(f, "unpause domain {} so that it can suspend", life.domid)
            }
            Self::Pause { life } => write!(f, "pause domain {}", life.domid),
            Self::SaveMemory {
                life,
                id,
                live,
                file,
                ..
            } => {
                let (domid, image) = (life.domid, MemoryImage(*id, file.as_deref()));
                if *live {
                    write!(
                        f,
                        "write the memory of domain {domid} to {image}, then suspend it"
                    )
                } else {
                    write!(f, "suspend domain {domid} and write its memory to {image}")
                }
            }
            Self::RequireAbsent { images } => {
                f.write_str("make sure that there is no ")?;
                let images: Vec<_> = images.iter().map(|image| image.display()).collect();
                list(f, &images)
            }
            Self::CreateLayers { layers } => {
                f.write_str("make ")?;
                list(f, layers)
            }
            Self::ExtractLayers { id, layers } => {
                f.write_str("copy what ")?;
                list(f, layers)?;
                write!(f, " from {}", id.tag())
            }
            Self::SnapshotDisks {
                life,
                id,
                disks,
                layers,
            } => {
                write!(f, "in one transaction of domain {}'s QEMU, ", life.domid)?;
                if !disks.is_empty() {
                    f.write_str("snapshot ")?;
                    list(f, disks)?;
                    write!(f, " as {}", id.tag())?;
                }
                if !layers.is_empty() {
                    let and = if disks.is_empty() { "" } else { " and " };
                    write!(f, "{and}go on in ")?;
                    let images: Vec<_> = layers.iter().map(Layer::target).collect();
                    list(f, &images)?;
                }
                Ok(())
            }
            Self::PointDisks { life, switches } => {
                write!(f, "tell libxl that of domain {} ", life.domid)?;
                list(f, switches)
            }
            Self::LeaveLayers { layers, .. } => {
                f.write_str("write the rest of ")?;
                list(f, layers)?;
                f.write_str(" there and go on there")
            }
            Self::MergeLayer { merge } => merge.fmt(f),
            Self::RemoveLayers { layers } => {
                f.write_str("remove ")?;
                let images: Vec<_> = layers.iter().map(Layer::target).collect();
                list(f, &images)
            }
            Self::SnapshotImages { id, disks } => {
                f.write_str("snapshot ")?;
                list(f, disks)?;
                write!(f, " as {}", id.tag())
            }
            Self::SettleImages { disks, layers, .. } => {
                f.write_str("make sure that nobody uses ")?;
                let below = layers.iter().filter_map(Layer::below);
                let all: Vec<_> = disks.iter().cloned().chain(below).collect();
                list(f, &all)
            }
            Self::StampImages { disks } => {
                f.write_str("make sure that nobody uses ")?;
                list(f, disks)
            }
            Self::RequireOff => f.write_str("make sure that nobody is about to start the domain"),
            Self::Resume { life, guest } => write!(f, "let domain {} go on, {guest}", life.domid),
            Self::Seal { id, file } => {
                let image = MemoryImage(*id, file.as_deref());
                write!(f, "flush {image} to the disk")
            }
            Self::SettleMemory { file, .. } => {
                write!(f, "leave {} as the memory image", file.display())
            }
            Self::WithdrawMemory { file, .. } => {
                write!(f, "remove {}, if it was written by this", file.display())
            }
            Self::RemoveMemory { file, .. } => {
                write!(f, "remove {}, if it is what was written", file.display())
            }
            Self::Destroy {
                life,
                memory: Memory::GivenUp { .. },
                ..
            } => write!(f, "destroy domain {}, whose memory is not kept", life.domid),
            Self::Destroy { life, .. } => write!(f, "destroy domain {}", life.domid),
            Self::DestroyRest { life, .. } => {
                write!(f, "unless domain {} is still whole, destroy it", life.domid)
            }
            Self::ApplyImages { id, disks, .. } => {
                f.write_str("set ")?;
                list(f, disks)?;
                write!(f, " to {}", id.tag())
            }
            Self::Restore { id, switches, .. } => {
                write!(f, "restore the domain from {id}/memory, paused")?;
                if !switches.is_empty() {
                    f.write_str("; ")?;
                    list(f, switches)?;
                }
                Ok(())
            }
            Self::BringBack { id, life, .. } => {
                write!(
                    f,
                    "unless domain {} is still there, restore it from {id}/memory",
                    life.domid
                )
            }
            Self::HoldMonitor { process } => {
                write!(f, "hold xl's monitor (process {})", process.pid)
            }
            Self::ReleaseMonitor { process } => {
                write!(f, "let xl's monitor (process {}) go on", process.pid)
            }
            Self::DestroyRestored { .. } => f.write_str("destroy the restored domain"),
            Self::Start {
                guest: GuestState::Running,
                ..
            } => f.write_str("let the domain run"),
            Self::Start {
                guest: GuestState::Paused | GuestState::Off,
                ..
            } => f.write_str("leave the domain paused"),
            Self::Commit { change } => match change {
                StoreChange::Add { record, .. } => write!(f, "record snapshot '{}'", record.name()),
                StoreChange::SetCurrent { id, .. } => {
                    write!(f, "record {id} as the current snapshot")
                }
                StoreChange::Edit {
                    id,
                    name,
                    description,
                } => {
                    write!(f, "record of {id}")?;
                    if let Some(name) = name {
                        write!(f, " that it is called '{name}'")?;
                    }
                    if let Some(text) = description {
                        write!(f, " the description {text:?}")?;
                    }
                    Ok(())
                }
                StoreChange::Contents { id, sums } => {
                    let vdevs: Vec<_> = sums.keys().map(String::as_str).collect();
                    write!(f, "record what {} of {id} hold", vdevs.join(", "))
                }
                StoreChange::KeepManaged { image } => {
                    write!(f, "record that the domain goes on from {}", image.id)
                }
                StoreChange::DropManaged { id } => {
                    write!(f, "record that nothing goes on from {id}")
                }
                StoreChange::Pull { of } => of.fmt(f),
                StoreChange::Stopped => f.write_str("record when images were last written to"),
                StoreChange::Merging { merge } => {
                    let layer = merge.layer.target();
                    write!(f, "record that {layer} and the image below become one")
                }
                StoreChange::Merged { merge } => {
                    write!(
                        f,
                        "record that of {} and the image below ",
                        merge.layer.target()
                    )?;
                    f.write_str(match merge.into {
                        Into::Below => "the latter is left",
                        Into::Layer => "the former is left",
                    })
                }
                StoreChange::ForgetLayers { images } => {
                    f.write_str("record that ")?;
                    let images: Vec<_> = images.iter().map(|image| image.display()).collect();
                    list(f, &images)?;
                    f.write_str(if images.len() == 1 {
                        " is gone"
                    } else {
                        " are gone"
                    })
                }
                StoreChange::MarkDeleting { ids, .. } => {
                    f.write_str("record that the deletion of ")?;
                    list(f, ids)?;
                    f.write_str(" has begun")
                }
                StoreChange::Remove { ids, .. } => {
                    f.write_str("record that ")?;
                    list(f, ids)?;
                    f.write_str(if ids.len() == 1 {
                        " is gone"
                    } else {
                        " are gone"
                    })
                }
            },
            Self::DeleteTags { id, disks } => {
                write!(f, "delete {} from ", id.tag())?;
                list(f, disks)
            }
            Self::RemoveDirectory { id } => write!(f, "remove directory {id} from the store"),
            Self::DiscardPack { id } => write!(f, "remove pack {id} from the store"),
            Self::CollectPacks => f.write_str("remove the packs that no memory image needs"),
            Self::Pull { step } => step.fmt(f),
            Self::Announce => f.write_str("post the current snapshot in xenstore"),
        }
    }
}

/// A memory image by where it is.
struct MemoryImage<'a>(SnapshotId, Option<&'a Path>);

impl fmt::Display for MemoryImage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(file) => write!(f, "{}", file.display()),
            None => write!(f, "{}/memory", self.0),
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.target())?;
        match &self.backing {
            Some(below) => write!(f, " on {}", below.image.display()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}", self.from.vdev, self.to.image.display())
    }
}

impl fmt::Display for Extracted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} holds to {}", self.from, self.layer.image.display())
    }
}

impl fmt::Display for Merge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let below = self
            .layer
            .backing
            .as_ref()
            .map(|below| below.image.display());
        let layer = self.layer.target();
        match (self.into, below) {
            (Into::Below, Some(below)) => write!(f, "write {layer} to {below}"),
            (Into::Layer, Some(below)) => write!(f, "copy what {layer} lacks from {below}"),
            (_, None) => write!(f, "leave {layer}"),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, items: &[impl fmt::Display]) -> fmt::Result {
    for (at, item) in items.iter().enumerate() {
        let separator = if at == 0 { "" } else { ", " };
        write!(f, "{separator}{item}")?;
    }
    Ok(())
}
