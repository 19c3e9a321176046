//! `libxl_defbool`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::IsDefault;

/// A boolean that can also be left to libxl to decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Defbool {
    /// libxl decides.
    #[default]
    Default,
    /// Set to false.
    False,
    /// Set to true.
    True,
}

impl Defbool {
    /// The value, unless it is left to libxl.
    pub fn get(self) -> Option<bool> {
        match self {
            Self::Default => None,
            Self::False => Some(false),
            Self::True => Some(true),
        }
    }

    /// The text that libxl uses for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "<default>",
            Self::False => "False",
            Self::True => "True",
        }
    }
}

impl From<bool> for Defbool {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

impl IsDefault for Defbool {
    fn is_default(&self) -> bool {
        *self == Self::Default
    }
}

impl fmt::Display for Defbool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Defbool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Defbool {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // libxl looks only at how the text begins.
        [Self::Default, Self::True, Self::False]
            .into_iter()
            .find(|value| text.starts_with(value.as_str()))
            .ok_or_else(|| {
                de::Error::invalid_value(
                    de::Unexpected::Str(&text),
                    &"\"True\", \"False\" or \"<default>\"",
                )
            })
    }
}
