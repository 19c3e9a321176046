//! A compiler for libxl's IDL, the language of `libxl_types.idl`.
//!
//! The text is parsed, never executed: [`compile`] goes from source to a checked [`Model`], and each
//! function of [`emit`] goes from the model to one output.

mod check;
mod diagnostic;
pub mod emit;
mod lower;
pub mod model;
pub mod output;
mod parse;

pub use diagnostic::{Diagnostic, Diagnostics, Span};
pub use model::Model;
pub use parse::NESTING_LIMIT;

/// Parses and checks a file. `file_name` is only for messages.
///
/// # Errors
/// All errors that were found, if there is any.
pub fn compile(source: &str, file_name: &str) -> Result<Model, Diagnostics> {
    let (file, mut diagnostics) = parse::parse(source);
    let (lowered, errors) = lower::lower(&file);
    diagnostics.extend(errors);
    diagnostics.extend(check::check(&lowered));
    if diagnostics.is_empty() {
        Ok(lowered.model)
    } else {
        Err(Diagnostics::new(file_name, source, diagnostics))
    }
}
