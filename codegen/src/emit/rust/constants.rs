//! The numbers behind the C expressions that the IDL uses as initial values.

use super::{Context, EmitError};
use crate::model::TypeKind;

/// The macros of libxl.h that its IDL files use. A header cannot be asked: the Rust output must not
/// depend on what is installed.
const KNOWN: &[(&str, i128)] = &[
    ("LIBXL_ALTP2M_COUNT_DEFAULT", 0xffff_ffff),
    ("LIBXL_DOMAIN_SCHED_PARAM_BUDGET_DEFAULT", -1),
    ("LIBXL_DOMAIN_SCHED_PARAM_CAP_DEFAULT", -1),
    ("LIBXL_DOMAIN_SCHED_PARAM_EXTRATIME_DEFAULT", -1),
    ("LIBXL_DOMAIN_SCHED_PARAM_LATENCY_DEFAULT", -1),
    ("LIBXL_DOMAIN_SCHED_PARAM_PERIOD_DEFAULT", -1),
    ("LIBXL_DOMAIN_SCHED_PARAM_SLICE_DEFAULT", -1),
    ("LIBXL_DOMAIN_SCHED_PARAM_WEIGHT_DEFAULT", -1),
    ("LIBXL_INVALID_GFN", 0xffff_ffff_ffff_ffff),
    ("LIBXL_MAX_GRANT_DEFAULT", 0xffff_ffff),
    ("LIBXL_MAX_GRANT_FRAMES_DEFAULT", 32),
    ("LIBXL_MAX_MAPTRACK_FRAMES_DEFAULT", 1024),
    ("LIBXL_MEMKB_DEFAULT", 0xffff_ffff_ffff_ffff),
    ("LIBXL_NR_SPIS_DEFAULT", 0xffff_ffff),
    ("LIBXL_SCHED_PARAM_VCPU_INDEX_DEFAULT", -1),
    ("LIBXL_TIMER_MODE_DEFAULT", -1),
];

impl Context<'_> {
    /// The number that a C expression stands for.
    pub(super) fn constant(&self, expression: &str, place: &str) -> Result<i128, EmitError> {
        let expression = expression.trim();
        literal(expression)
            .or_else(|| self.enumerator(expression))
            .or_else(|| self.options.constants.get(expression).copied())
            .or_else(|| {
                KNOWN
                    .iter()
                    .find(|(name, _)| *name == expression)
                    .map(|(_, value)| *value)
            })
            .ok_or_else(|| EmitError::UnknownConstant {
                constant: expression.to_owned(),
                place: place.to_owned(),
            })
    }

    fn enumerator(&self, name: &str) -> Option<i128> {
        self.model.types().find_map(|(_, ty)| match &ty.kind {
            TypeKind::Enumeration { values, .. } => values
                .iter()
                .find(|value| value.c_name == name)
                .map(|value| i128::from(value.value)),
            _ => None,
        })
    }
}

/// An integer as C writes it, also in parentheses or complemented.
fn literal(text: &str) -> Option<i128> {
    if let Some(inner) = text
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
    {
        return literal(inner.trim());
    }
    if let Some(inner) = text.strip_prefix('~') {
        let all = if inner.to_ascii_uppercase().contains('L') {
            u64::MAX
        } else {
            u32::MAX.into()
        };
        // Without the suffix it would be signed.
        let unsigned = inner
            .ends_with(['u', 'U', 'l', 'L'])
            .then_some(i128::from(all))?;
        return literal(inner).map(|value| unsigned - value);
    }
    match text {
        "true" => return Some(1),
        "false" | "NULL" => return Some(0),
        _ => {}
    }
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let digits = digits.trim_end_matches(['u', 'U', 'l', 'L']);
    let value = match digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
    {
        Some(hexadecimal) => i128::from(u64::from_str_radix(hexadecimal, 16).ok()?),
        None => i128::from(digits.parse::<u64>().ok()?),
    };
    Some(if negative { -value } else { value })
}
