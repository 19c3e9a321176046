//! The C mirrors: the same layout as in C, field by field in C's order.

use proc_macro2::{Literal, TokenStream};
use quote::quote;

use super::documentation::docs;
use super::names::ident;
use super::{Context, EmitError};
use crate::model::{Enumerator, Field, TypeId, TypeKind};

pub(super) fn emit(context: &Context<'_>) -> Result<TokenStream, EmitError> {
    let mut items = TokenStream::new();
    for (id, _) in context.names.in_order() {
        items.extend(match &context.model[id].kind {
            TypeKind::Enumeration { values, .. } => enumeration(context, id, values),
            TypeKind::Struct { fields } => structure(context, id, fields)?,
            TypeKind::KeyedUnion { members, .. } => {
                let members = members.iter().filter_map(|member| {
                    member
                        .ty
                        .map(|ty| (member.name.as_str(), ty, member.docs.as_ref()))
                });
                union(context, id, members)?
            }
            TypeKind::Union { fields } => {
                let members = fields
                    .iter()
                    .map(|field| (field.name.as_str(), field.ty, field.docs.as_ref()));
                union(context, id, members)?
            }
            TypeKind::Builtin { .. } | TypeKind::Array { .. } => TokenStream::new(),
        });
    }
    Ok(quote! {
        /// Mirrors of the C types, with the same layout and under the same names.
        #[allow(non_camel_case_types)]
        pub mod ffi {
            #items
        }
    })
}

/// A C enumeration can hold any number of its width, so its mirror is an integer.
fn enumeration(context: &Context<'_>, id: TypeId, values: &[Enumerator]) -> TokenStream {
    let ty = &context.model[id];
    let name = context.names.ffi(id);
    let type_docs = docs(ty.docs.as_ref(), &format!("`{name}`"));
    // The compilers make it signed if a value is negative, else unsigned.
    let signed = values.iter().any(|value| value.value < 0);
    let integer = if signed {
        ident("c_int")
    } else {
        ident("c_uint")
    };
    let constants = values.iter().map(|value| {
        let docs = docs(value.docs.as_ref(), &format!("`{}`", value.c_name));
        let constant = ident(&value.c_name);
        let number = Literal::i64_unsuffixed(value.value);
        quote!(#docs pub const #constant: #name = #number;)
    });
    quote! {
        #type_docs
        pub type #name = ::core::ffi::#integer;
        #(#constants)*
    }
}

fn structure(
    context: &Context<'_>,
    id: TypeId,
    fields: &[Field],
) -> Result<TokenStream, EmitError> {
    let ty = &context.model[id];
    let name = context.names.ffi(id);
    let type_docs = docs(ty.docs.as_ref(), &format!("`{name}`"));
    let mut members = Vec::new();
    for field in fields {
        match &context.model[field.ty].kind {
            TypeKind::KeyedUnion { key, .. } => {
                members.push(member(context, key, "The key of the union that follows.")?);
            }
            TypeKind::Array { length, .. } => {
                let fallback = format!("The number of elements of `{}`.", field.name);
                members.push(member(context, length, &fallback)?);
            }
            _ => {}
        }
        members.push(member(context, field, &format!("`{name}.{}`", field.name))?);
    }
    Ok(quote! {
        #type_docs
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub struct #name {
            #(#members,)*
        }
    })
}

fn member(context: &Context<'_>, field: &Field, fallback: &str) -> Result<TokenStream, EmitError> {
    let name = ident(&field.name);
    let ty = context.ffi_type(field.ty)?;
    let docs = docs(field.docs.as_ref(), fallback);
    Ok(quote!(#docs pub #name: #ty))
}

fn union<'m>(
    context: &Context<'_>,
    id: TypeId,
    members: impl Iterator<Item = (&'m str, TypeId, Option<&'m String>)>,
) -> Result<TokenStream, EmitError> {
    let ty = &context.model[id];
    let name = context.names.ffi(id);
    let type_docs = docs(ty.docs.as_ref(), &format!("`{name}`"));
    let members = members
        .map(|(member, ty, comment)| {
            let docs = docs(comment, &format!("`{name}.{member}`"));
            let member = ident(member);
            let ty = context.ffi_type(ty)?;
            Ok(quote!(#docs pub #member: #ty))
        })
        .collect::<Result<Vec<_>, EmitError>>()?;
    // Rust has no union without members; C's has the size zero.
    let members = if members.is_empty() {
        vec![quote!(#[doc = " There is no member."] pub none: ())]
    } else {
        members
    };
    Ok(quote! {
        #type_docs
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub union #name {
            #(#members,)*
        }
    })
}
