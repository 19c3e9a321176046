//! The types that every IDL file can use without defining them.

use crate::model::{Direction, Json, PassBy, Type, TypeKind};

fn owned(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn builtin(c_name: &str, kind: TypeKind, gen_fn: &str, jsonc: &str, parse: (&str, &str)) -> Type {
    Type {
        kind,
        idl_name: None,
        raw_name: owned(c_name),
        c_name: owned(c_name),
        namespace: None,
        docs: None,
        hidden: false,
        private: false,
        dir: Direction::Both,
        pass_by: PassBy::Value,
        dispose_fn: None,
        autogenerate_dispose_fn: false,
        copy_fn: None,
        autogenerate_copy_fn: true,
        init_fn: None,
        init_val: None,
        autogenerate_init_fn: false,
        check_default_fn: None,
        copy_deprecated_fn: None,
        json: Json {
            gen_fn: owned(gen_fn),
            jsonc_gen_fn: owned(jsonc),
            parse_type: owned(parse.0),
            parse_fn: owned(parse.1),
            autogenerate: false,
        },
    }
}

fn number(c_name: &str, signed: bool, width: Option<u32>) -> Type {
    let parse_fn = match width {
        Some(width) => format!("libxl__uint{width}_parse_json"),
        None => "libxl__int_parse_json".to_owned(),
    };
    let kind = TypeKind::Builtin { signed, number: true, width };
    builtin(c_name, kind, "yajl_gen_integer", "libxl__int_gen_jso", ("JSON_INTEGER", &parse_fn))
}

/// The standard types by their IDL name.
pub(super) fn types() -> Vec<(&'static str, Type)> {
    let opaque = || TypeKind::Builtin { signed: false, number: false, width: None };
    let mut void = builtin("void *", opaque(), "void *_gen_json", "void *_gen_jso", (
        "JSON_ANY",
        "void *_parse_json",
    ));
    void.copy_fn = owned("void *_copy");
    let bool = builtin("bool", opaque(), "yajl_gen_bool", "libxl__boolean_gen_jso", (
        "JSON_BOOL",
        "libxl__bool_parse_json",
    ));
    let mut uint64 = number("uint64_t", false, Some(64));
    uint64.json.gen_fn = owned("libxl__uint64_gen_json");
    uint64.json.jsonc_gen_fn = owned("libxl__uint64_gen_jso");
    let mut string = builtin("char *", opaque(), "libxl__string_gen_json", "libxl__string_gen_jso", (
        "JSON_STRING | JSON_NULL",
        "libxl__string_parse_json",
    ));
    string.copy_fn = owned("libxl_string_copy");
    string.dispose_fn = owned("free");
    string.check_default_fn = owned("libxl__string_is_default");
    vec![
        ("void", void),
        ("bool", bool),
        ("size_t", number("size_t", false, None)),
        ("integer", number("int", true, None)),
        ("uint8", number("uint8_t", false, Some(8))),
        ("uint16", number("uint16_t", false, Some(16))),
        ("uint32", number("uint32_t", false, Some(32))),
        ("uint64", uint64),
        ("string", string),
    ]
}
