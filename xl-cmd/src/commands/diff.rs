//! `snapshot-diff`

use super::{Context, print, print_json};
use crate::args::Diff;
use libxl_ext::Result;
use libxl_ext::diff::{Changed, Difference, DiskDifference, PageDifference};
use serde_json::Value;

pub(super) fn run(context: &Context, args: &Diff) -> Result<()> {
    let names = [&*args.from, &*args.to];
    let found = context.host.diff(&args.domain, names, &context.terminal)?;
    context.terminal.finish();
    if args.json {
        print_json(&found)
    } else {
        print(&words(&found, names))
    }
}

fn words(found: &Difference, names: [&str; 2]) -> String {
    let mut lines = Vec::new();
    for Changed { key, from, to } in found.configuration.iter().flatten() {
        let value = |value: &Option<Value>| value.as_ref().map_or("-".into(), Value::to_string);
        lines.push(format!("{key}: {} -> {}", value(from), value(to)));
    }
    lines.extend(found.disks.iter().map(|found| disk(found, names)));
    match &found.memory {
        Some(found) => lines.push(pages(found, names)),
        None => lines.push("memory: one of the two holds none".into()),
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

fn disk(found: &DiskDifference, [from, to]: [&str; 2]) -> String {
    let vdev = &found.vdev;
    match (found.from_bytes, found.to_bytes) {
        (Some(before), Some(after)) => {
            let length = if before == after {
                String::new()
            } else {
                format!(", and it has {after} bytes instead of {before}")
            };
            format!(
                "{vdev}: {} bytes differ, in {} ranges{length}",
                found.changed_bytes, found.ranges
            )
        }
        (Some(_), None) => format!("{vdev}: only '{from}' holds it"),
        _ => format!("{vdev}: only '{to}' holds it"),
    }
}

fn pages(found: &PageDifference, [from, to]: [&str; 2]) -> String {
    format!(
        "memory: {} of {} pages differ, {} are only in '{from}', {} only in '{to}'",
        found.changed, found.from_pages, found.only_from, found.only_to
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_difference_is_a_line() {
        let disk = |vdev: &str, from_bytes, to_bytes| DiskDifference {
            vdev: vdev.into(),
            from_bytes,
            to_bytes,
            changed_bytes: 8192,
            ranges: 2,
        };
        let found = Difference {
            configuration: Some(vec![Changed {
                key: "b_info.max_memkb".into(),
                from: Some(json!(1)),
                to: None,
            }]),
            disks: vec![
                disk("xvda", Some(1), Some(1)),
                disk("xvdb", Some(1), Some(2)),
                disk("xvdc", None, Some(2)),
            ],
            memory: Some(PageDifference {
                from_pages: 10,
                to_pages: 11,
                changed: 3,
                only_from: 0,
                only_to: 1,
                page_bytes: 4096,
            }),
        };
        insta::assert_snapshot!(words(&found, ["a", "b"]), @r"
        b_info.max_memkb: 1 -> -
        xvda: 8192 bytes differ, in 2 ranges
        xvdb: 8192 bytes differ, in 2 ranges, and it has 2 bytes instead of 1
        xvdc: only 'b' holds it
        memory: 3 of 10 pages differ, 0 are only in 'a', 1 only in 'b'
        ");
    }
}
