//! `libxl_bitmap`.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::IsDefault;

/// A set of small numbers, such as of CPUs. Equal are those with the same members; how much memory C
/// has reserved for them is no property of the set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bitmap(BTreeSet<u32>);

impl Bitmap {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a number.
    pub fn insert(&mut self, bit: u32) {
        self.0.insert(bit);
    }

    /// Removes a number.
    pub fn remove(&mut self, bit: u32) {
        self.0.remove(&bit);
    }

    /// Tells whether a number is in the set.
    pub fn contains(&self, bit: u32) -> bool {
        self.0.contains(&bit)
    }

    /// The members, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// True if no number is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<u32> for Bitmap {
    fn from_iter<I: IntoIterator<Item = u32>>(bits: I) -> Self {
        Self(bits.into_iter().collect())
    }
}

impl IsDefault for Bitmap {
    fn is_default(&self) -> bool {
        self.is_empty()
    }
}

impl Serialize for Bitmap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bitmap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<u32>::deserialize(deserializer).map(|bits| bits.into_iter().collect())
    }
}
