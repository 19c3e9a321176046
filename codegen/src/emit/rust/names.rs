//! The Rust names of types, fields and values.

use std::collections::{HashMap, HashSet};

use proc_macro2::{Ident, Span};

use super::EmitError;
use crate::model::{Model, TypeId};

/// The names of all types that are emitted, each of them once.
pub(super) struct Names {
    order: Vec<TypeId>,
    safe: HashMap<TypeId, String>,
    ffi: HashMap<TypeId, String>,
}

impl Names {
    pub(super) fn new(model: &Model) -> Result<Self, EmitError> {
        let mut this = Self {
            order: Vec::new(),
            safe: HashMap::new(),
            ffi: HashMap::new(),
        };
        for &id in &model.definitions {
            let ty = &model[id];
            if let (false, Some(raw), Some(c_name)) = (ty.is_builtin(), &ty.raw_name, &ty.c_name) {
                this.add(model, id, camel_case(raw), c_name.clone());
            }
        }
        // The generated code uses these names of the prelude.
        let prelude = ["Default", "Option", "Result", "String", "TryFrom", "Vec"];
        let mut seen: HashSet<String> = prelude.into_iter().map(str::to_owned).collect();
        for name in this.order.iter().map(|id| &this.safe[id]) {
            if !seen.insert(name.clone()) {
                return Err(EmitError::NameClash(name.clone()));
            }
        }
        Ok(this)
    }

    /// Adds a type and the anonymous types in it, which are named after it and their field.
    fn add(&mut self, model: &Model, id: TypeId, safe: String, ffi: String) {
        if self.safe.contains_key(&id) {
            return;
        }
        self.order.push(id);
        for (field, inner) in model[id].members() {
            let ty = &model[inner];
            if ty.is_aggregate() && ty.c_name.is_none() {
                let safe = format!("{safe}{}", camel_case(field));
                self.add(model, inner, safe, format!("{ffi}_{field}"));
            }
        }
        self.safe.insert(id, safe);
        self.ffi.insert(id, ffi);
    }

    /// The types with their names, each before those that are nested in it.
    pub(super) fn in_order(&self) -> impl Iterator<Item = (TypeId, &str)> {
        self.order.iter().map(|&id| (id, self.safe[&id].as_str()))
    }

    pub(super) fn safe(&self, id: TypeId) -> Ident {
        ident(self.safe.get(&id).map_or("Unnamed", String::as_str))
    }

    pub(super) fn ffi(&self, id: TypeId) -> Ident {
        ident(self.ffi.get(&id).map_or("Unnamed", String::as_str))
    }
}

/// `device_disk` and `DEVICE_DISK` to `DeviceDisk`.
pub(super) fn camel_case(name: &str) -> String {
    let camel: String = name
        .split('_')
        .filter_map(|word| {
            let mut characters = word.chars();
            characters.next().map(|first| {
                first
                    .to_uppercase()
                    .chain(characters.flat_map(char::to_lowercase))
                    .collect::<String>()
            })
        })
        .collect();
    if camel.starts_with(|c: char| c.is_ascii_digit()) || camel.is_empty() {
        format!("_{camel}")
    } else {
        camel
    }
}

/// An identifier; keywords become raw ones.
pub(in crate::emit) fn ident(name: &str) -> Ident {
    // Four keywords cannot be raw.
    if matches!(name, "self" | "Self" | "super" | "crate" | "_") {
        return Ident::new(&format!("{name}_"), Span::call_site());
    }
    if syn::parse_str::<Ident>(name).is_ok() {
        Ident::new(name, Span::call_site())
    } else {
        Ident::new_raw(name, Span::call_site())
    }
}
