//! The attributes that every type has, and what they are when the file does not say.

use super::Lowering;
use super::keywords::Keywords;
use crate::model::{Function, Json, PassBy, Type, TypeKind};

/// What an attribute is unless the file says it.
pub(super) enum Preset {
    /// Made from the name of the type or from the state of the file.
    Derived,
    /// None.
    Absent,
    /// Always the same.
    Fixed(String),
}

impl Preset {
    fn or_derived(self, derive: impl FnOnce() -> Option<String>) -> Option<String> {
        match self {
            Self::Derived => derive(),
            Self::Absent => None,
            Self::Fixed(text) => Some(text),
        }
    }
}

/// What the attributes of a class of types are when the file does not say.
pub(super) struct Defaults {
    /// Derived: as the file's `namespace` says.
    pub(super) namespace: Preset,
    pub(super) pass_by: PassBy,
    /// Derived: the type's name with `_dispose`.
    pub(super) dispose_fn: Preset,
    pub(super) autogenerate_dispose_fn: bool,
    /// Derived: the type's name with `_copy`.
    pub(super) copy_fn: Preset,
    /// The type's name with `_init`, rather than none.
    pub(super) has_init_fn: bool,
    pub(super) json_gen_fn: Option<String>,
    pub(super) jsonc_gen_fn: Option<String>,
    pub(super) json_parse_fn: Option<String>,
    pub(super) json_parse_type: &'static str,
    pub(super) autogenerate_json: bool,
}

impl Defaults {
    pub(super) fn plain(json_parse_type: &'static str) -> Self {
        Self {
            namespace: Preset::Derived,
            pass_by: PassBy::Value,
            dispose_fn: Preset::Derived,
            autogenerate_dispose_fn: true,
            copy_fn: Preset::Derived,
            has_init_fn: false,
            json_gen_fn: None,
            jsonc_gen_fn: None,
            json_parse_fn: None,
            json_parse_type,
            autogenerate_json: true,
        }
    }

    pub(super) fn builtin() -> Self {
        Self {
            dispose_fn: Preset::Absent,
            autogenerate_dispose_fn: false,
            autogenerate_json: false,
            ..Self::plain("JSON_ANY")
        }
    }

    pub(super) fn number(json_parse_fn: String) -> Self {
        Self {
            namespace: Preset::Absent,
            copy_fn: Preset::Absent,
            json_gen_fn: Some("yajl_gen_integer".to_owned()),
            jsonc_gen_fn: Some("libxl__int_gen_jso".to_owned()),
            json_parse_fn: Some(json_parse_fn),
            json_parse_type: "JSON_INTEGER",
            ..Self::builtin()
        }
    }

    pub(super) fn aggregate(pass_by: PassBy) -> Self {
        Self {
            pass_by,
            has_init_fn: true,
            ..Self::plain("JSON_MAP")
        }
    }
}

impl Lowering<'_> {
    /// A type with the attributes that all have, as its keyword arguments say.
    pub(super) fn common(
        &mut self,
        raw_name: Option<String>,
        kind: TypeKind,
        defaults: Defaults,
        keywords: &mut Keywords<'_>,
    ) -> Type {
        let namespace_default = defaults
            .namespace
            .or_derived(|| Some(self.namespace.clone()));
        let namespace = keywords.text(self, "namespace", namespace_default);
        let c_name = raw_name
            .as_ref()
            .map(|raw| format!("{}{raw}", namespace.as_deref().unwrap_or_default()));
        let suffixed = |suffix: &str| c_name.as_ref().map(|name| format!("{name}{suffix}"));
        let private = keywords.boolean(self, "private", false);
        let printable = c_name.is_some() && !private;
        // The namespace keeps its underscore, so that libxl's parsers are internal functions.
        let parse_fn = || {
            let raw = raw_name.as_deref().unwrap_or_default();
            match &namespace {
                Some(namespace) => format!("{namespace}_{raw}_parse_json"),
                None => format!("{raw}_parse_json"),
            }
        };
        let json = Json {
            gen_fn: defaults
                .json_gen_fn
                .or_else(|| printable.then(|| suffixed("_gen_json")).flatten()),
            jsonc_gen_fn: defaults
                .jsonc_gen_fn
                .or_else(|| printable.then(|| suffixed("_gen_jso")).flatten()),
            parse_fn: defaults.json_parse_fn.or_else(|| printable.then(parse_fn)),
            parse_type: (printable || defaults.json_parse_type != "JSON_ANY")
                .then(|| defaults.json_parse_type.to_owned()),
            autogenerate: defaults.autogenerate_json,
        };
        let hidden = self.hidden;
        Type {
            hidden: keywords.boolean(self, "hidden", hidden),
            private,
            dir: keywords.direction(self),
            pass_by: keywords.pass_by(self, defaults.pass_by),
            dispose: Function {
                name: keywords.text(
                    self,
                    "dispose_fn",
                    defaults.dispose_fn.or_derived(|| suffixed("_dispose")),
                ),
                autogenerate: keywords.boolean(
                    self,
                    "autogenerate_dispose_fn",
                    defaults.autogenerate_dispose_fn,
                ),
            },
            copy: Function {
                name: keywords.text(
                    self,
                    "copy_fn",
                    defaults.copy_fn.or_derived(|| suffixed("_copy")),
                ),
                autogenerate: keywords.boolean(self, "autogenerate_copy_fn", true),
            },
            init: Function {
                name: keywords.text(
                    self,
                    "init_fn",
                    defaults.has_init_fn.then(|| suffixed("_init")).flatten(),
                ),
                autogenerate: keywords.boolean(self, "autogenerate_init_fn", defaults.has_init_fn),
            },
            init_val: keywords.c_expression(self, "init_val"),
            check_default_fn: keywords.text(self, "check_default_fn", None),
            copy_deprecated_fn: keywords.text(self, "copy_deprecated_fn", None),
            json: Json {
                gen_fn: keywords.text(self, "json_gen_fn", json.gen_fn),
                jsonc_gen_fn: keywords.text(self, "jsonc_json_gen_fn", json.jsonc_gen_fn),
                parse_fn: keywords.text(self, "json_parse_fn", json.parse_fn),
                parse_type: keywords.text(self, "json_parse_type", json.parse_type),
                autogenerate: keywords.boolean(self, "autogenerate_json", json.autogenerate),
            },
            kind,
            idl_name: None,
            raw_name,
            c_name,
            namespace,
            docs: None,
        }
    }
}
