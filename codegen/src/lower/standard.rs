//! The types that every IDL file can use without defining them.

use crate::model::{Direction, Function, Json, PassBy, Type, TypeKind};

fn builtin(c_name: &str, kind: TypeKind, gen_fn: &str, jsonc: &str, parse: (&str, &str)) -> Type {
    Type {
        kind,
        idl_name: None,
        raw_name: Some(c_name.to_owned()),
        c_name: Some(c_name.to_owned()),
        namespace: None,
        docs: None,
        hidden: false,
        private: false,
        dir: Direction::Both,
        pass_by: PassBy::Value,
        dispose: Function {
            name: None,
            autogenerate: false,
        },
        copy: Function {
            name: None,
            autogenerate: true,
        },
        init: Function {
            name: None,
            autogenerate: false,
        },
        init_val: None,
        check_default_fn: None,
        copy_deprecated_fn: None,
        json: Json {
            gen_fn: Some(gen_fn.to_owned()),
            jsonc_gen_fn: Some(jsonc.to_owned()),
            parse_type: Some(parse.0.to_owned()),
            parse_fn: Some(parse.1.to_owned()),
            autogenerate: false,
        },
    }
}

fn number(c_name: &str, signed: bool, width: Option<u32>) -> Type {
    let parse_fn = match width {
        Some(width) => format!("libxl__uint{width}_parse_json"),
        None => "libxl__int_parse_json".to_owned(),
    };
    let kind = TypeKind::Builtin {
        signed,
        number: true,
        width,
    };
    builtin(
        c_name,
        kind,
        "yajl_gen_integer",
        "libxl__int_gen_jso",
        ("JSON_INTEGER", &parse_fn),
    )
}

/// The standard types by their IDL name.
pub(super) fn types() -> Vec<(&'static str, Type)> {
    let opaque = || TypeKind::Builtin {
        signed: false,
        number: false,
        width: None,
    };
    let mut void = builtin(
        "void *",
        opaque(),
        "void *_gen_json",
        "void *_gen_jso",
        ("JSON_ANY", "void *_parse_json"),
    );
    void.copy.name = Some("void *_copy".to_owned());
    let bool = builtin(
        "bool",
        opaque(),
        "yajl_gen_bool",
        "libxl__boolean_gen_jso",
        ("JSON_BOOL", "libxl__bool_parse_json"),
    );
    let mut uint64 = number("uint64_t", false, Some(64));
    uint64.json.gen_fn = Some("libxl__uint64_gen_json".to_owned());
    uint64.json.jsonc_gen_fn = Some("libxl__uint64_gen_jso".to_owned());
    let mut string = builtin(
        "char *",
        opaque(),
        "libxl__string_gen_json",
        "libxl__string_gen_jso",
        ("JSON_STRING | JSON_NULL", "libxl__string_parse_json"),
    );
    string.copy.name = Some("libxl_string_copy".to_owned());
    string.dispose.name = Some("free".to_owned());
    string.check_default_fn = Some("libxl__string_is_default".to_owned());
    let mut types = vec![
        ("void", void),
        ("bool", bool),
        ("size_t", number("size_t", false, None)),
        ("integer", number("int", true, None)),
        ("uint8", number("uint8_t", false, Some(8))),
        ("uint16", number("uint16_t", false, Some(16))),
        ("uint32", number("uint32_t", false, Some(32))),
        ("uint64", uint64),
        ("string", string),
    ];
    for (name, ty) in &mut types {
        ty.idl_name = Some((*name).to_owned());
    }
    types
}
