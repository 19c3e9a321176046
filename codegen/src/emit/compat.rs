//! Which release of libxl's own generator the C header follows.
//!
//! From 4.5 on, its headers differ in one thing only: since 4.8 the source of a copy function is
//! `const`. The IDL files do not name their release, but they can be told apart by what was added to
//! libxl between 4.7 and 4.8.

use std::str::FromStr;

use crate::model::{Model, TypeKind};

/// A release of Xen, as far as the form of the C header depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compat {
    /// Derived from the input.
    #[default]
    Detect,
    /// Xen 4.`n`.
    Release(u32),
}

/// A release that is not of the form `4.N`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no release of Xen that has an IDL (4.5 or later)")]
pub struct UnknownRelease(String);

impl FromStr for Compat {
    type Err = UnknownRelease;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("4.")
            .and_then(|minor| minor.parse().ok())
            .filter(|&minor| minor >= 5)
            .map(Self::Release)
            .ok_or_else(|| UnknownRelease(text.to_owned()))
    }
}

impl Compat {
    /// The source of a copy function is `const`.
    pub(super) fn const_copy_source(self, model: &Model) -> bool {
        match self {
            Self::Release(minor) => minor >= 8,
            Self::Detect => !predates_4_8(model),
        }
    }
}

/// True for the files of libxl 4.7 and earlier, false for later ones and for files that are not
/// libxl's.
fn predates_4_8(model: &Model) -> bool {
    let libxl_types = model.find("libxl_domain_build_info").is_some();
    let internal_types = model.find("libxl__device_kind");
    let kind_none = internal_types.is_some_and(|ty| match &ty.kind {
        TypeKind::Enumeration { values, .. } => values.iter().any(|value| value.value == 0),
        _ => false,
    });
    (libxl_types && model.find("libxl_sched_credit2_params").is_none())
        || (internal_types.is_some() && !kind_none)
}
