//! `libxl_ms_vm_genid`.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::IsDefault;

/// Microsoft's generation identifier of a virtual machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MsVmGenid(pub [u8; 16]);

impl IsDefault for MsVmGenid {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Serialize for MsVmGenid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0)
    }
}

impl<'de> Deserialize<'de> for MsVmGenid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        let bytes = bytes
            .first_chunk()
            .ok_or_else(|| D::Error::invalid_length(bytes.len(), &"sixteen bytes"))?;
        Ok(Self(*bytes))
    }
}
