//! What all generated enumerations have in common.

/// A name that an enumeration does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is no {enumeration}")]
pub struct UnknownName {
    /// The C name of the enumeration.
    pub enumeration: &'static str,
    /// The name that was looked up.
    pub name: String,
}

/// A number that no value of an enumeration has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value} is no {enumeration}")]
pub struct UnknownValue {
    /// The C name of the enumeration.
    pub enumeration: &'static str,
    /// The number that was looked up.
    pub value: i64,
}
