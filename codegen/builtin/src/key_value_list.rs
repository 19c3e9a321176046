//! `libxl_key_value_list`.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::IsDefault;

/// Keys with values, in their order; a value can be null.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyValueList(pub Vec<(String, Option<String>)>);

impl KeyValueList {
    /// The value of a key; `None` if it is null or the key is absent.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(present, _)| present == key)
            .and_then(|(_, value)| value.as_deref())
    }
}

impl IsDefault for KeyValueList {
    fn is_default(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for KeyValueList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for KeyValueList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = KeyValueList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<KeyValueList, A::Error> {
                let mut list = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    list.push(entry);
                }
                Ok(KeyValueList(list))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}
