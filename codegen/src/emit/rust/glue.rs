//! What connects the safe types with their C mirrors, and the functions that C calls.

use proc_macro2::{Literal, TokenStream};
use quote::{format_ident, quote};

use super::keyed_union::{first_value, variants};
use super::names::{camel_case, ident};
use super::{Context, EmitError};
use crate::model::{Enumerator, Field, Member, PassBy, TypeId, TypeKind};

/// Types of which only libxl knows what they hold.
const OPAQUE: &[&str] = &["libxl_cpuid_policy_list"];

pub(super) fn emit(context: &Context<'_>) -> Result<TokenStream, EmitError> {
    let mut values = TokenStream::new();
    let mut functions = TokenStream::new();
    for (id, _) in context.names.in_order() {
        let ty = &context.model[id];
        let usual = match ty.kind {
            TypeKind::Enumeration { .. } => PassBy::Value,
            _ => PassBy::Reference,
        };
        if ty.c_name.is_some() && ty.pass_by != usual {
            return Err(EmitError::PassBy(ty.display_name().to_owned()));
        }
        match &ty.kind {
            TypeKind::Enumeration {
                values: enumerators,
                ..
            } => {
                values.extend(enumeration_value(context, id, enumerators));
                functions.extend(enumeration_functions(context, id, enumerators));
            }
            TypeKind::Struct { fields } => {
                values.extend(struct_value(context, id, fields)?);
                if ty.c_name.is_some() {
                    functions.extend(struct_functions(context, id, fields));
                }
            }
            TypeKind::Union { .. } => {
                return Err(EmitError::PlainUnion(ty.display_name().to_owned()));
            }
            TypeKind::KeyedUnion { .. } | TypeKind::Builtin { .. } | TypeKind::Array { .. } => {}
        }
    }
    // Generated code keeps no comments, so the reasons for its safety stand with the functions of the
    // builtin crate that it calls.
    Ok(quote! {
        #[allow(clippy::undocumented_unsafe_blocks, clippy::pedantic, clippy::single_match)]
        mod c_values {
            use super::*;
            #values
        }

        /// The functions that the C header declares. Each is as safe as its C contract: pointers are
        /// null or valid, values were initialised, strings end with NUL.
        #[allow(
            clippy::undocumented_unsafe_blocks,
            clippy::missing_safety_doc,
            clippy::pedantic,
            clippy::single_match,
            non_upper_case_globals
        )]
        pub mod c_api {
            use super::*;
            #functions
        }
    })
}

fn enumeration_value(context: &Context<'_>, id: TypeId, values: &[Enumerator]) -> TokenStream {
    let builtin = &context.builtin;
    let name = context.names.safe(id);
    let c_type = context.names.ffi(id);
    let c_name = context.model[id].display_name();
    let variants: Vec<_> = values
        .iter()
        .map(|value| ident(&camel_case(&value.name)))
        .collect();
    let constants: Vec<_> = values.iter().map(|value| ident(&value.c_name)).collect();
    quote! {
        unsafe impl #builtin::CValue for #name {
            type C = ffi::#c_type;

            unsafe fn read(c: &Self::C) -> Result<Self, #builtin::CValueError> {
                match *c {
                    #(ffi::#constants => Ok(Self::#variants),)*
                    value => Err(#builtin::UnknownValue {
                        enumeration: #c_name,
                        value: i64::from(value),
                    }.into()),
                }
            }

            fn write(&self, c: &mut Self::C) -> Result<(), #builtin::CValueError> {
                *c = match self {
                    #(Self::#variants => ffi::#constants,)*
                };
                Ok(())
            }

            unsafe fn copy(from: &Self::C, to: &mut Self::C) {
                *to = *from;
            }

            unsafe fn dispose(_: &mut Self::C) {}
        }
    }
}

/// What becomes of one field in each of the four functions.
struct Parts {
    read: TokenStream,
    write: TokenStream,
    copy: TokenStream,
    dispose: TokenStream,
}

fn struct_value(
    context: &Context<'_>,
    id: TypeId,
    fields: &[Field],
) -> Result<TokenStream, EmitError> {
    let builtin = &context.builtin;
    let name = context.names.safe(id);
    let c_type = context.names.ffi(id);
    let mut parts = Vec::new();
    for field in fields.iter().filter(|field| !context.is_skipped(field)) {
        parts.push(field_parts(context, id, field)?);
    }
    let reads = parts.iter().map(|part| &part.read);
    let writes = parts.iter().map(|part| &part.write);
    let copies = parts.iter().map(|part| &part.copy);
    let disposals = parts.iter().map(|part| &part.dispose);
    Ok(quote! {
        #[allow(unused_variables)]
        unsafe impl #builtin::CValue for #name {
            type C = ffi::#c_type;

            unsafe fn read(c: &Self::C) -> Result<Self, #builtin::CValueError> {
                Ok(Self { #(#reads,)* })
            }

            fn write(&self, c: &mut Self::C) -> Result<(), #builtin::CValueError> {
                #(#writes)*
                Ok(())
            }

            unsafe fn copy(from: &Self::C, to: &mut Self::C) {
                #(#copies)*
            }

            unsafe fn dispose(c: &mut Self::C) {
                #(#disposals)*
            }
        }
    })
}

fn field_parts(context: &Context<'_>, id: TypeId, field: &Field) -> Result<Parts, EmitError> {
    let builtin = &context.builtin;
    let name = ident(&field.name);
    let ty = &context.model[field.ty];
    if let TypeKind::KeyedUnion { key, members } = &ty.kind {
        return keyed_union_parts(context, id, field, key, members);
    }
    if let TypeKind::Array { element, length } = &ty.kind {
        let element = context.safe_type(*element)?;
        let length = ident(&length.name);
        let array = quote!(#builtin::c_value);
        return Ok(Parts {
            read: quote! {
                #name: unsafe { #array::read_array::<#element>(c.#name, c.#length)? }
            },
            write: quote! {
                #array::write_array::<#element>(&self.#name, &mut c.#name, &mut c.#length)?;
            },
            copy: quote! {
                unsafe {
                    #array::copy_array::<#element>(
                        from.#name,
                        from.#length,
                        &mut to.#name,
                        &mut to.#length,
                    );
                }
            },
            dispose: quote! {
                unsafe { #array::dispose_array::<#element>(&mut c.#name, &mut c.#length); }
            },
        });
    }
    if OPAQUE.contains(&ty.display_name()) {
        return Err(EmitError::NoGlue(ty.display_name().to_owned()));
    }
    let safe = context.safe_type(field.ty)?;
    let value = quote!(<#safe as #builtin::CValue>);
    let copy = quote!(unsafe { #value::copy(&from.#name, &mut to.#name); });
    let dispose = quote!(unsafe { #value::dispose(&mut c.#name); });
    if context.is_optional(field.ty)? {
        // Outside of its values an enumeration means that nothing was chosen.
        let start = match &ty.init_val {
            Some(expression) => context.constant(expression, ty.display_name())?,
            None => 0,
        };
        let start = Literal::i128_unsuffixed(start);
        return Ok(Parts {
            read: quote! {
                #name: if c.#name == #start {
                    None
                } else {
                    Some(unsafe { #value::read(&c.#name)? })
                }
            },
            write: quote! {
                match &self.#name {
                    Some(value) => #value::write(value, &mut c.#name)?,
                    None => c.#name = #start,
                }
            },
            copy,
            dispose,
        });
    }
    Ok(Parts {
        read: quote!(#name: unsafe { #value::read(&c.#name)? }),
        write: quote!(#value::write(&self.#name, &mut c.#name)?;),
        copy,
        dispose,
    })
}

fn keyed_union_parts(
    context: &Context<'_>,
    id: TypeId,
    field: &Field,
    key: &Field,
    members: &[Member],
) -> Result<Parts, EmitError> {
    let builtin = &context.builtin;
    let name = ident(&field.name);
    let key_name = ident(&key.name);
    let safe = context.names.safe(field.ty);
    let key_c_name = context.model[key.ty].display_name();
    let (mut reads, mut writes, mut copies, mut disposals) = (vec![], vec![], vec![], vec![]);
    for variant in variants(context, key, members) {
        let constant = ident(&variant.value.c_name);
        let arm = ident(&camel_case(&variant.value.name));
        let member = variant
            .member
            .and_then(|member| Some((ident(&member.name), member.ty?)));
        let Some((member, payload)) = member else {
            reads.push(quote!(ffi::#constant => #safe::#arm));
            writes.push(quote!(#safe::#arm => c.#key_name = ffi::#constant));
            continue;
        };
        let payload = context.safe_type(payload)?;
        let value = quote!(<#payload as #builtin::CValue>);
        reads.push(quote! {
            ffi::#constant => #safe::#arm(unsafe { #value::read(&c.#name.#member)? })
        });
        writes.push(quote! {
            #safe::#arm(value) => {
                c.#key_name = ffi::#constant;
                #value::write(value, unsafe { &mut c.#name.#member })?;
            }
        });
        copies.push(quote! {
            ffi::#constant => unsafe { #value::copy(&from.#name.#member, &mut to.#name.#member) }
        });
        disposals.push(quote! {
            ffi::#constant => unsafe { #value::dispose(&mut c.#name.#member) }
        });
    }
    let place = context.names.ffi(id).to_string();
    if first_value(context, &place, key)?.is_none() {
        reads.push(quote!(0 => #safe::Unset));
        writes.push(quote!(#safe::Unset => c.#key_name = 0));
    }
    Ok(Parts {
        read: quote! {
            #name: match c.#key_name {
                #(#reads,)*
                value => return Err(#builtin::UnknownValue {
                    enumeration: #key_c_name,
                    value: i64::from(value),
                }.into()),
            }
        },
        write: quote! {
            match &self.#name {
                #(#writes,)*
            }
        },
        copy: quote! {
            to.#key_name = from.#key_name;
            match from.#key_name {
                #(#copies,)*
                _ => {}
            }
        },
        dispose: quote! {
            match c.#key_name {
                #(#disposals,)*
                _ => {}
            }
        },
    })
}

fn enumeration_functions(context: &Context<'_>, id: TypeId, values: &[Enumerator]) -> TokenStream {
    let builtin = &context.builtin;
    let ty = &context.model[id];
    let name = context.names.safe(id);
    let c_name = ty.display_name();
    let c_type = context.names.ffi(id);
    let table = format_ident!("{c_name}_string_table");
    let to_string = format_ident!("{c_name}_to_string");
    let from_string = format_ident!("{c_name}_from_string");
    let to_json = format_ident!("{c_name}_to_json");
    let from_json = format_ident!("{c_name}_from_json");
    let length = Literal::usize_unsuffixed(values.len() + 1);
    let entries = values.iter().map(|value| {
        let text = std::ffi::CString::new(value.name.to_lowercase()).unwrap_or_default();
        let text = Literal::c_string(&text);
        let number = Literal::i64_unsuffixed(value.value);
        quote!(#builtin::ffi::libxl_enum_string_table { s: #text.as_ptr(), v: #number })
    });
    let table_docs = format!(" The names of `{c_name}`.");
    let to_string_docs = format!(" The name of a `{c_name}`, or null.");
    let from_string_docs = format!(" The `{c_name}` with a name.");
    let to_json_docs = format!(" A `{c_name}` as JSON, which the caller frees; or null.");
    let from_json_docs = format!(" A `{c_name}` from JSON.");
    quote! {
        #[doc = #table_docs]
        #[unsafe(no_mangle)]
        pub static #table: [#builtin::ffi::libxl_enum_string_table; #length] = [
            #(#entries,)*
            #builtin::ffi::libxl_enum_string_table { s: ::core::ptr::null(), v: -1 },
        ];

        #[doc = #to_string_docs]
        #[unsafe(no_mangle)]
        pub extern "C" fn #to_string(p: ffi::#c_type) -> *const ::core::ffi::c_char {
            #builtin::c_function::to_string(&#table, p as ::core::ffi::c_int)
        }

        #[doc = #from_string_docs]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn #from_string(
            s: *const ::core::ffi::c_char,
            e: *mut ffi::#c_type,
        ) -> ::core::ffi::c_int {
            unsafe { #builtin::c_function::from_string(&#table, s, e.cast()) }
        }

        #[doc = #to_json_docs]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn #to_json(
            ctx: *mut ::core::ffi::c_void,
            p: ffi::#c_type,
        ) -> *mut ::core::ffi::c_char {
            unsafe {
                #builtin::c_function::with_ctx(ctx, || {
                    #builtin::c_function::to_json::<#name>(&p)
                })
            }
        }

        #[doc = #from_json_docs]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn #from_json(
            ctx: *mut ::core::ffi::c_void,
            p: *mut ffi::#c_type,
            s: *const ::core::ffi::c_char,
        ) -> ::core::ffi::c_int {
            unsafe {
                #builtin::c_function::with_ctx(ctx, || {
                    #builtin::c_function::from_json::<#name>(p, || 0, s)
                })
            }
        }
    }
}

fn struct_functions(context: &Context<'_>, id: TypeId, fields: &[Field]) -> TokenStream {
    let builtin = &context.builtin;
    let ty = &context.model[id];
    let name = context.names.safe(id);
    let c_name = ty.display_name();
    let c_type = context.names.ffi(id);
    let mut functions = TokenStream::new();
    if let (Some(dispose), true) = (&ty.dispose.name, ty.dispose.autogenerate) {
        let dispose = ident(dispose);
        let docs = format!(" Frees what a `{c_name}` holds; can be repeated.");
        functions.extend(quote! {
            #[doc = #docs]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn #dispose(p: *mut ffi::#c_type) {
                unsafe { #builtin::c_function::dispose::<#name>(p) }
            }
        });
    }
    if let (Some(copy), true) = (&ty.copy.name, ty.copy.autogenerate) {
        let copy = ident(copy);
        let docs = format!(" Copies a `{c_name}` deeply; `dst` holds nothing before.");
        functions.extend(quote! {
            #[doc = #docs]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn #copy(
                ctx: *mut ::core::ffi::c_void,
                dst: *mut ffi::#c_type,
                src: *const ffi::#c_type,
            ) {
                unsafe {
                    #builtin::c_function::with_ctx(ctx, || {
                        #builtin::c_function::copy::<#name>(dst, src);
                    })
                }
            }
        });
    }
    if let (Some(init), true) = (&ty.init.name, ty.init.autogenerate) {
        let init_name = ident(init);
        let docs = format!(" Initialises a `{c_name}`.");
        functions.extend(quote! {
            #[doc = #docs]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn #init_name(p: *mut ffi::#c_type) {
                unsafe { #builtin::c_function::init::<#name>(p) }
            }
        });
        for field in fields.iter().filter(|field| !field.is_const) {
            if let TypeKind::KeyedUnion { key, members } = &context.model[field.ty].kind {
                functions.extend(keyed_init(context, id, init, field, key, members));
            }
        }
    }
    if ty.json.gen_fn.is_some() {
        let to_json = format_ident!("{c_name}_to_json");
        let docs = format!(" A `{c_name}` as JSON, which the caller frees; or null.");
        functions.extend(quote! {
            #[doc = #docs]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn #to_json(
                ctx: *mut ::core::ffi::c_void,
                p: *mut ffi::#c_type,
            ) -> *mut ::core::ffi::c_char {
                unsafe {
                    #builtin::c_function::with_ctx(ctx, || {
                        #builtin::c_function::to_json::<#name>(p)
                    })
                }
            }
        });
    }
    if ty.json.parse_fn.is_some() {
        let from_json = format_ident!("{c_name}_from_json");
        let docs = format!(" A `{c_name}` from JSON; after an error it is as initialised.");
        functions.extend(quote! {
            #[doc = #docs]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn #from_json(
                ctx: *mut ::core::ffi::c_void,
                p: *mut ffi::#c_type,
                s: *const ::core::ffi::c_char,
            ) -> ::core::ffi::c_int {
                unsafe {
                    #builtin::c_function::with_ctx(ctx, || {
                        let initial = <#name as #builtin::CValue>::init;
                        #builtin::c_function::from_json::<#name>(p, initial, s)
                    })
                }
            }
        });
    }
    functions
}

/// The function that chooses the member of a union and initialises it.
fn keyed_init(
    context: &Context<'_>,
    id: TypeId,
    init: &str,
    field: &Field,
    key: &Field,
    members: &[Member],
) -> TokenStream {
    let builtin = &context.builtin;
    let c_type = context.names.ffi(id);
    let function = format_ident!("{init}_{}", key.name);
    let name = ident(&field.name);
    let key_name = ident(&key.name);
    let key_type = context.names.ffi(key.ty);
    let docs = format!(
        " Chooses the member of `{}` by its key and initialises it.",
        field.name
    );
    let arms = members.iter().filter_map(|member| {
        let payload = context.safe_type(member.ty?).ok()?;
        let constant = ident(&member.enumerator);
        let member = ident(&member.name);
        Some(quote! {
            ffi::#constant => unsafe {
                #builtin::c_function::init::<#payload>(&raw mut p.#name.#member);
            }
        })
    });
    quote! {
        #[doc = #docs]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn #function(p: *mut ffi::#c_type, #key_name: ffi::#key_type) {
            let Some(p) = (unsafe { p.as_mut() }) else { return };
            p.#key_name = #key_name;
            match #key_name {
                #(#arms,)*
                _ => {}
            }
        }
    }
}
