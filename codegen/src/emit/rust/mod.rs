//! Rust: safe types in libxl's JSON dialect, and their C mirrors in a module `ffi`.

mod constants;
mod documentation;
mod enumeration;
mod ffi;
mod glue;
mod json;
mod keyed_union;
mod names;
mod structure;
mod types;

use std::collections::BTreeMap;

use proc_macro2::TokenStream;
use quote::quote;

use crate::model::{Model, TypeKind};
use names::Names;

pub(super) use names::ident;

/// Where the Rust form of an imported type is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// Path of the safe type, which needs Clone, Debug, PartialEq, Default, Serialize, Deserialize.
    pub safe: String,
    /// Path of its C mirror, which needs Clone and Copy.
    pub ffi: String,
}

/// What can be chosen about the Rust output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RustOptions {
    /// Path of the crate `libxl-idl-builtin`, as the generated code sees it.
    pub builtin: String,
    /// Imported types that the crate does not know, by C name.
    pub imports: BTreeMap<String, Import>,
    /// Values of C constants that the IDL uses as initial values and that are not known here.
    pub constants: BTreeMap<String, i128>,
}

impl Default for RustOptions {
    fn default() -> Self {
        Self {
            builtin: "libxl_idl_builtin".to_owned(),
            imports: BTreeMap::new(),
            constants: BTreeMap::new(),
        }
    }
}

/// Why a model has no Rust form.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EmitError {
    /// An imported type without a mapping.
    #[error("type `{0}` comes from elsewhere, and no import says from where")]
    UnknownImport(String),
    /// An initial value that is no number.
    #[error("the value of `{constant}`, with which `{place}` starts, is not known")]
    UnknownConstant {
        /// The C expression.
        constant: String,
        /// The type or field.
        place: String,
    },
    /// An initial value for a type that cannot have one.
    #[error("`{place}` cannot start as `{value}`")]
    WrongInitialValue {
        /// The C expression.
        value: String,
        /// The type or field.
        place: String,
    },
    /// A union without key, of which no safe code can know the member.
    #[error("`{0}` is a union without a key, so it has no safe form")]
    PlainUnion(String),
    /// Two types whose names differ only by what Rust's conventions remove.
    #[error("two types would be called `{0}`")]
    NameClash(String),
    /// A type that only libxl can copy and free, so that no C functions can be generated for it.
    #[error("no C functions can be generated for what contains `{0}`")]
    NoGlue(String),
    /// A struct that C hands over by value, or an enumeration by reference.
    #[error("no C functions can be generated for `{0}` with such a `passby`")]
    PassBy(String),
    /// An option that is no path.
    #[error("`{0}` is no path of a Rust item")]
    Path(String),
    /// The emitter has produced something that is no Rust.
    #[error("the generated code is no Rust")]
    Syntax(#[from] syn::Error),
}

/// What the emitters of the parts share.
struct Context<'m> {
    model: &'m Model,
    options: &'m RustOptions,
    builtin: syn::Path,
    names: Names,
}

/// Writes the types of a model as Rust, formatted.
///
/// # Errors
/// When the model uses something that has no Rust form, or the options lack an import.
pub fn rust(model: &Model, options: &RustOptions) -> Result<String, EmitError> {
    let context = Context::new(model, options)?;
    let mut items = TokenStream::new();
    for (id, _) in context.names.in_order() {
        items.extend(match &model[id].kind {
            TypeKind::Enumeration { values, .. } => enumeration::emit(&context, id, values)?,
            TypeKind::Struct { fields } => structure::emit(&context, id, fields)?,
            TypeKind::KeyedUnion { key, members } => keyed_union::emit(&context, id, key, members)?,
            TypeKind::Union { .. } => {
                return Err(EmitError::PlainUnion(model[id].display_name().to_owned()));
            }
            TypeKind::Builtin { .. } | TypeKind::Array { .. } => TokenStream::new(),
        });
    }
    let ffi = ffi::emit(&context)?;
    format_items(quote! {
        #items
        #ffi
    })
}

/// Writes what connects the safe types with C: an implementation of `CValue` for each type, and in a
/// module `c_api` the functions that the C header declares. It belongs into the module that has the
/// output of [`rust`].
///
/// # Errors
/// As for [`rust`], and when a type can be copied and freed only by libxl.
pub fn ffi_glue(model: &Model, options: &RustOptions) -> Result<String, EmitError> {
    let context = Context::new(model, options)?;
    let items = glue::emit(&context)?;
    format_items(items)
}

/// Formats what was generated. The formatter drops comments, so the first line is added here.
fn format_items(items: TokenStream) -> Result<String, EmitError> {
    let file: syn::File = syn::parse2(items)?;
    let text = prettyplease::unparse(&file);
    Ok(format!(
        "// Generated by xl-idl from the IDL; changes belong there.\n\n{text}"
    ))
}

impl<'m> Context<'m> {
    fn new(model: &'m Model, options: &'m RustOptions) -> Result<Self, EmitError> {
        let builtin = path(&options.builtin)?;
        Ok(Self {
            model,
            options,
            builtin,
            names: Names::new(model)?,
        })
    }
}

fn path(text: &str) -> Result<syn::Path, EmitError> {
    syn::parse_str(text).map_err(|_| EmitError::Path(text.to_owned()))
}
