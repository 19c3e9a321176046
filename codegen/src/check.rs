//! Checks of a whole model: what each definition on its own cannot know.

use std::collections::{HashMap, HashSet};

use crate::diagnostic::{Diagnostic, Span};
use crate::lower::{Lowered, TypeSpans};
use crate::model::{Field, Model, Type, TypeId, TypeKind};

const C_KEYWORDS: &[&str] = &[
    "auto", "bool", "break", "case", "char", "const", "continue", "default", "do", "double",
    "else", "enum", "extern", "float", "for", "goto", "if", "inline", "int", "long", "register",
    "restrict", "return", "short", "signed", "sizeof", "static", "struct", "switch", "typedef",
    "union", "unsigned", "void", "volatile", "while",
];

/// Everything that is wrong with the model.
pub(crate) fn check(lowered: &Lowered) -> Vec<Diagnostic> {
    let mut check = Check {
        lowered,
        diagnostics: Vec::new(),
    };
    check.type_names();
    for (id, ty) in lowered.model.types() {
        // The standard types are ours and have no place in the source.
        if let Some(spans) = lowered.spans.get(&id) {
            check.one_type(id, ty, spans);
        }
    }
    for &id in &lowered.model.definitions {
        check.deprecations(id, id);
    }
    check.diagnostics
}

struct Check<'a> {
    lowered: &'a Lowered,
    diagnostics: Vec<Diagnostic>,
}

impl Check<'_> {
    fn model(&self) -> &Model {
        &self.lowered.model
    }

    fn report(&mut self, span: Span, message: String, expected: &str) {
        self.diagnostics
            .push(Diagnostic::new(span, message).expected(expected));
    }

    fn spans(&self, id: TypeId) -> TypeSpans {
        self.lowered.spans.get(&id).cloned().unwrap_or_default()
    }

    fn type_names(&mut self) {
        let mut seen = HashSet::new();
        for &id in &self.model().definitions.clone() {
            let ty = &self.lowered.model[id];
            if ty.is_builtin() {
                continue;
            }
            let span = self.spans(id).name;
            match (&ty.c_name, &ty.kind) {
                (_, TypeKind::KeyedUnion { .. }) => {
                    self.report(
                        span,
                        "a keyed union cannot stand alone".to_owned(),
                        "a field of a struct, which also holds the key",
                    );
                }
                (_, TypeKind::Array { .. }) => {
                    self.report(
                        span,
                        "an array cannot stand alone".to_owned(),
                        "a field of a struct, which also holds the length",
                    );
                }
                (None, _) => {
                    let message = "a type at the top level needs a name".to_owned();
                    self.report(span, message, "a string");
                }
                (Some(name), _) => {
                    if !seen.insert(name.clone()) {
                        let message = format!("duplicate type `{name}`");
                        self.report(span, message, "a name that no other type has");
                    }
                }
            }
        }
    }

    fn one_type(&mut self, id: TypeId, ty: &Type, spans: &TypeSpans) {
        let nested = ty.idl_name.is_none();
        match &ty.kind {
            TypeKind::Builtin { .. } => return,
            TypeKind::Array { length, .. } => {
                self.identifier(&length.name, spans.variable, "the length of an array");
                return;
            }
            TypeKind::Enumeration { .. } => self.enumerators(ty, spans),
            TypeKind::Struct { fields } => {
                self.names(fields, &[], spans);
            }
            TypeKind::Union { fields } => {
                self.names(fields, &[], spans);
                self.only_plain_members(fields.iter().map(|field| field.ty), spans);
            }
            TypeKind::KeyedUnion { members, .. } => {
                let names: Vec<&str> = members.iter().map(|member| &*member.name).collect();
                self.names(&[], &names, spans);
                self.only_plain_members(members.iter().filter_map(|member| member.ty), spans);
            }
        }
        if let (true, Some(name)) = (nested, &ty.c_name) {
            let message = format!("`{name}` has a name but is defined inside another type");
            self.report(
                self.spans(id).name,
                message,
                "None, or a definition at the top level",
            );
        }
        if let Some(name) = &ty.c_name {
            self.identifier(name, spans.name, "a type");
        }
    }

    fn identifier(&mut self, name: &str, span: Span, what: &str) {
        let mut characters = name.chars();
        let fits = characters
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && characters.all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !fits {
            let message = format!("`{name}` cannot name {what}");
            self.report(span, message, "letters, digits and underscores");
        } else if C_KEYWORDS.contains(&name) {
            let message = format!("`{name}` cannot name {what}: it is a keyword of C");
            self.report(span, message, "another name");
        }
    }

    fn enumerators(&mut self, ty: &Type, spans: &TypeSpans) {
        let TypeKind::Enumeration { values, .. } = &ty.kind else {
            return;
        };
        if values.is_empty() {
            let message = format!("enumeration `{}` is empty", ty.display_name());
            self.report(spans.name, message, "at least one value");
        }
        let mut names = HashSet::new();
        let mut numbers = HashMap::new();
        for (value, &span) in values.iter().zip(&spans.parts) {
            if !names.insert(&value.c_name) {
                let message = format!("duplicate name `{}` in an enumeration", value.name);
                self.report(span, message, "a name that differs in more than case");
            }
            if let Some(other) = numbers.insert(value.value, &value.name) {
                let message = format!(
                    "`{}` has the value {} of `{other}`",
                    value.name, value.value
                );
                self.report(span, message, "a value that is not yet taken");
            }
            if i32::try_from(value.value).is_err() {
                let message = format!("value {} does not fit an enumeration", value.value);
                self.report(span, message, "an integer of 32 bits");
            }
            self.identifier(&value.c_name, span, "a value");
        }
    }

    /// Everything that becomes a member of one C struct or union shares its name space.
    fn names(&mut self, fields: &[Field], members: &[&str], spans: &TypeSpans) {
        let mut seen = HashSet::new();
        for (field, &span) in fields.iter().zip(&spans.parts) {
            self.name(&mut seen, &field.name, span);
            let variable = match &self.lowered.model[field.ty].kind {
                TypeKind::KeyedUnion { key: variable, .. }
                | TypeKind::Array {
                    length: variable, ..
                } => Some(variable.name.clone()),
                _ => None,
            };
            if let Some(variable) = variable {
                let span = self.spans(field.ty).variable;
                self.name(&mut seen, &variable, span);
            }
        }
        for (member, &span) in members.iter().zip(&spans.parts) {
            self.name(&mut seen, member, span);
        }
    }

    fn name(&mut self, seen: &mut HashSet<String>, name: &str, span: Span) {
        self.identifier(name, span, "a field");
        if !seen.insert(name.to_owned()) {
            let message = format!("duplicate field `{name}`");
            self.report(span, message, "a name that no other field has");
        }
    }

    /// A union has no room for the key or the length that such members bring along.
    fn only_plain_members(&mut self, types: impl Iterator<Item = TypeId>, spans: &TypeSpans) {
        for (ty, &span) in types.zip(&spans.parts) {
            let kind = &self.lowered.model[ty].kind;
            if matches!(kind, TypeKind::KeyedUnion { .. } | TypeKind::Array { .. }) {
                let message = "a union cannot hold a keyed union or an array directly".to_owned();
                self.report(span, message, "a struct around it");
            }
        }
    }

    fn deprecations(&mut self, outermost: TypeId, id: TypeId) {
        let lowered = self.lowered;
        let ty = &lowered.model[id];
        let inner: Vec<TypeId> = match &ty.kind {
            TypeKind::KeyedUnion { members, .. } => {
                members.iter().filter_map(|member| member.ty).collect()
            }
            _ => ty.fields().iter().map(|field| field.ty).collect(),
        };
        for (index, field) in ty.fields().iter().enumerate() {
            let Some(successor) = &field.deprecated_by else {
                continue;
            };
            let known = lowered.model[outermost]
                .fields()
                .iter()
                .any(|field| field.name == *successor);
            if !known {
                let span = self.spans(id).parts.get(index).copied().unwrap_or_default();
                let outer = lowered.model[outermost].display_name();
                let message = format!("`{successor}`, which replaces `{}`, is unknown", field.name);
                self.report(span, message, &format!("a field of `{outer}`"));
            }
        }
        for inner in inner {
            // A type of the top level is checked on its own, also one that wrongly has no name there: it may
            // be used in any number of places, and so may those that use it.
            if lowered.model[inner].idl_name.is_none() && lowered.model[inner].c_name.is_none() {
                self.deprecations(outermost, inner);
            }
        }
    }
}
