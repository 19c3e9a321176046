//! A compiler for libxl's IDL, the language of `libxl_types.idl`.
//!
//! libxl's own compiler executes its input as a Python program. This one parses it: [`compile`] goes
//! from source to a checked [`Model`], and each function of [`emit`] goes from the model to one output.
//!
//! # The language
//!
//! A file is a list of statements, each of which starts in the first column. Brackets are continued
//! over lines, `#` starts a comment, and a string alone is a docstring.
//!
//! ```text
//! namespace("libxl_")                    prefix of the C names that follow
//! hidden(True)                           what follows is internal to the library
//! name = Builtin("ctype", ...)           a type that is defined elsewhere
//! name = Number("ctype", ...)            an integer type of C
//! name = UInt(8, ...)                    an unsigned integer of 8, 16, 32 or 64 bits
//! name = Enumeration("name", [(0, "VALUE"), ...], ...)
//! name = Struct("name", [("field", type), ("field", type, {'init_val': "1"}), ...], ...)
//! name = Union("name", [("field", type), ...], ...)
//! name = other                           another name for a type
//! ```
//!
//! A field's type is a name, or a constructor in place: `Array(type, "num_fields")`, `Struct(None, ...)`,
//! or `KeyedUnion(None, enumeration, "key", [("value", type), ("value", None)], ...)`. A field can be
//! `const`, have an `init_val`, and be `deprecated_by` another one.
//!
//! The keyword arguments of a type are its attributes, which have the names that libxl gave them:
//! `namespace`, `hidden`, `private`, `dir`, `passby`, `dispose_fn`, `copy_fn`, `init_fn` and
//! `autogenerate_*_fn` for each of these three, `init_val`, `check_default_fn`, `copy_deprecated_fn`,
//! `json_gen_fn`, `jsonc_json_gen_fn`, `json_parse_fn`, `json_parse_type`, `autogenerate_json`; and for
//! some types `signed`, `value_namespace`, `keyvar_*` and `lenvar_*`.
//!
//! The comment directly above a type, a field or a value describes it, as does one behind it on its
//! line. Such comments become those of the outputs.

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
