//! The resolved model as JSON.

use crate::model::Model;

/// The model as indented JSON. Types refer to each other by their index in `types`.
pub fn json(model: &Model) -> String {
    let mut text = serde_json::to_string_pretty(model)
        .expect("a model has only string keys and no value that can fail");
    text.push('\n');
    text
}
