//! `libxl_cpuid_policy_list`.

use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::IsDefault;

/// What a guest sees of CPUID and of model-specific registers.
///
/// It is kept as JSON, unread: libxl 4.17 prints a list of CPUID leaves, later ones a map with the
/// lists `cpuid` and `msr`, and its C structure is private to libxl.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct CpuidPolicyList(pub Value);

impl Default for CpuidPolicyList {
    fn default() -> Self {
        Self(Value::Array(Vec::new()))
    }
}

impl IsDefault for CpuidPolicyList {
    fn is_default(&self) -> bool {
        let empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
        empty(&self.0)
            || self
                .0
                .as_object()
                .is_some_and(|lists| lists.values().all(empty))
    }
}

fn is_list_of_maps(value: &Value) -> bool {
    value
        .as_array()
        .is_some_and(|list| list.iter().all(Value::is_object))
}

impl<'de> Deserialize<'de> for CpuidPolicyList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let lists = ["cpuid", "msr"];
        let both = || {
            lists
                .iter()
                .all(|list| value.get(list).is_some_and(is_list_of_maps))
        };
        if is_list_of_maps(&value) || both() {
            return Ok(Self(value));
        }
        let expected = "a list of leaves, or a map with the lists `cpuid` and `msr`";
        Err(D::Error::invalid_value(
            Unexpected::Other("other JSON"),
            &expected,
        ))
    }
}
