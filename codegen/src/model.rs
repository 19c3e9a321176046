//! The model: every type with every attribute resolved. All emitters read this and nothing else.

use std::ops::Index;

use serde::Serialize;

/// A type in its [`Model`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct TypeId(pub(crate) usize);

/// Which way values of a type travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// `DIR_NONE`
    None,
    /// `DIR_IN`: from the caller.
    In,
    /// `DIR_OUT`: to the caller.
    Out,
    /// `DIR_BOTH`
    Both,
}

/// How a value is handed to a C function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PassBy {
    /// `PASS_BY_VALUE`
    Value,
    /// `PASS_BY_REFERENCE`
    Reference,
}

/// A C function of a type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Function {
    /// Its name, if there is one.
    pub name: Option<String>,
    /// It is generated, rather than written by hand.
    pub autogenerate: bool,
}

/// The names of a type's JSON functions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Json {
    /// Generator on yajl.
    pub gen_fn: Option<String>,
    /// Generator on json-c.
    pub jsonc_gen_fn: Option<String>,
    /// Parser.
    pub parse_fn: Option<String>,
    /// The JSON node types that the parser takes, as a C expression.
    pub parse_type: Option<String>,
    /// The functions are generated, rather than written by hand.
    pub autogenerate: bool,
}

/// A field of an aggregate, the key of a union, or the length of an array.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub ty: TypeId,
    /// Declared `const`: C neither initialises, copies, disposes nor prints it.
    pub is_const: bool,
    /// C expression that it is initialised to.
    pub init_val: Option<String>,
    /// The field of the outermost struct that replaces it.
    pub deprecated_by: Option<String>,
    /// The comment in the IDL.
    pub docs: Option<String>,
}

/// A member of a keyed union.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its name, in lower case the name of the key's value.
    pub name: String,
    /// Its type, if there is anything to say beyond the key.
    #[serde(rename = "type")]
    pub ty: Option<TypeId>,
    /// The C name of the key's value.
    pub enumerator: String,
    /// The comment in the IDL.
    pub docs: Option<String>,
}

/// A value of an enumeration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Enumerator {
    /// The name as the IDL writes it.
    pub name: String,
    /// The C name.
    pub c_name: String,
    /// The value.
    pub value: i64,
    /// The comment in the IDL.
    pub docs: Option<String>,
}

/// What a type is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum TypeKind {
    /// Defined elsewhere, by C or by libxl.
    Builtin {
        /// It is known to be signed.
        signed: bool,
        /// A `Number`, as opposed to an opaque type.
        number: bool,
        /// Bits of a `UInt`.
        width: Option<u32>,
    },
    /// An enumeration.
    Enumeration {
        /// The prefix of its values' C names.
        value_namespace: String,
        /// The values.
        values: Vec<Enumerator>,
    },
    /// A struct.
    Struct {
        /// The fields.
        fields: Vec<Field>,
    },
    /// A union of which only its own functions know the member.
    Union {
        /// The fields.
        fields: Vec<Field>,
    },
    /// A union with the variable that says which member is valid.
    KeyedUnion {
        /// The variable.
        key: Field,
        /// The members.
        members: Vec<Member>,
    },
    /// A counted array.
    Array {
        /// The type of its elements.
        element: TypeId,
        /// The variable that counts them.
        length: Field,
    },
}

/// A type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Type {
    /// What it is made of.
    #[serde(flatten)]
    pub kind: TypeKind,
    /// The name that the IDL has for it; types inside others have none.
    pub idl_name: Option<String>,
    /// Its name without the namespace; anonymous types have none.
    pub raw_name: Option<String>,
    /// Its C name.
    pub c_name: Option<String>,
    /// Its namespace; C's own types have none.
    pub namespace: Option<String>,
    /// The comment in the IDL.
    pub docs: Option<String>,
    /// Its functions are hidden from users of the library.
    pub hidden: bool,
    /// It is neither copied nor printed.
    pub private: bool,
    /// Which way its values travel.
    pub dir: Direction,
    /// How its values are handed to C functions.
    pub pass_by: PassBy,
    /// Frees what a value holds.
    pub dispose: Function,
    /// Copies a value deeply.
    pub copy: Function,
    /// Initialises a value.
    pub init: Function,
    /// C expression for the initial value; goes before the function.
    pub init_val: Option<String>,
    /// Tells whether a value is the default.
    pub check_default_fn: Option<String>,
    /// Moves deprecated fields to those that replace them.
    pub copy_deprecated_fn: Option<String>,
    /// The JSON functions.
    pub json: Json,
}

impl Type {
    /// The fields of a struct or a union.
    pub fn fields(&self) -> &[Field] {
        match &self.kind {
            TypeKind::Struct { fields } | TypeKind::Union { fields } => fields,
            _ => &[],
        }
    }

    /// What lies in a struct, a union or a keyed union, by name; but not the variables that belong to
    /// keyed unions and arrays among it.
    pub(crate) fn members(&self) -> Vec<(&str, TypeId)> {
        match &self.kind {
            TypeKind::KeyedUnion { members, .. } => members
                .iter()
                .filter_map(|member| member.ty.map(|ty| (member.name.as_str(), ty)))
                .collect(),
            _ => self
                .fields()
                .iter()
                .map(|field| (field.name.as_str(), field.ty))
                .collect(),
        }
    }

    /// A struct, union or keyed union.
    pub fn is_aggregate(&self) -> bool {
        matches!(
            self.kind,
            TypeKind::Struct { .. } | TypeKind::Union { .. } | TypeKind::KeyedUnion { .. }
        )
    }

    /// Defined elsewhere.
    pub fn is_builtin(&self) -> bool {
        matches!(self.kind, TypeKind::Builtin { .. })
    }

    /// How messages name it.
    pub fn display_name(&self) -> &str {
        self.c_name.as_deref().unwrap_or("(anonymous)")
    }
}

/// All types of one IDL file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Model {
    /// The namespace in force at the end of the file.
    pub namespace: String,
    /// Every type, standard and anonymous ones included. A [`TypeId`] is an index into it.
    pub(crate) types: Vec<Type>,
    /// The types that the file defines at its top level, in order; builtins are among them.
    pub definitions: Vec<TypeId>,
}

impl Index<TypeId> for Model {
    type Output = Type;

    fn index(&self, id: TypeId) -> &Type {
        &self.types[id.0]
    }
}

impl Model {
    /// The types that the file declares rather than imports, in order.
    pub fn declared(&self) -> impl Iterator<Item = &Type> {
        self.definitions
            .iter()
            .map(|&id| &self[id])
            .filter(|ty| !ty.is_builtin())
    }

    /// The type with this C name.
    pub fn find(&self, c_name: &str) -> Option<&Type> {
        self.types
            .iter()
            .find(|ty| ty.c_name.as_deref() == Some(c_name))
    }

    /// Every type, standard and anonymous ones included.
    pub fn types(&self) -> impl Iterator<Item = (TypeId, &Type)> {
        self.types
            .iter()
            .enumerate()
            .map(|(index, ty)| (TypeId(index), ty))
    }

    /// What a field starts as: its own initial value, else its type's.
    pub fn init_val<'a>(&'a self, field: &'a Field) -> Option<&'a str> {
        field
            .init_val
            .as_deref()
            .or(self[field.ty].init_val.as_deref())
    }
}
