//! Structs.

use proc_macro2::TokenStream;
use quote::quote;

use super::documentation::docs;
use super::json;
use super::names::ident;
use super::types::Start;
use super::{Context, EmitError};
use crate::model::{Field, TypeId};

pub(super) fn emit(
    context: &Context<'_>,
    id: TypeId,
    fields: &[Field],
) -> Result<TokenStream, EmitError> {
    let ty = &context.model[id];
    let name = context.names.safe(id);
    let c_name = ty
        .c_name
        .clone()
        .unwrap_or_else(|| context.names.ffi(id).to_string());
    let type_docs = docs(ty.docs.as_ref(), &format!("libxl's `{c_name}`."));
    let mut declared = Vec::new();
    let mut starts = Vec::new();
    let mut all_default = true;
    for field in fields.iter().filter(|field| !context.is_skipped(field)) {
        let field_name = ident(&field.name);
        let field_type = context.field_type(field)?;
        let field_docs = docs(field.docs.as_ref(), &format!("`{c_name}.{}`", field.name));
        declared.push(quote!(#field_docs pub #field_name: #field_type));
        starts.push(match context.start(&c_name, field)? {
            Start::Default => quote!(#field_name: <#field_type>::default()),
            Start::Value(value) => {
                all_default = false;
                quote!(#field_name: #value)
            }
        });
    }
    let derived = all_default.then(|| quote!(, Default));
    let default = (!all_default).then(|| {
        quote! {
            impl Default for #name {
                fn default() -> Self {
                    Self { #(#starts),* }
                }
            }
        }
    });
    let json = json::emit(context, id, fields)?;
    Ok(quote! {
        #type_docs
        #[derive(Clone, Debug, PartialEq #derived)]
        pub struct #name {
            #(#declared,)*
        }

        #default
        #json
    })
}
