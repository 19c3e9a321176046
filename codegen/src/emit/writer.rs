//! Text in lines, indented by the depth of the block that they are in.

/// The lines so far.
#[derive(Debug, Default)]
pub(super) struct Writer {
    text: String,
    /// How many blocks are open.
    pub(super) depth: usize,
}

impl Writer {
    /// Adds a line. An empty one is not indented.
    pub(super) fn line(&mut self, text: &str) {
        if !text.is_empty() {
            self.text.push_str(&"    ".repeat(self.depth));
            self.text.push_str(text);
        }
        self.text.push('\n');
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}
