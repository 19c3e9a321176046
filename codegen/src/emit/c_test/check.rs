//! The functions that test a type.

use super::{CTest, argument};
use crate::model::{Enumerator, Field, Member, Type, TypeKind};

impl CTest<'_> {
    pub(super) fn check(&mut self, ty: &Type) {
        match &ty.kind {
            TypeKind::Enumeration { values, .. } => self.check_enumeration(ty, values),
            TypeKind::Struct { fields } => self.check_struct(ty, fields),
            _ => {}
        }
    }

    fn check_struct(&mut self, ty: &Type, fields: &[Field]) {
        let name = ty.display_name();
        let prints = ty.json.gen_fn.is_some();
        let parses = ty.json.parse_fn.is_some();
        self.function(&format!("static void test_{name}(libxl_ctx *ctx)"));
        self.line(&format!("{name} val, other;"));
        self.line("char *text = NULL, *again = NULL;");
        self.line("");
        self.line("(void)ctx;");
        self.line("(void)again;");
        self.line(&format!("type = \"{name}\";"));
        self.init(ty, "val");
        self.init(ty, "val");
        self.line(&format!("{name}_rand_init(&val);"));
        if prints {
            self.print(ty, "text", "val");
            self.line("check_true(\"to_json\", text != NULL, NULL);");
        }
        if prints && parses {
            self.section("Through JSON.");
            self.init(ty, "other");
            self.parse(ty, "other", "text");
            self.print_again(ty, "other", "from_json");
            self.dispose(ty, "other");
        }
        if let Some(copy) = &ty.copy.name {
            self.section("Through a copy, which needs nothing of the original.");
            self.init(ty, "other");
            let (to, from) = (argument(ty, "other"), argument(ty, "val"));
            self.line(&format!("{copy}(ctx, {to}, {from});"));
            self.dispose(ty, "val");
            if prints {
                self.print_again(ty, "other", "copy");
            }
            self.dispose(ty, "other");
        } else {
            self.dispose(ty, "val");
        }
        self.section("A value that holds nothing.");
        self.line("memset(&other, 0, sizeof(other));");
        self.dispose(ty, "other");
        if prints && parses {
            self.wrong_texts(ty);
        }
        self.line("free(text);");
        for field in fields.iter().filter(|field| !field.is_const) {
            if let TypeKind::KeyedUnion { key, members } = &self.model[field.ty].kind {
                self.check_key(ty, key, members, prints && parses);
            }
        }
        self.end();
    }

    fn section(&mut self, comment: &str) {
        self.line("");
        self.line(&format!("/* {comment} */"));
    }

    fn init(&mut self, ty: &Type, variable: &str) {
        match &ty.init.name {
            Some(init) => self.line(&format!("{init}({});", argument(ty, variable))),
            None => self.line(&format!("memset(&{variable}, 0, sizeof({variable}));")),
        }
    }

    /// It must be possible again.
    fn dispose(&mut self, ty: &Type, variable: &str) {
        if let Some(dispose) = &ty.dispose.name {
            for _ in 0..2 {
                self.line(&format!("{dispose}({});", argument(ty, variable)));
            }
        }
    }

    fn print(&mut self, ty: &Type, text: &str, variable: &str) {
        let name = ty.display_name();
        let argument = argument(ty, variable);
        self.line(&format!("{text} = {name}_to_json(ctx, {argument});"));
    }

    /// Prints a value that must have the text of the original.
    fn print_again(&mut self, ty: &Type, variable: &str, after: &str) {
        self.print(ty, "again", variable);
        self.line(&format!(
            "check_same(\"to_json after {after}\", text, again);"
        ));
        self.line("free(again);");
    }

    fn parse(&mut self, ty: &Type, variable: &str, text: &str) {
        let name = ty.display_name();
        self.line(&format!(
            "check_true(\"from_json\", {name}_from_json(ctx, &{variable}, {text}) == 0, {text});"
        ));
    }

    fn wrong_texts(&mut self, ty: &Type) {
        let name = ty.display_name();
        self.section("Texts that are not JSON.");
        self.begin("for (unsigned i = 0; i < WRONG_JSON; i++) {");
        self.line("char *wrong = wrong_json(text, i);");
        self.line("");
        self.init(ty, "other");
        self.line(&format!(
            "check_true(\"from_json\", {name}_from_json(ctx, &other, wrong) != 0, wrong);"
        ));
        self.dispose(ty, "other");
        self.line("free(wrong);");
        self.end();
        self.section("A text that is something else, or nothing. What is taken is also printed.");
        self.begin("{");
        self.line("char *changed = changed_json(text);");
        self.line("");
        self.init(ty, "other");
        self.begin(&format!(
            "if ({name}_from_json(ctx, &other, changed) == 0) {{"
        ));
        self.line("free(text);");
        self.print(ty, "text", "other");
        self.line("check_true(\"to_json of a changed text\", text != NULL, changed);");
        self.init(ty, "val");
        self.parse(ty, "val", "text");
        self.print_again(ty, "val", "a changed text");
        self.dispose(ty, "val");
        self.end();
        self.dispose(ty, "other");
        self.line("free(changed);");
        self.end();
    }

    /// Each value of a key with the member that its own init function makes.
    fn check_key(&mut self, ty: &Type, key: &Field, members: &[Member], through_json: bool) {
        let Some(init) = &ty.init.name else { return };
        let key_type = &self.model[key.ty];
        let TypeKind::Enumeration { values, .. } = &key_type.kind else {
            return;
        };
        // Only those with a member come back from JSON, so they are the first.
        let with_member = |value: &&Enumerator| {
            let mut names = members.iter().map(|member| &member.enumerator);
            names.any(|name| *name == value.c_name)
        };
        let (come_back, others): (Vec<_>, Vec<_>) = values.iter().partition(with_member);
        self.section(&format!("Each value of `{}`.", key.name));
        self.begin("{");
        let all = come_back.iter().chain(&others);
        self.keys(key_type.display_name(), all.map(|value| &*value.c_name));
        self.line("");
        self.begin("for (unsigned i = 0; i < sizeof(keys) / sizeof(*keys); i++) {");
        self.init(ty, "val");
        let value = argument(ty, "val");
        self.line(&format!("{init}_{}({value}, keys[i]);", key.name));
        self.line(&format!(
            "check_true(\"{init}_{0}\", val.{0} == keys[i], NULL);",
            key.name
        ));
        if through_json && !come_back.is_empty() {
            self.print(ty, "text", "val");
            self.line("check_true(\"to_json\", text != NULL, NULL);");
            self.begin(&format!("if (i < {}) {{", come_back.len()));
            self.init(ty, "other");
            self.parse(ty, "other", "text");
            self.print_again(ty, "other", "from_json");
            self.dispose(ty, "other");
            self.end();
            self.line("free(text);");
        }
        self.dispose(ty, "val");
        self.end();
        self.end();
    }

    fn check_enumeration(&mut self, ty: &Type, values: &[Enumerator]) {
        let name = ty.display_name();
        let prints = ty.json.gen_fn.is_some();
        let parses = ty.json.parse_fn.is_some();
        self.function(&format!("static void test_{name}(libxl_ctx *ctx)"));
        self.line("static const struct {");
        self.line(&format!("    {name} value;"));
        self.line("    const char *name, *upper, *json;");
        self.begin("} values[] = {");
        for value in values {
            let lower = value.name.to_lowercase();
            let upper = value.name.to_uppercase();
            self.line(&format!(
                "{{ {}, \"{lower}\", \"{upper}\", \"\\\"{lower}\\\"\\n\" }},",
                value.c_name
            ));
        }
        self.out.depth -= 1;
        self.line("};");
        self.line("unsigned count = sizeof(values) / sizeof(*values);");
        self.line(&format!("{name} val;"));
        self.line("char *text;");
        self.line("");
        self.line("(void)ctx;");
        self.line("(void)text;");
        self.line(&format!("type = \"{name}\";"));
        self.begin("for (unsigned i = 0; i < count; i++) {");
        self.line(&format!(
            "check_same(\"to_string\", values[i].name, {name}_to_string(values[i].value));"
        ));
        for spelling in ["name", "upper"] {
            let function = format!("{name}_from_string(values[i].{spelling}, &val)");
            self.gives_value(&format!("from_string of its {spelling}"), &function);
        }
        self.line(&format!(
            "check_same(\"string_table\", values[i].name, {name}_string_table[i].s);"
        ));
        self.line(&format!(
            "check_true(\"string_table\", {name}_string_table[i].v == (int)values[i].value, values[i].name);"
        ));
        if prints {
            self.print(ty, "text", "values[i].value");
            self.line("check_same(\"to_json\", values[i].json, text);");
            self.line("free(text);");
        }
        if parses {
            let function = format!("{name}_from_json(ctx, &val, values[i].json)");
            self.gives_value("from_json", &function);
        }
        self.end();
        self.line(&format!(
            "check_true(\"end of string_table\", {name}_string_table[count].s == NULL, NULL);"
        ));
        self.line(&format!("{name}_rand_init(&val);"));
        self.line(&format!(
            "check_true(\"rand_init\", {name}_to_string(val) != NULL, NULL);"
        ));
        self.section("What is no value of it.");
        for unknown in ["no such name", ""] {
            self.line(&format!(
                "check_true(\"from_string\", {name}_from_string(\"{unknown}\", &val) != 0, \"{unknown}\");"
            ));
        }
        self.line(&format!("val = {};", unknown(values)));
        self.line(&format!(
            "check_true(\"to_string\", {name}_to_string(val) == NULL, NULL);"
        ));
        if prints {
            self.line(&format!(
                "free({name}_to_json(ctx, {}));",
                argument(ty, "val")
            ));
        }
        if parses {
            self.begin("for (unsigned i = 0; i < WRONG_JSON; i++) {");
            self.line("text = wrong_json(\"\\\"no such name\\\"\\n\", i);");
            self.line(&format!(
                "check_true(\"from_json\", {name}_from_json(ctx, &val, text) != 0, text);"
            ));
            self.line("free(text);");
            self.end();
            self.line("text = changed_json(values[test_rand(count)].json);");
            self.line(&format!("if ({name}_from_json(ctx, &val, text) == 0)"));
            self.line(&format!(
                "    check_true(\"from_json\", {name}_to_string(val) != NULL, text);"
            ));
            self.line("free(text);");
            self.line(&format!(
                "check_true(\"from_json\", {name}_from_json(ctx, &val, \"\\\"no such name\\\"\") != 0, NULL);"
            ));
        }
        self.end();
    }

    /// A function must put the value there, and return zero.
    fn gives_value(&mut self, what: &str, function: &str) {
        // Something else than the value, lest it is the one that is there already.
        self.line("val = values[(i + 1) % count].value;");
        self.line(&format!(
            "check_true(\"{what}\", {function} == 0 && val == values[i].value, values[i].name);"
        ));
    }
}

/// A number that no value has.
fn unknown(values: &[Enumerator]) -> i64 {
    (0..=i64::from(i32::MAX))
        .find(|number| values.iter().all(|value| value.value != *number))
        .unwrap_or_default()
}
