//! Which Rust type stands for which IDL type, and what its values start as.

use proc_macro2::{Literal, TokenStream};
use quote::quote;

use super::{Context, EmitError, path};
use crate::model::{Enumerator, Field, Type, TypeId, TypeKind};

/// What a C type is in safe Rust.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Bool,
    /// An integer, with its range.
    Integer(&'static str, i128, i128),
    /// A type of the builtin crate.
    Builtin(&'static str),
    /// A type that the options map.
    Import,
}

/// The builtin types by C name: shape, and C mirror.
const BUILTINS: &[(&str, Shape, &str)] = &[
    ("bool", Shape::Bool, "bool"),
    (
        "int",
        Shape::Integer("i32", i32::MIN as i128, i32::MAX as i128),
        "::core::ffi::c_int",
    ),
    (
        "size_t",
        Shape::Integer("usize", 0, u64::MAX as i128),
        "usize",
    ),
    ("uint8_t", Shape::Integer("u8", 0, u8::MAX as i128), "u8"),
    (
        "uint16_t",
        Shape::Integer("u16", 0, u16::MAX as i128),
        "u16",
    ),
    (
        "uint32_t",
        Shape::Integer("u32", 0, u32::MAX as i128),
        "u32",
    ),
    (
        "uint64_t",
        Shape::Integer("u64", 0, u64::MAX as i128),
        "u64",
    ),
    (
        "char *",
        Shape::Builtin("CText"),
        "*mut ::core::ffi::c_char",
    ),
    (
        "libxl_domid",
        Shape::Integer("u32", 0, u32::MAX as i128),
        "u32",
    ),
    (
        "libxl_devid",
        Shape::Integer("i32", i32::MIN as i128, i32::MAX as i128),
        "::core::ffi::c_int",
    ),
    ("libxl_defbool", Shape::Builtin("Defbool"), ""),
    ("libxl_uuid", Shape::Builtin("Uuid"), ""),
    ("libxl_mac", Shape::Builtin("Mac"), ""),
    ("libxl_bitmap", Shape::Builtin("Bitmap"), ""),
    (
        "libxl_cpuid_policy_list",
        Shape::Builtin("CpuidPolicyList"),
        "",
    ),
    ("libxl_string_list", Shape::Builtin("StringList"), ""),
    ("libxl_key_value_list", Shape::Builtin("KeyValueList"), ""),
    ("libxl_hwcap", Shape::Builtin("Hwcap"), ""),
    ("libxl_ms_vm_genid", Shape::Builtin("MsVmGenid"), ""),
];

/// Types that only have a C mirror; where they occur they must be private.
const OPAQUE: &[(&str, &str)] = &[
    ("void *", "*mut ::core::ffi::c_void"),
    ("libxl_ev_link", "libxl_ev_link"),
];

/// What a value starts as.
#[derive(Clone, Debug)]
pub(super) enum Start {
    /// `Default::default()`
    Default,
    /// Something else.
    Value(TokenStream),
}

impl Context<'_> {
    fn builtin_entry(ty: &Type) -> Option<(Shape, &'static str)> {
        let c_name = ty.c_name.as_deref()?;
        BUILTINS
            .iter()
            .find(|(name, ..)| *name == c_name)
            .map(|&(name, shape, ffi)| (shape, if ffi.is_empty() { name } else { ffi }))
    }

    pub(super) fn shape(ty: &Type) -> Shape {
        Self::builtin_entry(ty).map_or(Shape::Import, |(shape, _)| shape)
    }

    /// The field has no place in a safe type: libxl neither copies nor prints it.
    pub(super) fn is_skipped(&self, field: &Field) -> bool {
        field.is_const || self.model[field.ty].private
    }

    /// The safe type of a type on its own.
    pub(super) fn safe_type(&self, id: TypeId) -> Result<TokenStream, EmitError> {
        let ty = &self.model[id];
        match &ty.kind {
            TypeKind::Builtin { .. } => self.safe_builtin(ty),
            TypeKind::Array { element, .. } => {
                let element = self.safe_type(*element)?;
                Ok(quote!(Vec<#element>))
            }
            _ => {
                let name = self.names.safe(id);
                Ok(quote!(#name))
            }
        }
    }

    fn safe_builtin(&self, ty: &Type) -> Result<TokenStream, EmitError> {
        let builtin = &self.builtin;
        let name = match Self::shape(ty) {
            Shape::Bool => "bool",
            Shape::Integer(name, ..) => name,
            Shape::Builtin(name) => {
                let name = super::names::ident(name);
                return Ok(quote!(#builtin::#name));
            }
            Shape::Import => {
                let c_name = ty.display_name();
                let import = self
                    .options
                    .imports
                    .get(c_name)
                    .ok_or_else(|| EmitError::UnknownImport(c_name.to_owned()))?;
                let path = path(&import.safe)?;
                return Ok(quote!(#path));
            }
        };
        let name = super::names::ident(name);
        Ok(quote!(#name))
    }

    /// The safe type of a field. An enumeration that C starts outside of its values is optional.
    pub(super) fn field_type(&self, field: &Field) -> Result<TokenStream, EmitError> {
        let ty = self.safe_type(field.ty)?;
        if self.is_optional(field.ty)? {
            Ok(quote!(Option<#ty>))
        } else {
            Ok(ty)
        }
    }

    /// The type is an enumeration of which no value is the one that C starts with.
    pub(super) fn is_optional(&self, id: TypeId) -> Result<bool, EmitError> {
        match &self.model[id].kind {
            TypeKind::Enumeration { values, .. } => {
                Ok(self.first_value(&self.model[id], values)?.is_none())
            }
            _ => Ok(false),
        }
    }

    /// The value with which C starts an enumeration.
    pub(super) fn first_value<'v>(
        &self,
        ty: &Type,
        values: &'v [Enumerator],
    ) -> Result<Option<&'v Enumerator>, EmitError> {
        let start = match &ty.init_val {
            Some(expression) => self.constant(expression, ty.display_name())?,
            None => 0,
        };
        Ok(values.iter().find(|value| i128::from(value.value) == start))
    }

    /// What a field starts as.
    pub(super) fn start(&self, place: &str, field: &Field) -> Result<Start, EmitError> {
        let ty = &self.model[field.ty];
        let place = format!("{place}.{}", field.name);
        match &ty.kind {
            TypeKind::Enumeration { values, .. } => {
                let Some(expression) = &field.init_val else {
                    return Ok(Start::Default);
                };
                let number = self.constant(expression, &place)?;
                let Some(value) = values
                    .iter()
                    .find(|value| i128::from(value.value) == number)
                else {
                    let value = expression.clone();
                    return Err(EmitError::WrongInitialValue { value, place });
                };
                let name = self.names.safe(field.ty);
                let variant = super::names::ident(&super::names::camel_case(&value.name));
                let value = quote!(#name::#variant);
                let optional = self.is_optional(field.ty)?;
                Ok(Start::Value(if optional {
                    quote!(Some(#value))
                } else {
                    value
                }))
            }
            TypeKind::Builtin { .. } => match self.model.init_val(field) {
                Some(expression) => self.number_start(expression, ty, place),
                None => Ok(Start::Default),
            },
            _ => match &field.init_val {
                Some(value) => Err(EmitError::WrongInitialValue {
                    value: value.clone(),
                    place,
                }),
                None => Ok(Start::Default),
            },
        }
    }

    fn number_start(&self, expression: &str, ty: &Type, place: String) -> Result<Start, EmitError> {
        let number = self.constant(expression, &place)?;
        if number == 0 {
            return Ok(Start::Default);
        }
        match Self::shape(ty) {
            Shape::Bool => Ok(Start::Value(quote!(true))),
            Shape::Integer(name, min, max) => {
                // C converts between signed and unsigned by wrapping.
                let range = max - min + 1;
                let wrapped = (number - min).rem_euclid(range) + min;
                let name = super::names::ident(name);
                if wrapped == max {
                    return Ok(Start::Value(quote!(#name::MAX)));
                }
                let digits = Literal::u128_unsuffixed(wrapped.unsigned_abs());
                Ok(Start::Value(if wrapped < 0 {
                    quote!(-#digits)
                } else {
                    quote!(#digits)
                }))
            }
            Shape::Builtin(_) | Shape::Import => Err(EmitError::WrongInitialValue {
                value: expression.to_owned(),
                place,
            }),
        }
    }

    /// The C mirror of a type, as seen from the module `ffi`.
    pub(super) fn ffi_type(&self, id: TypeId) -> Result<TokenStream, EmitError> {
        let ty = &self.model[id];
        match &ty.kind {
            TypeKind::Builtin { .. } => self.ffi_builtin(ty),
            TypeKind::Array { element, .. } => {
                let element = self.ffi_type(*element)?;
                Ok(quote!(*mut #element))
            }
            _ => {
                let name = self.names.ffi(id);
                Ok(quote!(#name))
            }
        }
    }

    fn ffi_builtin(&self, ty: &Type) -> Result<TokenStream, EmitError> {
        let c_name = ty.display_name();
        if let Some(import) = self.options.imports.get(c_name) {
            let path = path(&import.ffi)?;
            return Ok(quote!(#path));
        }
        let opaque = || {
            OPAQUE
                .iter()
                .find(|(name, _)| *name == c_name)
                .map(|(_, ffi)| *ffi)
        };
        let ffi = Self::builtin_entry(ty)
            .map(|(_, ffi)| ffi)
            .or_else(opaque)
            .ok_or_else(|| EmitError::UnknownImport(c_name.to_owned()))?;
        if ffi.starts_with("libxl_") {
            let name = super::names::ident(ffi);
            let builtin = &self.builtin;
            return Ok(quote!(#builtin::ffi::#name));
        }
        let ffi: syn::Type = syn::parse_str(ffi)?;
        Ok(quote!(#ffi))
    }
}
