//! Diagnostics: what is wrong with an input, where, and what was expected instead.

use std::fmt;
use std::ops::Range;

/// How many errors of one input are shown.
const SHOWN_MAX: usize = 100;

/// Longest line that is shown as it is, in bytes; of a longer one, what is around the error.
const LINE_MAX: usize = 240;

/// A range of bytes in the source text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset after the last byte.
    pub end: usize,
}

impl Span {
    /// The span from `start` up to, not including, `end`.
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// The smallest span that covers both.
    #[must_use]
    pub fn to(self, other: Self) -> Self {
        Self::new(self.start.min(other.start), self.end.max(other.end))
    }
}

impl From<Span> for Range<usize> {
    fn from(span: Span) -> Self {
        span.start..span.end
    }
}

/// One error, placed in the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What it is about; the caret points at its start.
    pub span: Span,
    /// What is wrong.
    pub message: String,
    /// What would have been right, where that can be said.
    pub expected: Option<String>,
}

impl Diagnostic {
    /// A diagnostic without a hint.
    pub fn new(span: Span, message: impl Into<String>) -> Self {
        Self {
            span,
            message: message.into(),
            expected: None,
        }
    }

    /// Adds what would have been right.
    #[must_use]
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }
}

/// Every error found in one input, in source order. `Display` renders them for a terminal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Diagnostics {
    file: String,
    text: String,
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Sorts the list by position and drops exact repetitions.
    pub fn new(file: &str, source: &str, mut list: Vec<Diagnostic>) -> Self {
        list.sort_by(|a, b| (a.span, &a.message).cmp(&(b.span, &b.message)));
        list.dedup();
        Self {
            file: file.to_owned(),
            text: source.to_owned(),
            list,
        }
    }

    /// The errors, in source order.
    pub fn list(&self) -> &[Diagnostic] {
        &self.list
    }

    /// Line and column, both from 1, the column in characters.
    pub fn position(&self, diagnostic: &Diagnostic) -> (usize, usize) {
        let at = floor_char_boundary(&self.text, diagnostic.span.start);
        let before = &self.text[..at];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (
            before.matches('\n').count() + 1,
            before[line_start..].chars().count() + 1,
        )
    }

    fn render(&self, diagnostic: &Diagnostic, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column) = self.position(diagnostic);
        writeln!(
            f,
            "{}:{line}:{column}: error: {}",
            self.file, diagnostic.message
        )?;
        let start = floor_char_boundary(&self.text, diagnostic.span.start);
        let line_start = self.text[..start]
            .rfind('\n')
            .map_or(0, |newline| newline + 1);
        let text = self.text[line_start..].lines().next().unwrap_or("");
        let (line_start, text) = excerpt(text, line_start, start);
        let gutter = line.to_string();
        writeln!(f, "{gutter} | {text}")?;
        // A tab stays a tab, so that the caret stands below its character whatever the tab width.
        let indent: String = self.text[line_start..start]
            .chars()
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let end = floor_char_boundary(&self.text, diagnostic.span.end.max(start));
        let on_line = end.min(line_start + text.len()).max(start);
        let tildes = self.text[start..on_line].chars().count().saturating_sub(1);
        write!(
            f,
            "{} | {indent}^{}",
            " ".repeat(gutter.len()),
            "~".repeat(tildes)
        )?;
        if let Some(expected) = &diagnostic.expected {
            write!(f, " expected {expected}")?;
        }
        writeln!(f)
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in self.list.iter().take(SHOWN_MAX) {
            self.render(diagnostic, f)?;
        }
        let plural = if self.list.len() == 1 { "" } else { "s" };
        write!(f, "{}: {} error{plural}", self.file, self.list.len())
    }
}

/// The part of a line that is shown for an error at `at`, and where it begins; both are offsets in the text.
fn excerpt(line: &str, line_start: usize, at: usize) -> (usize, &str) {
    if line.len() <= LINE_MAX {
        return (line_start, line);
    }
    let column = (at - line_start).min(line.len());
    let from = floor_char_boundary(line, column.saturating_sub(LINE_MAX / 3));
    let to = floor_char_boundary(line, from + LINE_MAX);
    (line_start + from, &line[from..to])
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
