//! `libxl_hwcap`.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::IsDefault;

/// How many of the words libxl prints. It holds eight.
const PRINTED: usize = 4;

/// The capabilities of the hardware, as words of flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hwcap(pub [u32; 8]);

impl IsDefault for Hwcap {
    /// Always false: libxl prints it whatever it is.
    fn is_default(&self) -> bool {
        false
    }
}

impl Serialize for Hwcap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0[..PRINTED])
    }
}

impl<'de> Deserialize<'de> for Hwcap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = Vec::<u32>::deserialize(deserializer)?;
        let printed = words
            .get(..PRINTED)
            .ok_or_else(|| D::Error::invalid_length(words.len(), &"at least four words"))?;
        let mut this = Self::default();
        this.0[..PRINTED].copy_from_slice(printed);
        Ok(this)
    }
}
