//! From the syntax tree to the model: names are looked up, attributes get their defaults.

mod attributes;
mod construct;
mod keywords;
mod standard;

use std::collections::HashMap;

use crate::diagnostic::{Diagnostic, Span};
use crate::model::{Model, Type, TypeId};
use crate::parse::ast::{Call, Comments, Expr, ExprKind, File, Name, Statement};

/// Where a type and its parts stand, for the checks that look at the model.
#[derive(Clone, Debug, Default)]
pub(crate) struct TypeSpans {
    /// The name, or the whole constructor of an anonymous type.
    pub name: Span,
    /// Fields, members or enumerators, in the model's order.
    pub parts: Vec<Span>,
    /// The key of a union or the length of an array.
    pub variable: Span,
}

/// A model with the place of everything in it.
#[derive(Clone, Debug)]
pub(crate) struct Lowered {
    /// The model.
    pub model: Model,
    /// By type; the standard types have none.
    pub spans: HashMap<TypeId, TypeSpans>,
}

/// Builds the model of a file.
pub(crate) fn lower(file: &File) -> (Lowered, Vec<Diagnostic>) {
    let mut lowering = Lowering::new(&file.comments);
    for statement in &file.statements {
        match statement {
            Statement::Assign { name, value } => lowering.assign(name, value),
            Statement::Directive { call, span } => lowering.directive(call, *span),
            Statement::Docstring => {}
            Statement::Broken { name } => {
                lowering
                    .scope
                    .entry(name.text.clone())
                    .or_insert(Binding::Broken);
            }
        }
    }
    let model = Model {
        namespace: lowering.namespace,
        types: lowering.types,
        definitions: lowering.definitions,
    };
    (
        Lowered {
            model,
            spans: lowering.spans,
        },
        lowering.diagnostics,
    )
}

/// What a name stands for.
#[derive(Clone, Copy)]
enum Binding {
    Type(TypeId),
    /// Its definition is wrong and was reported.
    Broken,
}

struct Lowering<'a> {
    comments: &'a Comments,
    namespace: String,
    hidden: bool,
    types: Vec<Type>,
    spans: HashMap<TypeId, TypeSpans>,
    definitions: Vec<TypeId>,
    scope: HashMap<String, Binding>,
    diagnostics: Vec<Diagnostic>,
    /// The comment above the statement at hand.
    docs: Option<String>,
}

impl<'a> Lowering<'a> {
    fn new(comments: &'a Comments) -> Self {
        let mut this = Self {
            comments,
            namespace: String::new(),
            hidden: false,
            types: Vec::new(),
            spans: HashMap::new(),
            definitions: Vec::new(),
            scope: HashMap::new(),
            diagnostics: Vec::new(),
            docs: None,
        };
        for (name, ty) in standard::types() {
            let id = TypeId(this.types.len());
            this.types.push(ty);
            this.scope.insert(name.to_owned(), Binding::Type(id));
        }
        this
    }

    fn report(&mut self, span: Span, message: impl Into<String>, expected: impl Into<String>) {
        self.diagnostics
            .push(Diagnostic::new(span, message).expected(expected));
    }

    fn add(&mut self, ty: Type, spans: TypeSpans) -> TypeId {
        let id = TypeId(self.types.len());
        self.types.push(ty);
        self.spans.insert(id, spans);
        id
    }

    fn assign(&mut self, name: &Name, value: &Expr) {
        self.docs = self.comments.describing(name.span.to(value.span));
        let before = self.types.len();
        let ty = self.type_of(value);
        self.docs = None;
        if self.scope.contains_key(&name.text) {
            if let Some(id) = ty.filter(|id| id.0 >= before) {
                self.types[id.0].idl_name = Some(name.text.clone());
            }
            let message = format!("duplicate definition of `{}`", name.text);
            self.report(name.span, message, "a name that is not yet defined");
            return;
        }
        let Some(id) = ty else {
            self.scope.insert(name.text.clone(), Binding::Broken);
            return;
        };
        // An alias names a type that is there already; only a new one is a definition.
        if id.0 >= before {
            self.types[id.0].idl_name = Some(name.text.clone());
            self.definitions.push(id);
        }
        self.scope.insert(name.text.clone(), Binding::Type(id));
    }

    fn directive(&mut self, call: &Call, span: Span) {
        let argument = match (call.args.as_slice(), call.keywords.as_slice()) {
            ([argument], []) => Some(&argument.kind),
            _ => None,
        };
        match (call.callee.text.as_str(), argument) {
            ("namespace", Some(ExprKind::Str(namespace))) => {
                namespace.clone_into(&mut self.namespace);
            }
            ("namespace", _) => {
                self.report(span, "wrong argument of `namespace`", "one string");
            }
            ("hidden", Some(ExprKind::Bool(hidden))) => self.hidden = *hidden,
            ("hidden", _) => self.report(span, "wrong argument of `hidden`", "True or False"),
            (other, _) => {
                let message = format!("unknown directive `{other}`");
                self.report(
                    call.callee.span,
                    message,
                    "`namespace`, `hidden` or `name = ...`",
                );
            }
        }
    }

    /// The type that an expression stands for; what is wrong with it is reported.
    fn type_of(&mut self, expr: &Expr) -> Option<TypeId> {
        match &expr.kind {
            ExprKind::Name(name) => match self.scope.get(name) {
                Some(Binding::Type(id)) => Some(*id),
                Some(Binding::Broken) => None,
                None => {
                    let expected = match self.similar(name) {
                        Some(similar) => {
                            format!("a type that is defined above, such as `{similar}`")
                        }
                        None => "a type that is defined above".to_owned(),
                    };
                    self.report(expr.span, format!("unknown type `{name}`"), expected);
                    None
                }
            },
            ExprKind::Call(call) => self.construct(call, expr.span),
            other => {
                let message = format!("{} is not a type", other.describe());
                self.report(expr.span, message, "a type's name or constructor");
                None
            }
        }
    }

    /// The name in scope that a misspelt one most likely means.
    fn similar(&self, name: &str) -> Option<&str> {
        // Nobody misspells what is longer, and the comparison takes the product of both lengths.
        let is_short = |name: &str| name.len() <= 128;
        let close = |candidate: &str| {
            if !is_short(name) || !is_short(candidate) {
                return None;
            }
            let distance = edit_distance(name, candidate);
            (distance <= 1 + name.len() / 4).then_some(distance)
        };
        self.scope
            .keys()
            .filter_map(|candidate| close(candidate).map(|distance| (distance, candidate.as_str())))
            .min()
            .map(|(_, candidate)| candidate)
    }
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
