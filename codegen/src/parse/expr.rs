//! Expressions, by nom over tokens.

use nom::branch::alt;
use nom::combinator::{cut, map, opt};
use nom::error::{ErrorKind, ParseError};
use nom::sequence::preceded;
use nom::{Err, IResult, Parser};

use super::ast::{Call, Expr, ExprKind, Name};
use super::lexer::{Token, TokenKind};
use crate::diagnostic::Span;

/// What is left to parse.
pub(super) type Tokens<'t> = &'t [Token];

/// The result of a parser.
pub(super) type Parsed<'t, T> = IResult<Tokens<'t>, T, Expected>;

/// Where parsing stopped and what would have let it go on. Of two alternatives the one that came
/// further describes the error better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// How many tokens were left.
    pub(super) left: usize,
    pub(super) what: Vec<&'static str>,
}

impl<'t> ParseError<Tokens<'t>> for Expected {
    fn from_error_kind(input: Tokens<'t>, _: ErrorKind) -> Self {
        Self {
            left: input.len(),
            what: Vec::new(),
        }
    }

    fn append(_: Tokens<'t>, _: ErrorKind, other: Self) -> Self {
        other
    }

    fn or(mut self, other: Self) -> Self {
        match self.left.cmp(&other.left) {
            std::cmp::Ordering::Less => self,
            std::cmp::Ordering::Greater => other,
            std::cmp::Ordering::Equal => {
                for what in other.what {
                    if !self.what.contains(&what) {
                        self.what.push(what);
                    }
                }
                self
            }
        }
    }
}

fn expected<'t, T>(input: Tokens<'t>, what: &'static str) -> Parsed<'t, T> {
    Err(Err::Error(Expected {
        left: input.len(),
        what: vec![what],
    }))
}

pub(super) fn punct<'t>(
    c: char,
    what: &'static str,
) -> impl Parser<Tokens<'t>, Output = Span, Error = Expected> {
    move |input: Tokens<'t>| match input {
        [token, rest @ ..] if token.kind == TokenKind::Punct(c) => Ok((rest, token.span)),
        _ => expected(input, what),
    }
}

pub(super) fn name(input: Tokens<'_>) -> Parsed<'_, Name> {
    match input {
        [
            Token {
                kind: TokenKind::Name(text),
                span,
                ..
            },
            rest @ ..,
        ] => Ok((
            rest,
            Name {
                text: text.clone(),
                span: *span,
            },
        )),
        _ => expected(input, "a name"),
    }
}

fn string_token(input: Tokens<'_>) -> Parsed<'_, (String, Span)> {
    match input {
        [
            Token {
                kind: TokenKind::Str(text),
                span,
                ..
            },
            rest @ ..,
        ] => Ok((rest, (text.clone(), *span))),
        _ => expected(input, "a string"),
    }
}

/// One or more adjacent literals, which make one string. At the top level a literal on the next
/// line is a statement of its own.
pub(super) fn string(input: Tokens<'_>) -> Parsed<'_, Expr> {
    let (mut rest, (mut text, mut span)) = string_token(input)?;
    while let Ok((after, (piece, at))) = string_token(rest) {
        text.push_str(&piece);
        span = span.to(at);
        rest = after;
    }
    Ok((
        rest,
        Expr {
            kind: ExprKind::Str(text),
            span,
        },
    ))
}

fn integer(input: Tokens<'_>) -> Parsed<'_, Expr> {
    let (rest, minus) = opt(punct('-', "an integer")).parse(input)?;
    match rest {
        [
            Token {
                kind: TokenKind::Int(value),
                span,
                ..
            },
            rest @ ..,
        ] => {
            let (value, span) = match minus {
                Some(sign) => (-value, sign.to(*span)),
                None => (*value, *span),
            };
            Ok((
                rest,
                Expr {
                    kind: ExprKind::Int(value),
                    span,
                },
            ))
        }
        _ => expected(rest, "an integer"),
    }
}

/// The elements up to the closing bracket, with an optional trailing comma.
fn sequence<'t, T, F>(
    mut input: Tokens<'t>,
    close: char,
    what: &'static str,
    mut element: F,
) -> Parsed<'t, (Vec<T>, Span, bool)>
where
    F: Parser<Tokens<'t>, Output = T, Error = Expected>,
{
    let mut elements = Vec::new();
    let mut comma = false;
    loop {
        if let Ok((rest, span)) = punct(close, what).parse(input) {
            return Ok((rest, (elements, span, comma)));
        }
        let (rest, element) = match element.parse(input) {
            Ok(parsed) => parsed,
            Err(Err::Error(error) | Err::Failure(error)) => {
                let here = Expected {
                    left: input.len(),
                    what: vec![what],
                };
                return Err(Err::Failure(error.or(here)));
            }
            Err(incomplete) => return Err(incomplete),
        };
        elements.push(element);
        input = rest;
        if let Ok((rest, _)) = punct(',', "','").parse(input) {
            input = rest;
            comma = true;
        } else {
            comma = false;
            let (rest, span) = cut(alt((
                punct(close, what),
                preceded(punct(',', "','"), punct(close, what)),
            )))
            .parse(input)?;
            return Ok((rest, (elements, span, comma)));
        }
    }
}

fn list(input: Tokens<'_>) -> Parsed<'_, Expr> {
    let (rest, open) = punct('[', "a list").parse(input)?;
    let (rest, (elements, close, _)) = sequence(rest, ']', "']'", expr)?;
    Ok((
        rest,
        Expr {
            kind: ExprKind::List(elements),
            span: open.to(close),
        },
    ))
}

fn tuple(input: Tokens<'_>) -> Parsed<'_, Expr> {
    let (rest, open) = punct('(', "a tuple").parse(input)?;
    let (rest, (mut elements, close, comma)) = sequence(rest, ')', "')'", expr)?;
    let span = open.to(close);
    // One element without a comma is only that element in brackets.
    if elements.len() == 1 && !comma {
        let kind = elements.remove(0).kind;
        return Ok((rest, Expr { kind, span }));
    }
    Ok((
        rest,
        Expr {
            kind: ExprKind::Tuple(elements),
            span,
        },
    ))
}

fn dict(input: Tokens<'_>) -> Parsed<'_, Expr> {
    let (rest, open) = punct('{', "a dictionary").parse(input)?;
    let entry = (string, cut(punct(':', "':'")), cut(expr));
    let (rest, (entries, close, _)) =
        sequence(rest, '}', "'}'", map(entry, |(key, _, value)| (key, value)))?;
    Ok((
        rest,
        Expr {
            kind: ExprKind::Dict(entries),
            span: open.to(close),
        },
    ))
}

enum Argument {
    /// With how many tokens were left at its start, for a message.
    Positional(Expr, usize),
    Keyword(Name, Expr),
}

fn argument(input: Tokens<'_>) -> Parsed<'_, Argument> {
    let keyword = (name, punct('=', "'='"), cut(expr));
    alt((
        map(keyword, |(name, _, value)| Argument::Keyword(name, value)),
        map(expr, |value| Argument::Positional(value, input.len())),
    ))
    .parse(input)
}

/// The arguments of a call, from behind its opening bracket on.
pub(super) fn call_arguments(callee: Name, input: Tokens<'_>) -> Parsed<'_, (Call, Span)> {
    let (rest, (arguments, close, _)) = sequence(input, ')', "')'", argument)?;
    let span = callee.span.to(close);
    let mut call = Call {
        callee,
        args: Vec::new(),
        keywords: Vec::new(),
    };
    for argument in arguments {
        match argument {
            Argument::Positional(value, _) if call.keywords.is_empty() => call.args.push(value),
            Argument::Positional(_, left) => {
                let what = vec!["keyword arguments only behind the first one"];
                return Err(Err::Failure(Expected { left, what }));
            }
            Argument::Keyword(name, value) => call.keywords.push((name, value)),
        }
    }
    Ok((rest, (call, span)))
}

fn name_or_call(input: Tokens<'_>) -> Parsed<'_, Expr> {
    let (rest, name) = name(input)?;
    if let Ok((inside, _)) = punct('(', "'('").parse(rest) {
        let (rest, (call, span)) = call_arguments(name, inside)?;
        return Ok((
            rest,
            Expr {
                kind: ExprKind::Call(call),
                span,
            },
        ));
    }
    let kind = match name.text.as_str() {
        "None" => ExprKind::None,
        "True" => ExprKind::Bool(true),
        "False" => ExprKind::Bool(false),
        _ => ExprKind::Name(name.text),
    };
    Ok((
        rest,
        Expr {
            kind,
            span: name.span,
        },
    ))
}

/// Any expression. The lexer bounds how deep it can nest.
pub(super) fn expr(input: Tokens<'_>) -> Parsed<'_, Expr> {
    alt((name_or_call, string, integer, tuple, list, dict))
        .parse(input)
        .map_err(|error| {
            error.map(|error| {
                if error.left == input.len() {
                    return Expected {
                        what: vec!["a value"],
                        ..error
                    };
                }
                error
            })
        })
}
