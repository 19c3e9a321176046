//! Doc comments from the comments of the IDL.

use proc_macro2::TokenStream;
use quote::quote;

/// The comment as documentation, or the fallback where there is none.
pub(super) fn docs(comment: Option<&String>, fallback: &str) -> TokenStream {
    let text = comment.map_or_else(|| fallback.to_owned(), |comment| escape(comment));
    let lines = text.lines().map(|line| {
        let line = if line.is_empty() {
            String::new()
        } else {
            format!(" {line}")
        };
        quote!(#[doc = #line])
    });
    quote!(#(#lines)*)
}

/// Keeps the text from meaning anything to rustdoc: an indented line would be a test, a word in
/// brackets a link.
fn escape(comment: &str) -> String {
    let lines = comment.lines().map(|line| {
        let mut code = false;
        let mut escaped = String::new();
        for c in line.trim().chars() {
            code ^= c == '`';
            if !code && matches!(c, '[' | ']' | '<' | '>' | '*') {
                escaped.push('\\');
            }
            escaped.push(c);
        }
        // An unpaired backquote would swallow what follows.
        if code {
            escaped.replace('`', "\\`")
        } else {
            escaped
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}
