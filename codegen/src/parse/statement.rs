//! Statements, and how to go on behind one that is wrong.

use nom::Err;
use nom::Parser;

use super::ast::{Name, Statement};
use super::expr::{Expected, Parsed, Tokens, call_arguments, expr, name, punct, string};
use super::lexer::{Token, TokenKind};
use crate::diagnostic::{Diagnostic, Span};

/// All statements that can be parsed; an error for each that cannot.
pub(super) fn statements(tokens: &[Token], diagnostics: &mut Vec<Diagnostic>) -> Vec<Statement> {
    let mut statements = Vec::new();
    let mut input = tokens;
    while !input.is_empty() {
        match complete_statement(input) {
            Ok((rest, statement)) => {
                statements.push(statement);
                input = rest;
            }
            Err(Err::Error(error) | Err::Failure(error)) => {
                diagnostics.extend(describe(tokens, &error));
                if let [first, second, ..] = input
                    && let TokenKind::Name(text) = &first.kind
                    && second.kind == TokenKind::Punct('=')
                {
                    let name = Name {
                        text: text.clone(),
                        span: first.span,
                    };
                    statements.push(Statement::Broken { name });
                }
                input = recover(&input[1..]);
            }
            Err(Err::Incomplete(_)) => break,
        }
    }
    statements
}

/// Skips to what looks like the next statement: a name in the first column that is assigned or
/// called. Brackets are no guide here, for a missing one is the likeliest error.
fn recover(mut input: Tokens<'_>) -> Tokens<'_> {
    loop {
        match input {
            [] => return input,
            [first, second, ..]
                if first.first_column
                    && matches!(first.kind, TokenKind::Name(_))
                    && matches!(second.kind, TokenKind::Punct('=' | '(')) =>
            {
                return input;
            }
            [_, rest @ ..] => input = rest,
        }
    }
}

fn describe(tokens: &[Token], error: &Expected) -> Option<Diagnostic> {
    let found = tokens
        .len()
        .checked_sub(error.left)
        .and_then(|at| tokens.get(at));
    let (span, what) = match found {
        // Behind the last token is where something is missing, not behind the last comment.
        None => {
            let end = tokens.last().map_or(0, |token| token.span.end);
            (Span::new(end, end), "the end of the file".to_owned())
        }
        Some(Token { kind, span, .. }) => {
            let what = match kind {
                // The lexer has reported it.
                TokenKind::Bad => return None,
                TokenKind::Name(text) => format!("`{text}`"),
                TokenKind::Int(value) => format!("`{value}`"),
                TokenKind::Str(_) => "a string".to_owned(),
                TokenKind::Punct(c) => format!("`{c}`"),
            };
            (*span, what)
        }
    };
    let diagnostic = Diagnostic::new(span, format!("syntax error at {what}"));
    Some(match error.what.as_slice() {
        [] => diagnostic,
        what => diagnostic.expected(what.join(" or ")),
    })
}

fn fail<'t, T>(input: Tokens<'t>, what: &'static str) -> Parsed<'t, T> {
    Err(Err::Failure(Expected {
        left: input.len(),
        what: vec![what],
    }))
}

/// A line end separates statements, so nothing outside of brackets may continue behind one.
fn same_line<'t>(input: Tokens<'t>, what: &'static str) -> Parsed<'t, ()> {
    match input {
        [token, ..] if token.starts_line => fail(input, what),
        _ => Ok((input, ())),
    }
}

fn complete_statement(input: Tokens<'_>) -> Parsed<'_, Statement> {
    if let [token, ..] = input
        && !token.first_column
    {
        let what = if token.starts_line {
            "a statement in the first column"
        } else {
            "a line end"
        };
        return fail(input, what);
    }
    let (rest, statement) = statement(input)?;
    match rest {
        [token, ..] if !token.starts_line => fail(rest, "a line end"),
        _ => Ok((rest, statement)),
    }
}

fn statement(input: Tokens<'_>) -> Parsed<'_, Statement> {
    if let Ok((rest, _)) = string(input) {
        return Ok((rest, Statement::Docstring));
    }
    let Ok((rest, name)) = name(input) else {
        return fail(input, "a definition (`name = ...`)");
    };
    let Name { text, span } = &name;
    if matches!(text.as_str(), "None" | "True" | "False") {
        return fail(input, "a definition (`name = ...`)");
    }
    same_line(rest, "'=' or '('")?;
    if let Ok((inside, _)) = punct('(', "'('").parse(rest) {
        let start = *span;
        let (rest, (call, end)) = call_arguments(name, inside)?;
        return Ok((
            rest,
            Statement::Directive {
                call,
                span: start.to(end),
            },
        ));
    }
    let Ok((rest, _)) = punct('=', "'='").parse(rest) else {
        return fail(rest, "'=' or '('");
    };
    same_line(rest, "a value")?;
    let (rest, value) = expr(rest)?;
    Ok((rest, Statement::Assign { name, value }))
}
