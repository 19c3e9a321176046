//! Which steps take back each step, and lead back from the destruction of a domain.

use super::step::{Memory, Step};
use crate::model::domain::DomainLife;
use std::path::Path;

impl Step {
    /// The steps that take this one back, also when it was done only in part or not at all.
    pub fn taken_back_by(&self) -> Vec<Self> {
        match self {
            Self::CreateDirectory { id } => vec![Self::RemoveDirectory { id: *id }],
            Self::Wake { life } => vec![Self::Pause { life: *life }],
            Self::SaveMemory {
                life,
                guest,
                id,
                file,
                packed,
                ..
            } => {
                let resume = Self::Resume {
                    life: *life,
                    guest: *guest,
                };
                let withdraw = |file: &Path| Self::WithdrawMemory {
                    id: *id,
                    file: file.into(),
                };
                let discard = packed.then_some(Self::DiscardPack { id: *id });
                [Some(resume), file.as_deref().map(withdraw), discard]
                    .into_iter()
                    .flatten()
                    .collect()
            }
            Self::CreateLayers { layers } => vec![Self::RemoveLayers {
                layers: layers.clone(),
            }],
            Self::ExtractLayers { layers, .. } => vec![Self::RemoveLayers {
                layers: layers.iter().map(|made| made.layer.clone()).collect(),
            }],
            Self::SnapshotDisks {
                life,
                id,
                disks,
                layers,
            } => {
                // Where the guest was paused, that is brought about again by a step before.
                let leave = Self::LeaveLayers {
                    life: Some(*life),
                    layers: layers.clone(),
                    wake: true,
                };
                let delete = Self::DeleteTags {
                    id: *id,
                    disks: disks.clone(),
                };
                let mut steps = Vec::new();
                steps.extend((!layers.is_empty()).then_some(leave));
                steps.extend((!disks.is_empty()).then_some(delete));
                steps
            }
            Self::SnapshotImages { id, disks } => vec![Self::DeleteTags {
                id: *id,
                disks: disks.clone(),
            }],
            Self::HoldMonitor { process } => vec![Self::ReleaseMonitor { process: *process }],
            // It must not let the guest reboot while that is between two images.
            Self::ReleaseMonitor { process } => vec![Self::HoldMonitor { process: *process }],
            Self::Destroy {
                life,
                has_qemu,
                memory,
            } => memory.brought_back_by(*life, *has_qemu),
            Self::ApplyImages {
                id,
                instead_of,
                disks,
            } => vec![Self::ApplyImages {
                id: *instead_of,
                instead_of: *id,
                disks: disks.clone(),
            }],
            Self::Restore { uuid, .. } => vec![Self::DestroyRestored { uuid: *uuid }],
            Self::Pull { step } => step.taken_back_by(),
            // These change nothing that has to be taken back, or stand behind the point of no return.
            Self::Prove { .. }
            | Self::RequireAbsent { .. }
            | Self::SettleImages { .. }
            | Self::StampImages { .. }
            | Self::RequireOff
            | Self::SettleMemory { .. }
            | Self::WithdrawMemory { .. }
            | Self::RemoveMemory { .. }
            | Self::Pause { .. }
            | Self::Resume { .. }
            | Self::Seal { .. }
            | Self::BringBack { .. }
            | Self::DestroyRest { .. }
            // What it says is taken back with what it is said of.
            | Self::PointDisks { .. }
            | Self::DestroyRestored { .. }
            | Self::Start { .. }
            | Self::Commit { .. }
            | Self::DeleteTags { .. }
            | Self::LeaveLayers { .. }
            | Self::MergeLayer { .. }
            | Self::RemoveLayers { .. }
            | Self::RemoveDirectory { .. }
            | Self::DiscardPack { .. }
            | Self::CollectPacks
            | Self::Announce => Vec::new(),
        }
    }
}

impl Memory {
    /// The steps that lead back from the destruction of a domain, also when that was done only in part:
    /// what is left of a domain whose memory is not kept is of no use to anybody.
    fn brought_back_by(&self, life: DomainLife, has_qemu: bool) -> Vec<Step> {
        let rest = Step::DestroyRest { life, has_qemu };
        match self {
            Self::Kept {
                id,
                guest,
                disks,
                others,
            } => vec![
                Step::BringBack {
                    id: *id,
                    life,
                    has_qemu,
                    disks: disks.clone(),
                    others: others.clone(),
                },
                Step::Start {
                    uuid: life.uuid,
                    guest: *guest,
                },
                Step::Announce,
            ],
            Self::Ended | Self::GivenUp { guest: None } => vec![rest],
            // The attempt may have paused it.
            Self::GivenUp { guest: Some(guest) } => vec![
                rest,
                Step::Resume {
                    life,
                    guest: *guest,
                },
            ],
        }
    }
}
