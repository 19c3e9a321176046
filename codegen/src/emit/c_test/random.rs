//! The functions that fill a type at random. They take a value that was initialised.

use super::CTest;
use crate::model::{Enumerator, Field, Member, Type, TypeId, TypeKind};

/// What is in the memory that is filled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// The value that its type's `_init` function made, which can stay.
    Initial,
    /// Zeros.
    Nothing,
}

impl<'m> CTest<'m> {
    pub(super) fn rand_init(&mut self, ty: &'m Type) {
        let name = ty.display_name();
        // Nobody calls it when its type is hidden and in no other.
        let attribute = if ty.hidden {
            "__attribute__((unused)) "
        } else {
            ""
        };
        match &ty.kind {
            TypeKind::Enumeration { values, .. } => {
                self.function(&format!(
                    "{attribute}static void {name}_rand_init({name} *p)"
                ));
                self.enumeration(name, values);
            }
            TypeKind::Struct { fields } => {
                self.function(&format!(
                    "{attribute}static void {name}_rand_init({name} *p)"
                ));
                self.fields(fields, "p->", Before::Initial, 0);
                if fields.is_empty() {
                    self.line("(void)p;");
                }
            }
            // Of a union nobody knows the member.
            _ => return,
        }
        self.end();
    }

    fn enumeration(&mut self, name: &str, values: &[Enumerator]) {
        self.begin(&format!("static const {name} values[] = {{"));
        for value in values {
            self.line(&format!("{},", value.c_name));
        }
        self.out.depth -= 1;
        self.line("};");
        self.line("");
        self.line("*p = values[test_rand(sizeof(values) / sizeof(*values))];");
    }

    /// `parent` is what stands before the name of a field.
    fn fields(&mut self, fields: &'m [Field], parent: &str, before: Before, depth: usize) {
        for field in fields.iter().filter(|field| !field.is_const) {
            let place = format!("{parent}{}", field.name);
            match &self.model[field.ty].kind {
                TypeKind::Array { element, length } => {
                    let length = format!("{parent}{}", length.name);
                    self.array(&place, *element, &length, depth);
                }
                TypeKind::KeyedUnion { key, members } => {
                    self.keyed_union(&place, parent, key, members, before, depth);
                }
                _ => self.value(&place, field.ty, before, depth),
            }
        }
    }

    fn value(&mut self, place: &str, id: TypeId, before: Before, depth: usize) {
        let ty = &self.model[id];
        if ty.private {
            return;
        }
        let name = ty.display_name();
        match &ty.kind {
            TypeKind::Struct { fields } if ty.c_name.is_none() => {
                self.fields(fields, &format!("{place}."), before, depth);
            }
            TypeKind::Struct { .. } => {
                if let (Before::Nothing, Some(init)) = (before, &ty.init.name) {
                    self.line(&format!("{init}(&{place});"));
                }
                self.line(&format!("{name}_rand_init(&{place});"));
            }
            TypeKind::Enumeration { .. } => {
                if before == Before::Initial {
                    // It may start as a number that is none of its values.
                    self.line("if (test_rand(8))");
                    self.line(&format!("    {name}_rand_init(&{place});"));
                } else {
                    self.line(&format!("{name}_rand_init(&{place});"));
                }
            }
            TypeKind::Builtin { number: true, .. } => {
                self.line(&format!("{place} = rand_integer();"));
            }
            TypeKind::Builtin { .. } => self.builtin(place, ty, before),
            TypeKind::Union { .. } | TypeKind::KeyedUnion { .. } | TypeKind::Array { .. } => {}
        }
    }

    fn builtin(&mut self, place: &str, ty: &'m Type, before: Before) {
        match ty.display_name() {
            "bool" => self.line(&format!("{place} = test_rand(2);")),
            "char *" => self.line(&format!("{place} = rand_str_or_null();")),
            "libxl_domid" | "libxl_devid" => self.line(&format!("{place} = rand_integer();")),
            "libxl_defbool" => {
                self.line("if (test_rand(3))");
                self.line(&format!("    libxl_defbool_set(&{place}, test_rand(2));"));
                self.line("else");
                self.line(&format!("    libxl_defbool_unset(&{place});"));
            }
            "libxl_uuid" | "libxl_mac" | "libxl_hwcap" | "libxl_ms_vm_genid" => {
                self.line(&format!("rand_bytes(&{place}, sizeof({place}));"));
            }
            name => {
                if let (Before::Nothing, Some(init)) = (before, &ty.init.name) {
                    self.line(&format!("{init}(&{place});"));
                }
                self.line(&format!("{name}_rand_init(&{place});"));
                self.builtins.insert(name);
            }
        }
    }

    fn array(&mut self, place: &str, element: TypeId, length: &str, depth: usize) {
        // Loops can be inside of each other.
        let index = format!("i{depth}");
        self.line(&format!("{length} = test_rand(4);"));
        self.line(&format!(
            "{place} = rand_alloc({length}, sizeof(*{place}));"
        ));
        self.begin(&format!(
            "for (int {index} = 0; {index} < {length}; {index}++) {{"
        ));
        self.value(
            &format!("{place}[{index}]"),
            element,
            Before::Nothing,
            depth + 1,
        );
        self.end();
    }

    fn keyed_union(
        &mut self,
        place: &str,
        parent: &str,
        key: &Field,
        members: &'m [Member],
        before: Before,
        depth: usize,
    ) {
        let key_place = format!("{parent}{}", key.name);
        let key_type = self.model[key.ty].display_name();
        if members.is_empty() {
            return;
        }
        self.begin(match before {
            // Its key may start as a number that is none of its values.
            Before::Initial => "if (test_rand(8)) {",
            Before::Nothing => "{",
        });
        // A value of the key that has no member leaves no trace in JSON, so it would not come back.
        self.keys(key_type, members.iter().map(|member| &*member.enumerator));
        self.line("");
        self.line(&format!(
            "{key_place} = keys[test_rand({})];",
            members.len()
        ));
        self.line(&format!("memset(&{place}, 0, sizeof({place}));"));
        self.line(&format!("switch ({key_place}) {{"));
        for member in members {
            let Some(ty) = member.ty else { continue };
            self.begin(&format!("case {}:", member.enumerator));
            self.value(
                &format!("{place}.{}", member.name),
                ty,
                Before::Nothing,
                depth,
            );
            self.line("break;");
            self.out.depth -= 1;
        }
        self.begin("default:");
        self.line("break;");
        self.out.depth -= 1;
        self.line("}");
        self.end();
    }

    /// An array `keys`.
    pub(super) fn keys<'k>(&mut self, key_type: &str, values: impl Iterator<Item = &'k str>) {
        self.begin(&format!("static const {key_type} keys[] = {{"));
        for value in values {
            self.line(&format!("{value},"));
        }
        self.out.depth -= 1;
        self.line("};");
    }
}
