//! Serialize and Deserialize of structs, after the rules by which libxl generates its own JSON
//! functions:
//!
//! - Aggregates are always written. An array is written unless it is empty.
//! - A field with an initial value, its own or its type's, is written unless it has that value.
//! - Else, if its type has a function that tells the default, it is written unless that says so.
//! - Else it is written unless it is zero.
//! - A keyed union has no key of its own: it is written as `key.member`, which says both.

use proc_macro2::TokenStream;
use quote::quote;

use super::keyed_union::{first_value, variants};
use super::names::{camel_case, ident};
use super::types::{Shape, Start};
use super::{Context, EmitError};
use crate::model::{Field, TypeId, TypeKind};

pub(super) fn emit(
    context: &Context<'_>,
    id: TypeId,
    fields: &[Field],
) -> Result<TokenStream, EmitError> {
    let builtin = &context.builtin;
    let name = context.names.safe(id);
    let place = context.names.ffi(id).to_string();
    let mut writers = Vec::new();
    let mut readers = Vec::new();
    for field in fields.iter().filter(|field| !context.is_skipped(field)) {
        if matches!(context.model[field.ty].kind, TypeKind::KeyedUnion { .. }) {
            let (writer, reader) = keyed_union(context, &place, field)?;
            writers.push(writer);
            readers.push(reader);
        } else {
            writers.push(writer(context, &place, field)?);
            readers.push(reader(context, field)?);
        }
    }
    // Without fields nothing is put into the map, or taken from it.
    let mutable = (!writers.is_empty()).then(|| quote!(mut));
    let object = if readers.is_empty() {
        quote!(_object)
    } else {
        quote!(object)
    };
    Ok(quote! {
        impl ::serde::Serialize for #name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let #mutable map = serializer.serialize_map(None)?;
                #(#writers)*
                ::serde::ser::SerializeMap::end(map)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for #name {
            fn deserialize<D: ::serde::Deserializer<'de>>(
                deserializer: D,
            ) -> Result<Self, D::Error> {
                let #object =
                    <#builtin::json::Object as ::serde::Deserialize>::deserialize(deserializer)?;
                let #mutable this = Self::default();
                #(#readers)*
                Ok(this)
            }
        }
    })
}

fn entry(key: &str, value: &TokenStream) -> TokenStream {
    quote!(::serde::ser::SerializeMap::serialize_entry(&mut map, #key, #value)?;)
}

fn writer(context: &Context<'_>, place: &str, field: &Field) -> Result<TokenStream, EmitError> {
    let name = ident(&field.name);
    let entry = entry(&field.name, &quote!(&self.#name));
    Ok(match condition(context, place, field)? {
        Some(condition) => quote!(if #condition { #entry }),
        None => entry,
    })
}

/// When a field is written; None: always.
fn condition(
    context: &Context<'_>,
    place: &str,
    field: &Field,
) -> Result<Option<TokenStream>, EmitError> {
    let ty = &context.model[field.ty];
    let builtin = &context.builtin;
    let name = ident(&field.name);
    if ty.is_aggregate() {
        return Ok(None);
    }
    if matches!(ty.kind, TypeKind::Array { .. }) {
        return Ok(Some(quote!(!self.#name.is_empty())));
    }
    if matches!(ty.kind, TypeKind::Enumeration { .. }) {
        return enumeration_condition(context, place, field).map(Some);
    }
    if context.model.init_val(field).is_none() && ty.check_default_fn.is_some() {
        return Ok(Some(match Context::shape(ty) {
            // C's own types need no trait to be compared.
            Shape::Bool => quote!(self.#name),
            Shape::Integer(..) => quote!(self.#name != 0),
            Shape::Builtin(_) | Shape::Import => {
                quote!(!#builtin::IsDefault::is_default(&self.#name))
            }
        }));
    }
    Ok(match (context.start(place, field)?, Context::shape(ty)) {
        (Start::Default, Shape::Bool) => Some(quote!(self.#name)),
        (Start::Default, Shape::Integer(..)) => Some(quote!(self.#name != 0)),
        (Start::Value(_), Shape::Bool) => Some(quote!(!self.#name)),
        (Start::Value(value), _) => Some(quote!(self.#name != #value)),
        (Start::Default, Shape::Builtin("CText")) => Some(quote!(self.#name.is_some())),
        (Start::Default, Shape::Builtin(_)) => {
            Some(quote!(!#builtin::IsDefault::is_default(&self.#name)))
        }
        // C cannot compare such a type with zero either: it must be an aggregate elsewhere.
        (Start::Default, Shape::Import) => None,
    })
}

fn enumeration_condition(
    context: &Context<'_>,
    place: &str,
    field: &Field,
) -> Result<TokenStream, EmitError> {
    let name = ident(&field.name);
    Ok(match context.start(place, field)? {
        Start::Value(value) => quote!(self.#name != #value),
        Start::Default if context.is_optional(field.ty)? => quote!(self.#name.is_some()),
        Start::Default => {
            let ty = context.names.safe(field.ty);
            quote!(self.#name != #ty::default())
        }
    })
}

fn reader(context: &Context<'_>, field: &Field) -> Result<TokenStream, EmitError> {
    let name = ident(&field.name);
    let key = &field.name;
    let kinds = kinds(context, field);
    let value = if context.is_optional(field.ty)? {
        quote!(Some(value))
    } else {
        quote!(value)
    };
    Ok(quote! {
        if let Some(value) = object.get(#key, #kinds)? {
            this.#name = #value;
        }
    })
}

/// The kinds of JSON values that libxl takes for a field, from the C expression in the model.
fn kinds(context: &Context<'_>, field: &Field) -> TokenStream {
    let builtin = &context.builtin;
    let expression = context.model[field.ty]
        .json
        .parse_type
        .as_deref()
        .unwrap_or("JSON_ANY");
    let kinds = expression.split('|').map(|kind| match kind.trim() {
        "JSON_NULL" => quote!(#builtin::json::Kinds::NULL),
        "JSON_BOOL" => quote!(#builtin::json::Kinds::BOOL),
        "JSON_INTEGER" => quote!(#builtin::json::Kinds::INTEGER),
        "JSON_DOUBLE" => quote!(#builtin::json::Kinds::DOUBLE),
        "JSON_STRING" => quote!(#builtin::json::Kinds::STRING),
        "JSON_MAP" => quote!(#builtin::json::Kinds::MAP),
        "JSON_ARRAY" => quote!(#builtin::json::Kinds::ARRAY),
        _ => quote!(#builtin::json::Kinds::ANY),
    });
    quote!(#(#kinds)|*)
}

fn keyed_union(
    context: &Context<'_>,
    place: &str,
    field: &Field,
) -> Result<(TokenStream, TokenStream), EmitError> {
    let TypeKind::KeyedUnion { key, members } = &context.model[field.ty].kind else {
        return Ok((TokenStream::new(), TokenStream::new()));
    };
    let builtin = &context.builtin;
    let name = ident(&field.name);
    let ty = context.names.safe(field.ty);
    let mut arms = Vec::new();
    let mut all_written = true;
    for variant in variants(context, key, members) {
        let Some(member) = variant.member else {
            all_written = false;
            continue;
        };
        let variant = ident(&camel_case(&variant.value.name));
        let json_key = format!("{}.{}", key.name, member.name);
        if member.ty.is_some() {
            let entry = entry(&json_key, &quote!(value));
            arms.push((quote!(#ty::#variant(value)), entry));
        } else {
            let entry = entry(&json_key, &quote!(&#builtin::json::EmptyMap));
            arms.push((quote!(#ty::#variant), entry));
        }
    }
    // A value without a member leaves no trace in JSON.
    let has_unset = first_value(context, place, key)?.is_none();
    let rest = (!all_written || has_unset).then(|| quote!(_ => {}));
    let readers = members.iter().filter_map(|member| {
        let json_key = format!("{}.{}", key.name, member.name);
        let value = variants(context, key, members)
            .into_iter()
            .find(|variant| variant.value.c_name == member.enumerator)?
            .value;
        let variant = ident(&camel_case(&value.name));
        Some(if member.ty.is_some() {
            quote! {
                if let Some(value) = object.get(#json_key, #builtin::json::Kinds::MAP)? {
                    this.#name = #ty::#variant(value);
                }
            }
        } else {
            quote! {
                if object.has_map(#json_key) {
                    this.#name = #ty::#variant;
                }
            }
        })
    });
    let one_of = members
        .iter()
        .map(|member| format!("{}.{}", key.name, member.name));
    let reader = quote! {
        object.at_most_one_of(&[#(#one_of),*])?;
        #(#readers)*
    };
    let writer = if let ([(pattern, entry)], Some(_)) = (arms.as_slice(), &rest) {
        quote!(if let #pattern = &self.#name { #entry })
    } else {
        let arms = arms
            .iter()
            .map(|(pattern, entry)| quote!(#pattern => { #entry }));
        quote!(match &self.#name { #(#arms)* #rest })
    };
    Ok((writer, reader))
}
