//! Keyed unions. The variant is the key, so the two cannot disagree.

use proc_macro2::TokenStream;
use quote::quote;

use super::documentation::docs;
use super::names::{camel_case, ident};
use super::{Context, EmitError};
use crate::model::{Enumerator, Field, Member, TypeId, TypeKind};

/// One variant: a value of the key with what the union has for it.
pub(super) struct Variant<'m> {
    pub(super) value: &'m Enumerator,
    pub(super) member: Option<&'m Member>,
}

/// A variant for each value of the key.
pub(super) fn variants<'m>(
    context: &Context<'m>,
    key: &Field,
    members: &'m [Member],
) -> Vec<Variant<'m>> {
    match &context.model[key.ty].kind {
        TypeKind::Enumeration { values, .. } => values
            .iter()
            .map(|value| {
                let member = members
                    .iter()
                    .find(|member| member.enumerator == value.c_name);
                Variant { value, member }
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// The value of the key with which C starts, if it is one of the enumeration.
pub(super) fn first_value<'m>(
    context: &Context<'m>,
    place: &str,
    key: &Field,
) -> Result<Option<&'m Enumerator>, EmitError> {
    let ty = &context.model[key.ty];
    let TypeKind::Enumeration { values, .. } = &ty.kind else {
        return Ok(None);
    };
    match &key.init_val {
        None => context.first_value(ty, values),
        Some(expression) => {
            let number = context.constant(expression, &format!("{place}.{}", key.name))?;
            Ok(values
                .iter()
                .find(|value| i128::from(value.value) == number))
        }
    }
}

pub(super) fn emit(
    context: &Context<'_>,
    id: TypeId,
    key: &Field,
    members: &[Member],
) -> Result<TokenStream, EmitError> {
    let ty = &context.model[id];
    let name = context.names.safe(id);
    let key_type = context.names.safe(key.ty);
    let c_name = context.names.ffi(id).to_string();
    let fallback = format!("The union `{c_name}` with its key `{}`.", key.name);
    let type_docs = docs(ty.docs.as_ref(), &fallback);
    let first = first_value(context, &c_name, key)?;
    let mut declared = Vec::new();
    let mut keys = Vec::new();
    let mut from_keys = Vec::new();
    for Variant { value, member } in variants(context, key, members) {
        let variant = ident(&camel_case(&value.name));
        let comment = member
            .and_then(|member| member.docs.as_ref())
            .or(value.docs.as_ref());
        let docs = docs(comment, &format!("`{}`", value.c_name));
        let is_first = first.is_some_and(|first| first.c_name == value.c_name);
        if let Some(payload) = member.and_then(|member| member.ty) {
            let payload = context.safe_type(payload)?;
            declared.push(quote!(#docs #variant(#payload)));
            keys.push(quote!(Self::#variant(_) => Some(#key_type::#variant)));
            from_keys.push(quote!(#key_type::#variant => Self::#variant(<#payload>::default())));
        } else {
            let default = is_first.then(|| quote!(#[default]));
            declared.push(quote!(#docs #default #variant));
            keys.push(quote!(Self::#variant => Some(#key_type::#variant)));
            from_keys.push(quote!(#key_type::#variant => Self::#variant));
        }
    }
    let payload_first = first.and_then(|first| {
        let member = members
            .iter()
            .find(|member| member.enumerator == first.c_name)?;
        Some((first, member.ty?))
    });
    let derived = payload_first.is_none().then(|| quote!(, Default));
    let default = match payload_first {
        Some((first, payload)) => {
            let variant = ident(&camel_case(&first.name));
            let payload = context.safe_type(payload)?;
            quote! {
                impl Default for #name {
                    fn default() -> Self {
                        Self::#variant(<#payload>::default())
                    }
                }
            }
        }
        None => TokenStream::new(),
    };
    if first.is_none() {
        declared.push(quote! {
            /// Not set yet: the key has the value zero, which means nothing.
            #[default]
            Unset
        });
        keys.push(quote!(Self::Unset => None));
    }
    Ok(quote! {
        #type_docs
        #[derive(Clone, Debug, PartialEq #derived)]
        pub enum #name {
            #(#declared,)*
        }

        #default

        impl #name {
            /// The value of the key, if it is set.
            pub const fn key(&self) -> Option<#key_type> {
                match self {
                    #(#keys,)*
                }
            }

            /// The member for a value of the key, as initialised.
            pub fn from_key(key: #key_type) -> Self {
                match key {
                    #(#from_keys,)*
                }
            }
        }
    })
}
