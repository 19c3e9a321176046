//! From text to tokens.

use nom::branch::alt;
use nom::bytes::complete::{tag, take_while, take_while1};
use nom::character::complete::{char, satisfy};
use nom::combinator::{map, not, opt, peek, recognize};
use nom::sequence::{pair, preceded};
use nom::{IResult, Parser};

use super::NESTING_LIMIT;
use crate::diagnostic::{Diagnostic, Span};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Name(String),
    Int(i64),
    Str(String),
    Punct(char),
    /// Something that was already reported.
    Bad,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) span: Span,
    /// Nothing but blanks stands before it on its line.
    pub(super) starts_line: bool,
    /// It stands in the first column.
    pub(super) first_column: bool,
}

#[derive(Debug, Default)]
pub(super) struct Lexed {
    pub(super) tokens: Vec<Token>,
    pub(super) comments: Vec<Span>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// What a lexical element can be; blanks and comments make no token.
enum Element {
    Blank,
    Newline,
    Comment,
    Token(TokenKind),
    /// An element that is recognised but wrong.
    Wrong(&'static str, &'static str),
}

pub(super) fn lex(source: &str) -> Lexed {
    let mut lexed = Lexed::default();
    let mut rest = source.strip_prefix('\u{feff}').unwrap_or(source);
    let mut starts_line = true;
    let mut first_column = true;
    let mut depth = 0_usize;
    while !rest.is_empty() {
        let start = source.len() - rest.len();
        let (after, element) = element(rest).unwrap_or_else(|_| {
            let width = rest.chars().next().map_or(1, char::len_utf8);
            (
                &rest[width..],
                Element::Wrong("unexpected character", "a name, a string or a number"),
            )
        });
        let span = Span::new(start, source.len() - after.len());
        rest = after;
        let kind = match element {
            Element::Blank => {
                first_column = false;
                continue;
            }
            Element::Newline => {
                starts_line = true;
                first_column = true;
                continue;
            }
            Element::Comment => {
                lexed.comments.push(span);
                continue;
            }
            Element::Token(kind) => kind,
            Element::Wrong(message, expected) => {
                lexed
                    .diagnostics
                    .push(Diagnostic::new(span, message).expected(expected));
                TokenKind::Bad
            }
        };
        match kind {
            TokenKind::Punct('(' | '[' | '{') => depth += 1,
            TokenKind::Punct(')' | ']' | '}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > NESTING_LIMIT {
            let message = format!("brackets are nested more than {NESTING_LIMIT} deep");
            lexed.diagnostics.push(Diagnostic::new(span, message));
            // What follows cannot be parsed without the stack that the limit is there to save.
            lexed.tokens.push(Token {
                kind: TokenKind::Bad,
                span,
                starts_line,
                first_column,
            });
            break;
        }
        lexed.tokens.push(Token {
            kind,
            span,
            starts_line,
            first_column,
        });
        starts_line = false;
        first_column = false;
    }
    lexed
}

fn element(input: &str) -> IResult<&str, Element> {
    alt((
        map(
            take_while1(|c| matches!(c, ' ' | '\t' | '\r' | '\x0c')),
            |_| Element::Blank,
        ),
        map((char('\\'), opt(char('\r')), char('\n')), |_| {
            Element::Blank
        }),
        map(char('\n'), |_| Element::Newline),
        map((char('#'), take_while(|c| c != '\n')), |_| Element::Comment),
        string,
        number,
        map(name, |text| {
            Element::Token(TokenKind::Name(text.to_owned()))
        }),
        map(satisfy(|c| "()[]{},=:-".contains(c)), |c| {
            Element::Token(TokenKind::Punct(c))
        }),
    ))
    .parse(input)
}

fn name(input: &str) -> IResult<&str, &str> {
    recognize(pair(
        satisfy(|c| c.is_ascii_alphabetic() || c == '_'),
        take_while(|c: char| c.is_ascii_alphanumeric() || c == '_'),
    ))
    .parse(input)
}

fn number(input: &str) -> IResult<&str, Element> {
    let (rest, digits) = preceded(
        peek(satisfy(|c| c.is_ascii_digit())),
        take_while1(is_number_character),
    )
    .parse(input)?;
    let parsed = match digits.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => i64::from_str_radix(&digits[2..], 16),
        Some("0o") => i64::from_str_radix(&digits[2..], 8),
        Some("0b") => i64::from_str_radix(&digits[2..], 2),
        _ => digits.parse(),
    };
    Ok((
        rest,
        parsed.map_or(
            Element::Wrong(
                "malformed number",
                "a decimal or hexadecimal integer of 64 bits",
            ),
            |value| Element::Token(TokenKind::Int(value)),
        ),
    ))
}

fn is_number_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}

fn string(input: &str) -> IResult<&str, Element> {
    let (rest, quote) = alt((tag("\"\"\""), tag("'''"), tag("\""), tag("'"))).parse(input)?;
    let long = quote.len() == 3;
    let mut text = String::new();
    let mut rest = rest;
    loop {
        if let Some(after) = rest.strip_prefix(quote) {
            return Ok((after, Element::Token(TokenKind::Str(text))));
        }
        if rest.is_empty() || (!long && rest.starts_with('\n')) {
            let expected = match quote {
                "\"" => "a closing \"",
                "'" => "a closing '",
                "'''" => "a closing '''",
                _ => "a closing \"\"\"",
            };
            return Ok((rest, Element::Wrong("unterminated string", expected)));
        }
        let (after, piece) =
            alt((escape, map(nom::character::complete::anychar, Some))).parse(rest)?;
        text.extend(piece);
        rest = after;
    }
}

/// An escape sequence; `None` for an escaped line end. One that is unknown stands for itself, so
/// only its backslash is consumed.
fn escape(input: &str) -> IResult<&str, Option<char>> {
    let (rest, _) = char('\\').parse(input)?;
    alt((
        map(pair(opt(char('\r')), char('\n')), |_| None),
        map(char('n'), |_| Some('\n')),
        map(char('t'), |_| Some('\t')),
        map(char('r'), |_| Some('\r')),
        map(satisfy(|c| "\\'\"".contains(c)), Some),
        map(not(satisfy(|c| "\n\r\\'\"ntr".contains(c))), |()| {
            Some('\\')
        }),
    ))
    .parse(rest)
}
