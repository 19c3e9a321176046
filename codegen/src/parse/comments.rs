//! Comments, and which item each of them describes.

use std::collections::BTreeMap;

use super::lexer::Token;
use crate::diagnostic::Span;

/// The comments of a file by line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Comments {
    line_starts: Vec<usize>,
    /// Comments that have their line for themselves.
    own_line: BTreeMap<usize, String>,
    /// Comments behind code.
    trailing: BTreeMap<usize, String>,
    /// The offset of the last token that starts on each line.
    last_token: BTreeMap<usize, usize>,
}

impl Comments {
    pub(super) fn new(source: &str, comments: &[Span], tokens: &[Token]) -> Self {
        let mut this = Self {
            line_starts: std::iter::once(0)
                .chain(source.match_indices('\n').map(|(at, _)| at + 1))
                .collect(),
            ..Self::default()
        };
        for token in tokens {
            let line = this.line(token.span.start);
            this.last_token.insert(line, token.span.end);
        }
        for &span in comments {
            let line = this.line(span.start);
            let text = source[span.start..span.end].trim_start_matches('#');
            let text = text.strip_prefix(' ').unwrap_or(text).trim_end().to_owned();
            let before = &source[this.line_starts[line]..span.start];
            let kind = if before.trim().is_empty() {
                &mut this.own_line
            } else {
                &mut this.trailing
            };
            kind.insert(line, text);
        }
        this
    }

    fn line(&self, offset: usize) -> usize {
        self.line_starts
            .partition_point(|&start| start <= offset)
            .saturating_sub(1)
    }

    /// The comment that describes the item at `span`: the block directly above it, else, for an
    /// item that ends its line, the comment behind it.
    pub(crate) fn describing(&self, span: Span) -> Option<String> {
        let first = self.line(span.start);
        let mut lines: Vec<&str> = (0..first)
            .rev()
            .map_while(|line| self.own_line.get(&line))
            .map(String::as_str)
            .collect();
        lines.reverse();
        let mut lines: &[&str] = &lines;
        while let [first, rest @ ..] = lines
            && first.trim().is_empty()
        {
            lines = rest;
        }
        while let [rest @ .., last] = lines
            && last.trim().is_empty()
        {
            lines = rest;
        }
        if !lines.is_empty() {
            return Some(lines.join("\n"));
        }
        let line = self.line(span.end.saturating_sub(1));
        // Behind the item only its comma may stand, or the comment describes something else.
        let ends_line = self
            .last_token
            .get(&line)
            .is_some_and(|&end| end <= span.end + 1);
        self.trailing
            .get(&line)
            .filter(|text| ends_line && !text.is_empty())
            .cloned()
    }
}
