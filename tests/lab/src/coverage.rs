//! What a step shows, as cells of the table in `docs/features.md`: a feature, of a guest of one type, with disks held
//! in one way.

use std::fmt;

use serde::de::value::{Error, StrDeserializer};
use serde::de::{Deserialize, IntoDeserializer};
use serde::{Deserialize as DeriveDeserialize, Serialize};

use crate::guest::Kind;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $title:literal,)* }) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, DeriveDeserialize,
        )]
        #[serde(rename_all = "kebab-case")]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// All of them, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its heading in the table.
            pub fn title(self) -> &'static str {
                match self {
                    $(Self::$variant => $title,)*
                }
            }
        }
    };
}

named! {
    /// A row of the table: what is done with snapshots, or what still works after it.
    Feature {
        /// `snapshot-create` of a running guest, which does not notice.
        Create = "create, guest running",
        /// `snapshot-create` of a paused guest, which stays paused.
        CreatePaused = "create, guest paused",
        /// `snapshot-create --live`: the guest runs while its memory is written.
        CreateLive = "create `--live`",
        /// `snapshot-create --disk-only` of a domain that is off, and the ways back.
        DiskOnly = "create and revert `--disk-only`, no domain",
        /// `snapshot-create --config` and `--memory-file`.
        Described = "create `--config`, `--memory-file`",
        /// All disks and the memory are of one instant, by marks that the guest writes all the time.
        OneInstant = "disks and memory of one instant",
        /// `snapshot-revert` under a running guest.
        Revert = "revert, guest running",
        /// `snapshot-revert` under a paused guest.
        RevertPaused = "revert, guest paused",
        /// `snapshot-revert` where there is no domain.
        RevertOff = "revert, no domain",
        /// `snapshot-revert --paused` and `--running`.
        RevertTo = "revert `--paused`, `--running`",
        /// Snapshots of a tree with branches, reverted to in any order.
        Tree = "revert in any order, with branches",
        /// `snapshot-revert --force` over another domain of the name, and without room for the present.
        RevertForce = "revert `--force`",
        /// `snapshot-revert --keep-current`.
        KeepCurrent = "revert `--keep-current`",
        /// `snapshot-delete` under a running guest; layers merge.
        Delete = "delete, guest running",
        /// `snapshot-delete` under a paused guest; layers merge.
        DeletePaused = "delete, guest paused",
        /// `snapshot-delete` where there is no domain; layers merge.
        DeleteOff = "delete, no domain",
        /// `snapshot-delete --children` and `--children-only`.
        DeleteSubtree = "delete `--children`, `--children-only`",
        /// The guest's own reboot, after a snapshot and after a revert, starts it on the right images.
        Reboot = "afterwards: the guest reboots",
        /// Stock `xl save` and `xl restore`.
        SaveRestore = "afterwards: stock `xl save`, `xl restore`",
        /// Stock `xl migrate` to the same host.
        Migrate = "afterwards: stock `xl migrate`",
        /// `xl create` of the guest's configuration file by `xl-ext` under the name `xl`.
        CreateAsXl = "afterwards: `create` as `xl`",
        /// A guest with two virtual CPUs.
        TwoCpus = "two virtual CPUs",
        /// A guest with eight writable disks.
        EightDisks = "eight disks",
        /// A cdrom beside the other disks is left out, and comes back.
        Cdrom = "a cdrom is left out",
        /// `snapshot-verify`, whole and damaged.
        Verify = "verify",
        /// A guest whose raw disk begins with a qcow2 header that names a file of the host's.
        HostileDisk = "a qcow2 header in a raw disk",
        /// A revert whose restore fails gives the guest back.
        RestoreFails = "a restore that fails is taken back",
        /// `kill -9` in the middle of a create or revert.
        Killed = "kill -9 in the middle",
        /// The power cut in the middle of a create or revert.
        PowerCut = "power cut in the middle",
        /// The host's disk full in the middle of a create.
        FullDisk = "full disk in the middle",
    }
}

named! {
    /// A column of the table: how the disks of a guest are held in its snapshots.
    Disks {
        /// qcow2 images, inside of which the snapshots are.
        Internal = "qcow2 internal",
        /// qcow2 images with layers on top of them.
        External = "qcow2 external",
        /// Raw images with layers on top of them.
        Raw = "raw external",
        /// Some disks internally and others externally, in one snapshot.
        Mixed = "mixed",
    }
}

impl Kind {
    /// All of them, in the order of the table.
    pub const ALL: &[Self] = &[Self::Pv, Self::Pvh, Self::Hvm];

    /// What `xl` users call it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Pv => "PV",
            Self::Pvh => "PVH",
            Self::Hvm => "HVM",
        }
    }
}

/// One cell of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, DeriveDeserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// Its part of the table.
    pub guest: Kind,
    /// Its row.
    pub feature: Feature,
    /// Its column.
    pub disks: Disks,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (guest, feature) = (self.guest.title(), self.feature.title());
        write!(f, "{guest}, {feature}, {}", self.disks.title())
    }
}

impl Cell {
    /// All cells, in the order of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        Cells::new(Kind::ALL, Feature::ALL, Disks::ALL).iter()
    }
}

/// Cells that have their features, guests and disks in common: every combination of them.
#[derive(Debug, Clone, Copy)]
pub struct Cells {
    guests: &'static [Kind],
    features: &'static [Feature],
    disks: &'static [Disks],
}

impl Cells {
    /// Of several types of guests.
    pub const fn new(
        guests: &'static [Kind],
        features: &'static [Feature],
        disks: &'static [Disks],
    ) -> Self {
        Self {
            guests,
            features,
            disks,
        }
    }

    /// Of a PV guest.
    pub const fn pv(features: &'static [Feature], disks: &'static [Disks]) -> Self {
        Self::new(&[Kind::Pv], features, disks)
    }

    /// Of a PVH guest.
    pub const fn pvh(features: &'static [Feature], disks: &'static [Disks]) -> Self {
        Self::new(&[Kind::Pvh], features, disks)
    }

    /// Of an HVM guest.
    pub const fn hvm(features: &'static [Feature], disks: &'static [Disks]) -> Self {
        Self::new(&[Kind::Hvm], features, disks)
    }

    /// One by one.
    pub fn iter(self) -> impl Iterator<Item = Cell> {
        let rest = move |guest| {
            self.features.iter().flat_map(move |&feature| {
                self.disks.iter().map(move |&disks| Cell {
                    guest,
                    feature,
                    disks,
                })
            })
        };
        self.guests.iter().flat_map(move |&guest| rest(guest))
    }
}

/// Reads the name that an item has in `results.json` and in LIMITS.md, such as `create-live`.
pub fn parse<'a, T: Deserialize<'a>>(name: &'a str) -> Option<T> {
    let text: StrDeserializer<'a, Error> = name.into_deserializer();
    T::deserialize(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        assert_eq!(parse("create-live"), Some(Feature::CreateLive));
        assert_eq!(parse("hvm"), Some(Kind::Hvm));
        assert_eq!(parse::<Disks>("nonsense"), None);
    }

    #[test]
    fn cells_are_every_combination() {
        let cells = Cells::pvh(
            &[Feature::Create, Feature::Revert],
            &[Disks::Raw, Disks::Mixed],
        );
        let text: Vec<_> = cells.iter().map(|cell| cell.to_string()).collect();
        assert_eq!(
            text,
            [
                "PVH, create, guest running, raw external",
                "PVH, create, guest running, mixed",
                "PVH, revert, guest running, raw external",
                "PVH, revert, guest running, mixed",
            ]
        );
        assert_eq!(
            Cell::all().count(),
            Feature::ALL.len() * Disks::ALL.len() * Kind::ALL.len()
        );
    }
}
