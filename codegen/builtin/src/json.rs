//! Reading libxl's JSON the way libxl's generated parsers do: a key of an unexpected type counts as
//! absent, an unknown key is ignored, and of a repeated key the first one counts.

use std::fmt;
use std::ops::BitOr;

use serde::de::{
    DeserializeOwned, Error, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::json_value::JsonValue;

/// A set of kinds of JSON values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds(u8);

impl Kinds {
    /// null
    pub const NULL: Self = Self(1);
    /// true and false
    pub const BOOL: Self = Self(2);
    /// Integers.
    pub const INTEGER: Self = Self(4);
    /// Strings.
    pub const STRING: Self = Self(8);
    /// Maps.
    pub const MAP: Self = Self(16);
    /// Arrays.
    pub const ARRAY: Self = Self(32);
    /// Numbers that are no integers.
    pub const DOUBLE: Self = Self(64);
    /// Everything.
    pub const ANY: Self = Self(u8::MAX);

    /// Both sets.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn of(value: &JsonValue) -> Self {
        match value {
            JsonValue::Null => Self::NULL,
            JsonValue::Bool(_) => Self::BOOL,
            JsonValue::Unsigned(_) | JsonValue::Signed(_) => Self::INTEGER,
            JsonValue::Double(_) => Self::DOUBLE,
            JsonValue::String(_) => Self::STRING,
            JsonValue::Array(_) => Self::ARRAY,
            JsonValue::Map(_) => Self::MAP,
        }
    }

    fn contain(self, value: &JsonValue) -> bool {
        self.0 & Self::of(value).0 != 0
    }
}

impl BitOr for Kinds {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.or(other)
    }
}

/// A JSON map, from which the fields of a struct are taken.
#[derive(Clone, Debug, Default)]
pub struct Object(Vec<(String, JsonValue)>);

impl Object {
    /// The value of a key, if it is there and of one of the kinds.
    ///
    /// # Errors
    /// When its value has the right kind but is wrong.
    pub fn get<T: DeserializeOwned, E: Error>(
        &self,
        key: &str,
        kinds: Kinds,
    ) -> Result<Option<T>, E> {
        let Some((_, value)) = self.0.iter().find(|(present, _)| present == key) else {
            return Ok(None);
        };
        if !kinds.contain(value) {
            return Ok(None);
        }
        let value: Result<T, E> = T::deserialize(value.clone().into_deserializer());
        value
            .map(Some)
            .map_err(|error| E::custom(format_args!("{key}: {error}")))
    }

    /// Fails if there are maps with more than one of the keys, which name members of one union.
    ///
    /// # Errors
    /// When there is more than one.
    pub fn at_most_one_of<E: Error>(&self, keys: &[&str]) -> Result<(), E> {
        let mut present = keys.iter().filter(|key| self.has_map(key));
        match (present.next(), present.next()) {
            (Some(one), Some(other)) => Err(E::custom(format_args!(
                "`{one}` and `{other}` exclude each other"
            ))),
            _ => Ok(()),
        }
    }

    /// Tells whether there is a map with this key.
    pub fn has_map(&self, key: &str) -> bool {
        self.0
            .iter()
            .find(|(present, _)| present == key)
            .is_some_and(|(_, value)| matches!(value, JsonValue::Map(_)))
    }
}

impl<'de> Deserialize<'de> for Object {
    /// Never fails on JSON: what is no map has no keys, so that a struct made from it is as
    /// initialised.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Entries)
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Object(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Object, A::Error> {
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Object::default())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Object, E> {
        Ok(Object::default())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Object, E> {
        Ok(Object::default())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Object, E> {
        Ok(Object::default())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Object, E> {
        Ok(Object::default())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Object, E> {
        Ok(Object::default())
    }

    fn visit_unit<E: Error>(self) -> Result<Object, E> {
        Ok(Object::default())
    }
}

/// The map without entries that stands for a member of a union that says nothing beyond its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmptyMap;

impl Serialize for EmptyMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_map(Some(0))?.end()
    }
}
