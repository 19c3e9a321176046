//! Enumerations.

use proc_macro2::{Literal, TokenStream};
use quote::quote;

use super::documentation::docs;
use super::names::{camel_case, ident};
use super::{Context, EmitError};
use crate::model::{Enumerator, TypeId};

pub(super) fn emit(
    context: &Context<'_>,
    id: TypeId,
    values: &[Enumerator],
) -> Result<TokenStream, EmitError> {
    let ty = &context.model[id];
    let builtin = &context.builtin;
    let name = context.names.safe(id);
    let c_name = ty.display_name();
    let type_docs = docs(ty.docs.as_ref(), &format!("libxl's `{c_name}`."));
    let first = context.first_value(ty, values)?.map(|value| value.value);
    let variants: Vec<_> = values
        .iter()
        .map(|value| ident(&camel_case(&value.name)))
        .collect();
    let texts: Vec<_> = values
        .iter()
        .map(|value| value.name.to_lowercase())
        .collect();
    let numbers: Vec<_> = values
        .iter()
        .map(|value| Literal::i64_unsuffixed(value.value))
        .collect();
    let declared = values
        .iter()
        .zip(&variants)
        .zip(&numbers)
        .map(|((value, variant), number)| {
            let docs = docs(value.docs.as_ref(), &format!("`{}`", value.c_name));
            let default = (first == Some(value.value)).then(|| quote!(#[default]));
            quote!(#docs #default #variant = #number)
        });
    let default = first.map(|_| quote!(, Default));
    let expecting = format!("the name of a `{c_name}`");
    Ok(quote! {
        #type_docs
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash #default)]
        #[repr(i32)]
        pub enum #name {
            #(#declared,)*
        }

        impl #name {
            /// All values, in the order of their definition.
            pub const ALL: &[Self] = &[#(Self::#variants),*];

            /// The name, as libxl prints it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    #(Self::#variants => #texts,)*
                }
            }

            /// The value with this name, in upper or lower case.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.as_str().eq_ignore_ascii_case(name))
            }

            /// The number that stands for it in C.
            pub const fn as_raw(self) -> i32 {
                self as i32
            }
        }

        impl ::core::fmt::Display for #name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl ::core::str::FromStr for #name {
            type Err = #builtin::UnknownName;

            fn from_str(name: &str) -> Result<Self, #builtin::UnknownName> {
                Self::from_name(name).ok_or_else(|| #builtin::UnknownName {
                    enumeration: #c_name,
                    name: name.to_owned(),
                })
            }
        }

        impl TryFrom<i32> for #name {
            type Error = #builtin::UnknownValue;

            fn try_from(value: i32) -> Result<Self, #builtin::UnknownValue> {
                match value {
                    #(#numbers => Ok(Self::#variants),)*
                    _ => Err(#builtin::UnknownValue {
                        enumeration: #c_name,
                        value: i64::from(value),
                    }),
                }
            }
        }

        impl ::serde::Serialize for #name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> ::serde::Deserialize<'de> for #name {
            fn deserialize<D: ::serde::Deserializer<'de>>(
                deserializer: D,
            ) -> Result<Self, D::Error> {
                let name = <String as ::serde::Deserialize>::deserialize(deserializer)?;
                Self::from_name(&name).ok_or_else(|| {
                    <D::Error as ::serde::de::Error>::invalid_value(
                        ::serde::de::Unexpected::Str(&name),
                        &#expecting,
                    )
                })
            }
        }
    })
}
