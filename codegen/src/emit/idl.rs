//! The model as IDL again, with every attribute spelt out. What the parser makes of it is the same
//! model.

use std::fmt::Write;

use crate::model::{Direction, Field, Model, PassBy, Type, TypeId, TypeKind};

/// Writes the IDL.
pub fn idl(model: &Model) -> String {
    let mut emitter = Idl {
        model,
        out: String::new(),
        depth: 0,
    };
    let _ = writeln!(emitter.out, "namespace({})", quoted(&model.namespace));
    for &id in &model.definitions {
        let ty = &model[id];
        emitter.out.push('\n');
        emitter.docs(ty.docs.as_ref());
        let name = ty.idl_name.as_deref().unwrap_or_default();
        let _ = write!(emitter.out, "{name} = ");
        emitter.constructor(ty);
        emitter.out.push('\n');
    }
    emitter.out
}

struct Idl<'m> {
    model: &'m Model,
    out: String,
    depth: usize,
}

impl Idl<'_> {
    fn indent(&mut self) {
        self.out.push_str(&"    ".repeat(self.depth));
    }

    fn docs(&mut self, docs: Option<&String>) {
        for line in docs.iter().flat_map(|docs| docs.lines()) {
            self.indent();
            self.out.push_str(format!("# {line}").trim_end());
            self.out.push('\n');
        }
    }

    /// One element of a list, on lines of its own.
    fn element(&mut self, docs: Option<&String>, write: impl FnOnce(&mut Self)) {
        self.depth += 1;
        self.docs(docs);
        self.indent();
        self.out.push('(');
        write(self);
        self.out.push_str("),\n");
        self.depth -= 1;
    }

    fn constructor(&mut self, ty: &Type) {
        let name = ty
            .raw_name
            .as_ref()
            .map_or_else(|| "None".to_owned(), |name| quoted(name));
        match &ty.kind {
            TypeKind::Builtin {
                width: Some(width), ..
            } => self.open(&format!("UInt({width}")),
            TypeKind::Builtin { number: true, .. } => self.open(&format!("Number({name}")),
            TypeKind::Builtin { .. } => self.open(&format!("Builtin({name}")),
            TypeKind::Enumeration { values, .. } => {
                self.open(&format!("Enumeration({name}, [\n"));
                for value in values {
                    self.element(value.docs.as_ref(), |this| {
                        let _ = write!(this.out, "{}, {}", value.value, quoted(&value.name));
                    });
                }
                self.close_list();
            }
            TypeKind::Struct { fields } => self.fields(&format!("Struct({name}, [\n"), fields),
            TypeKind::Union { fields } => self.fields(&format!("Union({name}, [\n"), fields),
            TypeKind::KeyedUnion { key, members } => {
                self.open(&format!("KeyedUnion({name}, "));
                self.reference(key.ty);
                self.open(&format!(", {}, [\n", quoted(&key.name)));
                for member in members {
                    self.element(member.docs.as_ref(), |this| {
                        let _ = write!(this.out, "{}, ", quoted(&member.name));
                        match member.ty {
                            Some(ty) => this.reference(ty),
                            None => this.out.push_str("None"),
                        }
                    });
                }
                self.close_list();
                self.variable("keyvar", key);
            }
            TypeKind::Array { element, length } => {
                self.open("Array(");
                self.reference(*element);
                self.open(&format!(", {}", quoted(&length.name)));
                self.variable("lenvar", length);
            }
        }
        self.attributes(ty);
        self.out.push(')');
    }

    fn open(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn close_list(&mut self) {
        self.depth += 1;
        self.indent();
        self.depth -= 1;
        self.out.push(']');
    }

    fn fields(&mut self, open: &str, fields: &[Field]) {
        self.open(open);
        for field in fields {
            self.element(field.docs.as_ref(), |this| {
                let _ = write!(this.out, "{}, ", quoted(&field.name));
                this.reference(field.ty);
                let _ = write!(
                    this.out,
                    ", {{'const': {}, 'init_val': {}, 'deprecated_by': {}}}",
                    boolean(field.is_const),
                    text(field.init_val.as_ref()),
                    text(field.deprecated_by.as_ref()),
                );
            });
        }
        self.close_list();
    }

    /// A type by its name, or in place if it has none.
    fn reference(&mut self, id: TypeId) {
        let model = self.model;
        let ty = &model[id];
        if let Some(name) = &ty.idl_name {
            self.out.push_str(name);
        } else {
            self.depth += 1;
            self.constructor(ty);
            self.depth -= 1;
        }
    }

    fn variable(&mut self, prefix: &str, variable: &Field) {
        self.attribute(&format!("{prefix}_const"), boolean(variable.is_const));
        self.attribute(
            &format!("{prefix}_init_val"),
            &text(variable.init_val.as_ref()),
        );
        self.attribute(
            &format!("{prefix}_deprecated_by"),
            &text(variable.deprecated_by.as_ref()),
        );
    }

    fn attribute(&mut self, name: &str, value: &str) {
        let _ = write!(self.out, ", {name}={value}");
    }

    fn attributes(&mut self, ty: &Type) {
        match &ty.kind {
            TypeKind::Enumeration {
                value_namespace, ..
            } => {
                self.attribute("value_namespace", &quoted(value_namespace));
            }
            TypeKind::Builtin { signed, .. } => self.attribute("signed", boolean(*signed)),
            _ => {}
        }
        self.attribute("namespace", &text(ty.namespace.as_ref()));
        self.attribute("hidden", boolean(ty.hidden));
        self.attribute("private", boolean(ty.private));
        let direction = match ty.dir {
            Direction::None => "DIR_NONE",
            Direction::In => "DIR_IN",
            Direction::Out => "DIR_OUT",
            Direction::Both => "DIR_BOTH",
        };
        self.attribute("dir", direction);
        let pass_by = match ty.pass_by {
            PassBy::Value => "PASS_BY_VALUE",
            PassBy::Reference => "PASS_BY_REFERENCE",
        };
        self.attribute("passby", pass_by);
        for (name, function) in [
            ("dispose", &ty.dispose),
            ("copy", &ty.copy),
            ("init", &ty.init),
        ] {
            self.attribute(&format!("{name}_fn"), &text(function.name.as_ref()));
            self.attribute(
                &format!("autogenerate_{name}_fn"),
                boolean(function.autogenerate),
            );
        }
        self.attribute("init_val", &text(ty.init_val.as_ref()));
        self.attribute("check_default_fn", &text(ty.check_default_fn.as_ref()));
        self.attribute("copy_deprecated_fn", &text(ty.copy_deprecated_fn.as_ref()));
        self.attribute("json_gen_fn", &text(ty.json.gen_fn.as_ref()));
        self.attribute("jsonc_json_gen_fn", &text(ty.json.jsonc_gen_fn.as_ref()));
        self.attribute("json_parse_fn", &text(ty.json.parse_fn.as_ref()));
        self.attribute("json_parse_type", &text(ty.json.parse_type.as_ref()));
        self.attribute("autogenerate_json", boolean(ty.json.autogenerate));
    }
}

fn boolean(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

fn text(value: Option<&String>) -> String {
    value.map_or_else(|| "None".to_owned(), |text| quoted(text))
}

/// A string literal.
fn quoted(text: &str) -> String {
    let mut literal = String::from("\"");
    for c in text.chars() {
        match c {
            '\\' => literal.push_str("\\\\"),
            '"' => literal.push_str("\\\""),
            '\n' => literal.push_str("\\n"),
            '\r' => literal.push_str("\\r"),
            '\t' => literal.push_str("\\t"),
            other => literal.push(other),
        }
    }
    literal.push('"');
    literal
}
