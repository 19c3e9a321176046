//! The syntax tree: expressions and statements with their place in the source.

use crate::diagnostic::Span;

pub(crate) use super::comments::Comments;

/// A name with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    /// The identifier.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// An expression with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expr {
    /// What it is.
    pub kind: ExprKind,
    /// Where it stands.
    pub span: Span,
}

/// What an expression can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ExprKind {
    /// A reference to a type or a constant.
    Name(String),
    /// A string; adjacent literals are joined.
    Str(String),
    /// An integer, decimal, hexadecimal, octal or binary.
    Int(i64),
    /// `True` or `False`.
    Bool(bool),
    /// `None`.
    None,
    /// `[a, b]`
    List(Vec<Expr>),
    /// `(a, b)`
    Tuple(Vec<Expr>),
    /// `{'key': value}`
    Dict(Vec<(Expr, Expr)>),
    /// `Struct("name", [...], dir=DIR_IN)`
    Call(Call),
}

impl ExprKind {
    /// What to call it in a message.
    pub(crate) fn describe(&self) -> &'static str {
        match self {
            Self::Name(_) => "a name",
            Self::Str(_) => "a string",
            Self::Int(_) => "an integer",
            Self::Bool(_) => "a boolean",
            Self::None => "None",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Dict(_) => "a dictionary",
            Self::Call(_) => "a type constructor",
        }
    }
}

/// A call of a type constructor or of a directive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// What is called.
    pub callee: Name,
    /// Positional arguments.
    pub args: Vec<Expr>,
    /// Keyword arguments.
    pub keywords: Vec<(Name, Expr)>,
}

/// A statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Statement {
    /// `name = expression`
    Assign {
        /// The name that is defined.
        name: Name,
        /// Its value.
        value: Expr,
    },
    /// `namespace("libxl_")`, `hidden(True)`
    Directive {
        /// The call.
        call: Call,
        /// All of it.
        span: Span,
    },
    /// A string on its own: a docstring, without effect.
    Docstring,
    /// A definition with a syntax error, which was reported.
    Broken {
        /// The name that would have been defined.
        name: Name,
    },
}

/// A parsed file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct File {
    /// The statements, in order.
    pub statements: Vec<Statement>,
    /// The comments, to be found by the item that they describe.
    pub comments: Comments,
}
