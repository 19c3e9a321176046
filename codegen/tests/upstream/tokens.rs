//! The tokens of a C header, without comments and include guards.

use std::iter::Peekable;
use std::str::Chars;

/// Splits a header into tokens.
pub(crate) fn tokens(text: &str) -> Vec<String> {
    let text = without_comments(text);
    let guardless: String = text
        .lines()
        .filter(|line| {
            !["#ifndef", "#define", "#endif"]
                .iter()
                .any(|word| line.starts_with(word))
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut tokens = Vec::new();
    let mut characters = guardless.chars().peekable();
    while let Some(first) = characters.next() {
        if is_word(first) {
            tokens.push(word(first, &mut characters));
        } else if !first.is_whitespace() {
            tokens.push(first.to_string());
        }
    }
    tokens
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn word(first: char, characters: &mut Peekable<Chars<'_>>) -> String {
    let mut word = String::from(first);
    while let Some(next) = characters.next_if(|&c| is_word(c)) {
        word.push(next);
    }
    word
}

fn without_comments(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("/*") {
        plain.push_str(before);
        plain.push(' ');
        rest = after.split_once("*/").map_or("", |(_, after)| after);
    }
    plain + rest
}
