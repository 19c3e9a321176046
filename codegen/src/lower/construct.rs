//! The constructors: `Builtin`, `Number`, `UInt`, `Enumeration`, `Struct`, `Union`, `KeyedUnion`,
//! `Array`.

use super::attributes::{Defaults, Preset};
use super::keywords::{Keywords, Reported};
use super::{Lowering, TypeSpans};
use crate::diagnostic::Span;
use crate::model::{Enumerator, Field, Member, PassBy, Type, TypeId, TypeKind};
use crate::parse::ast::{Call, Expr, ExprKind};

const CONSTRUCTORS: &str = "Builtin, Number, UInt, Enumeration, Struct, Union, KeyedUnion or Array";

/// The positional arguments of a call; each may be given by its name as well.
struct Arguments<'c> {
    call: &'c Call,
    span: Span,
    taken: usize,
}

impl<'c> Arguments<'c> {
    fn next(
        &mut self,
        lowering: &mut Lowering<'_>,
        keywords: &mut Keywords<'c>,
        name: &str,
        expected: &str,
    ) -> Option<&'c Expr> {
        let positional = self.call.args.get(self.taken);
        self.taken += 1;
        let found = positional.or_else(|| keywords.take(name));
        if found.is_none() {
            let message = format!("`{}` lacks its `{name}`", self.call.callee.text);
            lowering.report(self.span, message, expected);
        }
        found
    }

    fn finish(&self, lowering: &mut Lowering<'_>) {
        if let Some(extra) = self.call.args.get(self.taken) {
            let message = format!(
                "`{}` takes {} positional arguments",
                self.call.callee.text, self.taken
            );
            lowering.report(extra.span, message, "a keyword argument");
        }
    }
}

impl Lowering<'_> {
    /// Evaluates a constructor. What is wrong inside of it is reported, and does not make the type
    /// itself unknown: that would only cause further errors.
    pub(super) fn construct(&mut self, call: &Call, span: Span) -> Option<TypeId> {
        // The comment describes the outermost type of the statement only.
        let docs = self.docs.take();
        let mut keywords = Keywords::new(self, &call.keywords);
        let mut arguments = Arguments {
            call,
            span,
            taken: 0,
        };
        let constructor = call.callee.text.as_str();
        let ty = match constructor {
            "Builtin" | "Number" => self.builtin(constructor, &mut arguments, &mut keywords),
            "UInt" => self.uint(&mut arguments, &mut keywords),
            "Enumeration" => self.enumeration(&mut arguments, &mut keywords),
            "Struct" | "Union" => self.aggregate(constructor, &mut arguments, &mut keywords),
            "KeyedUnion" => self.keyed_union(&mut arguments, &mut keywords),
            "Array" => self.array(&mut arguments, &mut keywords),
            _ => {
                let message = format!("unknown type constructor `{constructor}`");
                self.report(call.callee.span, message, CONSTRUCTORS);
                return None;
            }
        };
        let (mut ty, spans) = ty?;
        arguments.finish(self);
        keywords.finish(self, constructor);
        ty.docs = docs;
        Some(self.add(ty, spans))
    }

    fn required_string(&mut self, what: &str, expr: &Expr) -> Option<String> {
        if let ExprKind::Str(text) = &expr.kind {
            return Some(text.clone());
        }
        let message = format!("{what} cannot be {}", expr.kind.describe());
        self.report(expr.span, message, "a string");
        None
    }

    /// A type's name; None makes it anonymous.
    fn type_name(&mut self, expr: &Expr) -> Result<Option<String>, Reported> {
        match &expr.kind {
            ExprKind::None => Ok(None),
            _ => self
                .required_string("the name of a type", expr)
                .map(Some)
                .ok_or(Reported),
        }
    }

    fn builtin<'c>(
        &mut self,
        constructor: &str,
        arguments: &mut Arguments<'c>,
        keywords: &mut Keywords<'c>,
    ) -> Option<(Type, TypeSpans)> {
        let number = constructor == "Number";
        let parameter = if number { "ctype" } else { "typename" };
        let name = arguments.next(self, keywords, parameter, "the name of a C type")?;
        let raw_name = self.required_string("the name of a type", name)?;
        let signed = keywords.boolean(self, "signed", false);
        let kind = TypeKind::Builtin {
            signed,
            number,
            width: None,
        };
        let defaults = if number {
            Defaults::number("libxl__int_parse_json".to_owned())
        } else {
            Defaults::builtin()
        };
        let ty = self.common(Some(raw_name), kind, defaults, keywords);
        Some((
            ty,
            TypeSpans {
                name: name.span,
                ..TypeSpans::default()
            },
        ))
    }

    fn uint<'c>(
        &mut self,
        arguments: &mut Arguments<'c>,
        keywords: &mut Keywords<'c>,
    ) -> Option<(Type, TypeSpans)> {
        let width = arguments.next(self, keywords, "w", "the width in bits")?;
        let ExprKind::Int(bits @ (8 | 16 | 32 | 64)) = width.kind else {
            self.report(width.span, "wrong width of `UInt`", "8, 16, 32 or 64");
            return None;
        };
        let bits = u32::try_from(bits).unwrap_or(64);
        let signed = keywords.boolean(self, "signed", false);
        let kind = TypeKind::Builtin {
            signed,
            number: true,
            width: Some(bits),
        };
        let defaults = Defaults::number(format!("libxl__uint{bits}_parse_json"));
        let ty = self.common(Some(format!("uint{bits}_t")), kind, defaults, keywords);
        Some((
            ty,
            TypeSpans {
                name: width.span,
                ..TypeSpans::default()
            },
        ))
    }

    fn enumeration<'c>(
        &mut self,
        arguments: &mut Arguments<'c>,
        keywords: &mut Keywords<'c>,
    ) -> Option<(Type, TypeSpans)> {
        let name = arguments.next(self, keywords, "typename", "the name of the enumeration")?;
        // The names of its values contain its own.
        let raw_name = self.required_string("the name of an enumeration", name)?;
        let values = arguments.next(self, keywords, "values", "a list of (number, name)")?;
        let kind = TypeKind::Enumeration {
            value_namespace: String::new(),
            values: Vec::new(),
        };
        let defaults = Defaults {
            dispose_fn: Preset::Absent,
            copy_fn: Preset::Absent,
            ..Defaults::plain("JSON_STRING")
        };
        let value_namespace = keywords
            .take("value_namespace")
            .and_then(|expr| self.text_value("value_namespace", expr).ok());
        let mut ty = self.common(Some(raw_name.clone()), kind, defaults, keywords);
        let value_namespace = value_namespace
            .unwrap_or_else(|| ty.namespace.clone())
            .unwrap_or_default();
        let prefix = format!("{value_namespace}{raw_name}_").to_uppercase();
        let mut parts = Vec::new();
        let mut enumerators = Vec::new();
        let ExprKind::List(items) = &values.kind else {
            let message = format!(
                "the values of an enumeration cannot be {}",
                values.kind.describe()
            );
            self.report(values.span, message, "a list of (number, name)");
            return Some((
                ty,
                TypeSpans {
                    name: name.span,
                    ..TypeSpans::default()
                },
            ));
        };
        for item in items {
            let pair = match &item.kind {
                ExprKind::Tuple(pair) => pair.as_slice(),
                _ => &[],
            };
            let [
                Expr {
                    kind: ExprKind::Int(value),
                    ..
                },
                Expr {
                    kind: ExprKind::Str(text),
                    ..
                },
            ] = pair
            else {
                self.report(
                    item.span,
                    "malformed value of an enumeration",
                    "(number, name)",
                );
                continue;
            };
            enumerators.push(Enumerator {
                name: text.clone(),
                c_name: format!("{prefix}{}", text.to_uppercase()),
                value: *value,
                docs: self.comments.describing(item.span),
            });
            parts.push(item.span);
        }
        ty.kind = TypeKind::Enumeration {
            value_namespace,
            values: enumerators,
        };
        Some((
            ty,
            TypeSpans {
                name: name.span,
                parts,
                ..TypeSpans::default()
            },
        ))
    }

    fn aggregate<'c>(
        &mut self,
        constructor: &str,
        arguments: &mut Arguments<'c>,
        keywords: &mut Keywords<'c>,
    ) -> Option<(Type, TypeSpans)> {
        let is_union = constructor == "Union";
        let name = arguments.next(self, keywords, "name", "its name, or None")?;
        let raw_name = self.type_name(name).ok()?;
        let list = arguments.next(self, keywords, "fields", "a list of (name, type)")?;
        let mut fields = Vec::new();
        let mut parts = Vec::new();
        if let ExprKind::List(items) = &list.kind {
            for item in items {
                if let Some(field) = self.field(item) {
                    fields.push(field);
                    parts.push(item.span);
                }
            }
        } else {
            let message = format!("the fields cannot be {}", list.kind.describe());
            self.report(list.span, message, "a list of (name, type)");
        }
        let mut defaults = Defaults::aggregate(PassBy::Reference);
        let kind = if is_union {
            // Only somebody who knows which member is valid can free it.
            defaults.dispose_fn = Preset::Absent;
            TypeKind::Union { fields }
        } else {
            TypeKind::Struct { fields }
        };
        let ty = self.common(raw_name, kind, defaults, keywords);
        Some((
            ty,
            TypeSpans {
                name: name.span,
                parts,
                ..TypeSpans::default()
            },
        ))
    }

    /// `(name, type)` or `(name, type, {attributes})`
    fn field(&mut self, item: &Expr) -> Option<Field> {
        let parts = match &item.kind {
            ExprKind::Tuple(parts) => parts.as_slice(),
            _ => &[],
        };
        let (
            Expr {
                kind: ExprKind::Str(name),
                ..
            },
            ty,
            attributes,
        ) = (match parts {
            [name, ty] => (name, ty, None),
            [name, ty, attributes] => (name, ty, Some(attributes)),
            _ => {
                self.report(
                    item.span,
                    "malformed field",
                    "(name, type) or (name, type, {...})",
                );
                return None;
            }
        })
        else {
            self.report(
                parts[0].span,
                "the name of a field must be a string",
                "a string",
            );
            return None;
        };
        let docs = self.comments.describing(item.span);
        let ty = self.type_of(ty);
        let mut field = Field {
            name: name.clone(),
            ty: ty.unwrap_or(TypeId(0)),
            is_const: false,
            init_val: None,
            deprecated_by: None,
            docs,
        };
        if let Some(attributes) = attributes {
            self.field_attributes(&mut field, attributes);
        }
        ty.map(|_| field)
    }

    fn field_attributes(&mut self, field: &mut Field, attributes: &Expr) {
        let ExprKind::Dict(entries) = &attributes.kind else {
            let message = format!(
                "the attributes of a field cannot be {}",
                attributes.kind.describe()
            );
            self.report(attributes.span, message, "a dictionary");
            return;
        };
        let mut seen: Vec<&str> = Vec::new();
        for (key, value) in entries {
            let ExprKind::Str(name) = &key.kind else {
                continue;
            };
            if seen.contains(&name.as_str()) {
                let message = format!("attribute `{name}` is given twice");
                self.report(key.span, message, "each attribute once");
            }
            seen.push(name);
            match name.as_str() {
                "const" => field.is_const = self.boolean_value(name, value, false),
                "init_val" => field.init_val = self.c_expression_value(name, value),
                "deprecated_by" => {
                    field.deprecated_by = self.text_value(name, value).ok().flatten();
                }
                _ => {
                    let message = format!("unknown attribute `{name}` of a field");
                    self.report(key.span, message, "'const', 'init_val' or 'deprecated_by'");
                }
            }
        }
    }

    /// The key of a union or the length of an array, whose attributes are keyword arguments of the
    /// type with a prefix.
    fn variable(
        &mut self,
        name: String,
        ty: TypeId,
        prefix: &str,
        keywords: &mut Keywords<'_>,
    ) -> Field {
        Field {
            name,
            ty,
            is_const: keywords.boolean(self, &format!("{prefix}const"), false),
            init_val: keywords.c_expression(self, &format!("{prefix}init_val")),
            deprecated_by: keywords.text(self, &format!("{prefix}deprecated_by"), None),
            docs: None,
        }
    }

    fn keyed_union<'c>(
        &mut self,
        arguments: &mut Arguments<'c>,
        keywords: &mut Keywords<'c>,
    ) -> Option<(Type, TypeSpans)> {
        let name = arguments.next(self, keywords, "name", "None")?;
        let raw_name = self.type_name(name).ok()?;
        let key_type = arguments.next(self, keywords, "keyvar_type", "an enumeration")?;
        let key_name = arguments.next(self, keywords, "keyvar_name", "the key's name")?;
        let list = arguments.next(self, keywords, "fields", "a list of (value, type)")?;
        let key_id = self.type_of(key_type);
        let key_text = self.required_string("the name of the key", key_name);
        let ExprKind::List(items) = &list.kind else {
            let message = format!("the members cannot be {}", list.kind.describe());
            self.report(list.span, message, "a list of (value, type)");
            return None;
        };
        let values = match key_id.map(|id| (id, &self.types[id.0].kind)) {
            Some((_, TypeKind::Enumeration { values, .. })) => Some(values.clone()),
            Some((id, _)) => {
                let type_name = self.types[id.0].display_name();
                let message = format!("the key has type `{type_name}`, which is no enumeration");
                self.report(key_type.span, message, "an enumeration");
                None
            }
            None => None,
        };
        let mut members = Vec::new();
        let mut parts = Vec::new();
        for item in items {
            if let Some(member) = self.member(item, values.as_deref(), key_type) {
                members.push(member);
                parts.push(item.span);
            }
        }
        let key = self.variable(key_text?, key_id?, "keyvar_", keywords);
        let variable = key_name.span;
        let kind = TypeKind::KeyedUnion { key, members };
        let ty = self.common(raw_name, kind, Defaults::aggregate(PassBy::Value), keywords);
        values?;
        Some((
            ty,
            TypeSpans {
                name: name.span,
                parts,
                variable,
            },
        ))
    }

    fn member(
        &mut self,
        item: &Expr,
        values: Option<&[Enumerator]>,
        key_type: &Expr,
    ) -> Option<Member> {
        let parts = match &item.kind {
            ExprKind::Tuple(parts) => parts.as_slice(),
            _ => &[],
        };
        let [
            Expr {
                kind: ExprKind::Str(name),
                span,
            },
            ty,
        ] = parts
        else {
            self.report(
                item.span,
                "malformed member of a union",
                "(value, type) or (value, None)",
            );
            return None;
        };
        let docs = self.comments.describing(item.span);
        let ty = match &ty.kind {
            ExprKind::None => None,
            _ => Some(self.type_of(ty)?),
        };
        let value = values?
            .iter()
            .find(|value| value.name.to_uppercase() == name.to_uppercase());
        let Some(value) = value else {
            let enumeration = match &key_type.kind {
                ExprKind::Name(name) => format!("`{name}`"),
                _ => "the enumeration".to_owned(),
            };
            let message = format!("union member `{name}` is no value of {enumeration}");
            let names: Vec<String> = values?
                .iter()
                .map(|value| format!("\"{}\"", value.name.to_lowercase()))
                .collect();
            self.report(*span, message, names.join(", "));
            return None;
        };
        Some(Member {
            name: name.clone(),
            ty,
            enumerator: value.c_name.clone(),
            docs,
        })
    }

    fn array<'c>(
        &mut self,
        arguments: &mut Arguments<'c>,
        keywords: &mut Keywords<'c>,
    ) -> Option<(Type, TypeSpans)> {
        let element = arguments.next(self, keywords, "elem_type", "the type of its elements")?;
        let length = arguments.next(
            self,
            keywords,
            "lenvar_name",
            "the name of the variable that holds its length",
        )?;
        let element_id = self.type_of(element);
        let length_name = self.required_string("the name of an array's length", length);
        let (element_id, length_name) = (element_id?, length_name?);
        let element_type = &self.types[element_id.0];
        let Some(element_name) = element_type.raw_name.clone() else {
            self.report(
                element.span,
                "the element of an array has no name",
                "a named type",
            );
            return None;
        };
        if matches!(element_type.kind, TypeKind::Array { .. }) {
            self.report(
                element.span,
                "an array of arrays has no lengths",
                "a type that is no array",
            );
            return None;
        }
        let namespace = element_type.namespace.clone();
        let integer = self
            .types
            .iter()
            .position(|ty| ty.c_name.as_deref() == Some("int"))
            .map_or(TypeId(0), TypeId);
        let length_field = self.variable(length_name, integer, "lenvar_", keywords);
        let defaults = Defaults {
            namespace: namespace.map_or(Preset::Absent, Preset::Fixed),
            dispose_fn: Preset::Fixed("free".to_owned()),
            ..Defaults::plain("JSON_ARRAY")
        };
        let kind = TypeKind::Array {
            element: element_id,
            length: length_field,
        };
        let ty = self.common(Some(format!("{element_name} *")), kind, defaults, keywords);
        Some((
            ty,
            TypeSpans {
                name: element.span,
                variable: length.span,
                ..TypeSpans::default()
            },
        ))
    }
}
