//! From text to syntax tree. The input is only ever read, never executed.

pub(crate) mod ast;
mod comments;
mod expr;
mod lexer;
mod statement;

use crate::diagnostic::Diagnostic;

/// How deep brackets may nest. libxl's own files need nine levels; the limit keeps hostile input
/// from exhausting the stack.
pub const NESTING_LIMIT: usize = 48;

/// Parses a whole file. Statements that are wrong are reported and left out of the tree.
pub(crate) fn parse(source: &str) -> (ast::File, Vec<Diagnostic>) {
    let lexed = lexer::lex(source);
    let mut diagnostics = lexed.diagnostics;
    let statements = statement::statements(&lexed.tokens, &mut diagnostics);
    let comments = comments::Comments::new(source, &lexed.comments, &lexed.tokens);
    (
        ast::File {
            statements,
            comments,
        },
        diagnostics,
    )
}
