//! Configurations, value by value.

use crate::error::{Error, ErrorKind, Result};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;

/// A value that is another one, or is in one of the two configurations alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Changed {
    /// The way to it: `b_info.max_memkb`, `disks[0].pdev_path`.
    pub key: String,
    /// In the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// In the second one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

pub(super) fn compare(from: &str, to: &str) -> Result<Vec<Changed>> {
    let parse = |text: &str| -> Result<Value> {
        serde_json::from_str(text).map_err(|error| {
            Error::new(ErrorKind::Corrupt, "read a domain's configuration").because(error)
        })
    };
    let mut changed = Vec::new();
    walk("", Some(&parse(from)?), Some(&parse(to)?), &mut changed);
    Ok(changed)
}

fn walk(key: &str, from: Option<&Value>, to: Option<&Value>, changed: &mut Vec<Changed>) {
    match (from, to) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in keys {
                let way = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                walk(&way, a.get(name), b.get(name), changed);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            for at in 0..a.len().max(b.len()) {
                walk(&format!("{key}[{at}]"), a.get(at), b.get(at), changed);
            }
        }
        (from, to) if from == to => {}
        (from, to) => changed.push(Changed {
            key: key.to_owned(),
            from: from.cloned(),
            to: to.cloned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_value_that_differs_is_named_once() {
        let from = json!({ "a": 1, "b": { "c": [1, 2], "d": "x" }, "e": [{ "f": true }] });
        let to = json!({ "a": 1, "b": { "c": [1, 3, 4] }, "e": [{ "f": false }], "g": null });
        let changed = compare(&from.to_string(), &to.to_string()).unwrap();
        let keys: Vec<_> = changed.iter().map(|changed| &*changed.key).collect();
        assert_eq!(keys, ["b.c[1]", "b.c[2]", "b.d", "e[0].f", "g"]);
        assert_eq!(
            (&changed[2].from, &changed[2].to),
            (&Some(json!("x")), &None)
        );
        assert_eq!(compare(&from.to_string(), &from.to_string()).unwrap(), []);
        assert!(compare("{}", "no JSON").is_err());
    }
}
