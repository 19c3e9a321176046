//! Keyword arguments, and the kinds of value that they take.

use super::Lowering;
use crate::model::{Direction, PassBy};
use crate::parse::ast::{Expr, ExprKind, Name};

/// A value is of the wrong kind, which was reported.
pub(super) struct Reported;

/// The keyword arguments of one call; each is taken once, the rest is unknown.
pub(super) struct Keywords<'c> {
    left: Vec<(&'c str, &'c Name, &'c Expr)>,
}

impl<'c> Keywords<'c> {
    /// Collects them and reports repetitions.
    pub(super) fn new(lowering: &mut Lowering<'_>, keywords: &'c [(Name, Expr)]) -> Self {
        let mut left: Vec<(&str, &Name, &Expr)> = Vec::new();
        for (name, value) in keywords {
            if left.iter().any(|(known, ..)| *known == name.text) {
                let message = format!("keyword argument `{}` is given twice", name.text);
                lowering.report(name.span, message, "each argument once");
            } else {
                left.push((&name.text, name, value));
            }
        }
        Self { left }
    }

    pub(super) fn take(&mut self, name: &str) -> Option<&'c Expr> {
        let at = self.left.iter().position(|(known, ..)| *known == name)?;
        Some(self.left.remove(at).2)
    }

    /// Reports what nothing has taken.
    pub(super) fn finish(self, lowering: &mut Lowering<'_>, constructor: &str) {
        for (text, name, _) in self.left {
            let message = format!("unknown keyword argument `{text}` of `{constructor}`");
            lowering.report(name.span, message, "an attribute of the type");
        }
    }

    /// A name of a function or the like: a string or None.
    pub(super) fn text(
        &mut self,
        lowering: &mut Lowering<'_>,
        name: &str,
        default: Option<String>,
    ) -> Option<String> {
        match self.take(name) {
            None => default,
            Some(expr) => lowering.text_value(name, expr).unwrap_or(default),
        }
    }

    /// A C expression: a string, a number, or None.
    pub(super) fn c_expression(
        &mut self,
        lowering: &mut Lowering<'_>,
        name: &str,
    ) -> Option<String> {
        self.take(name)
            .and_then(|expr| lowering.c_expression_value(name, expr))
    }

    pub(super) fn boolean(
        &mut self,
        lowering: &mut Lowering<'_>,
        name: &str,
        default: bool,
    ) -> bool {
        self.take(name)
            .map_or(default, |expr| lowering.boolean_value(name, expr, default))
    }

    pub(super) fn direction(&mut self, lowering: &mut Lowering<'_>) -> Direction {
        let Some(expr) = self.take("dir") else {
            return Direction::Both;
        };
        match &expr.kind {
            ExprKind::Name(name) if name == "DIR_NONE" => Direction::None,
            ExprKind::Name(name) if name == "DIR_IN" => Direction::In,
            ExprKind::Name(name) if name == "DIR_OUT" => Direction::Out,
            ExprKind::Name(name) if name == "DIR_BOTH" => Direction::Both,
            _ => {
                let expected = "DIR_NONE, DIR_IN, DIR_OUT or DIR_BOTH";
                lowering.report(expr.span, "wrong value of `dir`", expected);
                Direction::Both
            }
        }
    }

    pub(super) fn pass_by(&mut self, lowering: &mut Lowering<'_>, default: PassBy) -> PassBy {
        let Some(expr) = self.take("passby") else {
            return default;
        };
        match &expr.kind {
            ExprKind::Name(name) if name == "PASS_BY_VALUE" => PassBy::Value,
            ExprKind::Name(name) if name == "PASS_BY_REFERENCE" => PassBy::Reference,
            _ => {
                let expected = "PASS_BY_VALUE or PASS_BY_REFERENCE";
                lowering.report(expr.span, "wrong value of `passby`", expected);
                default
            }
        }
    }
}

impl Lowering<'_> {
    /// A string or None; anything else is reported.
    pub(super) fn text_value(
        &mut self,
        name: &str,
        expr: &Expr,
    ) -> Result<Option<String>, Reported> {
        match &expr.kind {
            ExprKind::Str(text) => Ok(Some(text.clone())),
            ExprKind::None => Ok(None),
            other => {
                let message = format!("`{name}` cannot be {}", other.describe());
                self.report(expr.span, message, "a string or None");
                Err(Reported)
            }
        }
    }

    pub(super) fn c_expression_value(&mut self, name: &str, expr: &Expr) -> Option<String> {
        match &expr.kind {
            ExprKind::Str(text) => Some(text.clone()),
            ExprKind::Int(value) => Some(value.to_string()),
            ExprKind::Bool(value) => Some(value.to_string()),
            ExprKind::None => None,
            other => {
                let message = format!("`{name}` cannot be {}", other.describe());
                self.report(expr.span, message, "a C expression in a string");
                None
            }
        }
    }

    pub(super) fn boolean_value(&mut self, name: &str, expr: &Expr, default: bool) -> bool {
        if let ExprKind::Bool(value) = expr.kind {
            return value;
        }
        let message = format!("`{name}` cannot be {}", expr.kind.describe());
        self.report(expr.span, message, "True or False");
        default
    }
}
