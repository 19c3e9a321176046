//! Properties: what is written as IDL and read again is the same model, and no input whatever makes
//! the compiler panic.

use std::fmt::Write;

use libxl_idl::emit;
use proptest::prelude::*;

/// The type of a field in a generated struct.
#[derive(Clone, Debug)]
enum Shape {
    Standard(usize),
    Earlier(usize),
    Array(usize),
    Nested(Vec<Shape>),
    Keyed(Vec<Option<Shape>>),
}

const STANDARD: &[&str] = &[
    "bool", "size_t", "integer", "uint8", "uint16", "uint32", "uint64", "string",
];

fn shape() -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![
        (0..STANDARD.len()).prop_map(Shape::Standard),
        any::<usize>().prop_map(Shape::Earlier),
        (0..STANDARD.len()).prop_map(Shape::Array),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let nested = prop::collection::vec(inner, 0..3).prop_map(Shape::Nested);
        // A union holds no array, so its members are structs or nothing.
        let members = prop::collection::vec(prop::option::of(nested.clone()), 1..4);
        prop_oneof![nested, members.prop_map(Shape::Keyed)]
    })
}

#[derive(Clone, Debug)]
struct Attributes {
    docs: Option<String>,
    is_const: bool,
    init_val: Option<String>,
}

#[derive(Clone, Debug)]
enum Definition {
    Enumeration(Vec<(i32, Option<String>)>),
    Struct(Vec<(Shape, Attributes)>, Option<String>),
}

fn docs() -> impl Strategy<Value = Option<String>> {
    prop::option::of("[a-zA-Z<\\[`*/é][ -~]{0,20}[a-z.]")
}

fn definition() -> impl Strategy<Value = Definition> {
    let attributes = (
        docs(),
        any::<bool>(),
        prop::option::of("[ -&(-\\[\\]-~é]{0,8}"),
    )
        .prop_map(|(docs, is_const, init_val)| Attributes {
            docs,
            is_const,
            init_val,
        });
    prop_oneof![
        prop::collection::vec((any::<i32>(), docs()), 1..5).prop_map(Definition::Enumeration),
        (prop::collection::vec((shape(), attributes), 0..6), docs())
            .prop_map(|(fields, docs)| Definition::Struct(fields, docs)),
    ]
}

/// Writes definitions as somebody might, which is not how the emitter does.
struct Writer {
    text: String,
    earlier: Vec<String>,
    names: usize,
}

impl Writer {
    fn name(&mut self, prefix: &str) -> String {
        self.names += 1;
        format!("{prefix}{}", self.names)
    }

    fn shape(&mut self, shape: &Shape) -> String {
        match shape {
            Shape::Standard(index) => STANDARD[*index].to_owned(),
            Shape::Earlier(index) if self.earlier.is_empty() => {
                STANDARD[index % STANDARD.len()].to_owned()
            }
            Shape::Earlier(index) => self.earlier[index % self.earlier.len()].clone(),
            Shape::Array(index) => format!("Array({}, '{}')", STANDARD[*index], self.name("num")),
            Shape::Nested(shapes) => {
                let mut fields = String::new();
                for shape in shapes {
                    let name = self.name("inner");
                    let _ = write!(fields, "('{name}', {}), ", self.shape(shape));
                }
                format!("Struct(None, [{fields}])")
            }
            Shape::Keyed(members) => {
                let mut list = String::new();
                for (index, member) in members.iter().enumerate() {
                    let ty = member.as_ref().map(|shape| self.shape(shape));
                    let _ = write!(list, "('key{index}', {}),", ty.as_deref().unwrap_or("None"));
                }
                let key = self.name("key");
                format!("KeyedUnion(None, keys, \"{key}\", [{list}],)")
            }
        }
    }

    fn definition(&mut self, definition: &Definition) {
        let name = self.name("type");
        match definition {
            Definition::Enumeration(values) => {
                let _ = write!(self.text, "{name} = Enumeration('{name}', [");
                let mut seen = Vec::new();
                for (value, docs) in values {
                    if !seen.contains(value) {
                        self.text.push_str(&comment(docs.as_ref()));
                        let _ = write!(self.text, "({value}, 'v{}'),", seen.len());
                        seen.push(*value);
                    }
                }
                self.text.push_str("\n])\n\n");
            }
            Definition::Struct(fields, docs) => {
                let mut body = String::new();
                for (shape, attributes) in fields {
                    let field = self.name("field");
                    let ty = self.shape(shape);
                    body.push_str(&comment(attributes.docs.as_ref()));
                    let is_const = if attributes.is_const { "True" } else { "False" };
                    let _ = write!(body, "('{field}', {ty}, {{'const': {is_const}");
                    if let Some(value) = &attributes.init_val {
                        let _ = write!(body, ", 'init_val': '{value}'");
                    }
                    body.push_str("}),");
                }
                self.text.push_str(comment(docs.as_ref()).trim_start());
                let _ = write!(
                    self.text,
                    "{name} = Struct('{name}', [{body}\n], dir=DIR_OUT)\n\n"
                );
            }
        }
        self.earlier.push(name);
    }
}

fn comment(docs: Option<&String>) -> String {
    docs.map_or_else(|| "\n".to_owned(), |docs| format!("\n# {docs}\n"))
}

fn source(definitions: &[Definition]) -> String {
    let keys = "keys = Enumeration('keys', [(0, 'key0'), (1, 'KEY1'), (2, 'key2'), (3, 'key3')])";
    let text = format!("namespace('libxl_')\n\n{keys}\n\n");
    let mut writer = Writer {
        text,
        earlier: Vec::new(),
        names: 0,
    };
    for definition in definitions {
        writer.definition(definition);
    }
    writer.text
}

const TOKENS: &[&str] = &[
    "a",
    "=",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "-",
    "1",
    "'s'",
    "\"",
    "\n",
    "#",
    "Struct",
    "KeyedUnion",
    "Array",
    "UInt",
    "None",
    "True",
    "uint8",
    "namespace",
    "\t",
    "0x",
    "dir",
    "DIR_IN",
    "\\",
    "\r\n",
    "\"\"\"",
    "é",
];

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn written_and_read_again_a_model_is_the_same(
        definitions in prop::collection::vec(definition(), 0..6)
    ) {
        let source = source(&definitions);
        let model = libxl_idl::compile(&source, "generated.idl")
            .map_err(|error| TestCaseError::fail(format!("{error}\n{source}")))?;
        let written = emit::idl(&model);
        let again = libxl_idl::compile(&written, "written.idl")
            .map_err(|error| TestCaseError::fail(format!("{error}\n{written}")))?;
        prop_assert_eq!(&again, &model, "{}", written);
        prop_assert_eq!(emit::idl(&again), written);
        emit::c_header(&model, &emit::CHeaderOptions::default());
    }

    #[test]
    fn random_text_never_panics(text in any::<String>()) {
        drop(libxl_idl::compile(&text, "random.idl").map_err(|error| error.to_string()));
    }

    #[test]
    fn random_tokens_never_panic(
        tokens in prop::collection::vec(prop::sample::select(TOKENS), 0..60)
    ) {
        drop(libxl_idl::compile(&tokens.concat(), "tokens.idl").map_err(|error| error.to_string()));
    }

    #[test]
    fn a_damaged_file_never_panics(
        at in any::<prop::sample::Index>(),
        with in "\\PC{0,3}",
        cut in 0..40_usize,
    ) {
        let good = include_str!("golden/features.idl");
        let boundaries: Vec<usize> = good.char_indices().map(|(at, _)| at).collect();
        let start = at.index(boundaries.len());
        let end = boundaries.get(start + cut).copied().unwrap_or(good.len());
        let text = format!("{}{with}{}", &good[..boundaries[start]], &good[end..]);
        match libxl_idl::compile(&text, "damaged.idl") {
            Ok(model) => drop(emit::rust(&model, &emit::RustOptions::default())),
            Err(diagnostics) => prop_assert!(!diagnostics.to_string().is_empty()),
        }
    }
}

#[test]
fn deep_nesting_is_an_error_not_a_crash() {
    for open in ["(", "[", "{", "Struct(None, [('a', ", "f(x="] {
        let text = format!("a = {}", open.repeat(100_000));
        let error = libxl_idl::compile(&text, "deep.idl").expect_err("it is too deep");
        let limit = format!("more than {} deep", libxl_idl::NESTING_LIMIT);
        assert!(
            error.to_string().contains(&limit),
            "{open}: {}",
            error.list()[0].message
        );
    }
}

#[test]
fn nesting_up_to_the_limit_is_parsed() {
    let depth = libxl_idl::NESTING_LIMIT / 3;
    let text = format!(
        "a = Struct('a', [('x', {}uint8{})])",
        "Struct(None, [('x', ".repeat(depth - 1),
        ")])".repeat(depth - 1)
    );
    libxl_idl::compile(&text, "deep.idl").expect("it is just not too deep");
}
