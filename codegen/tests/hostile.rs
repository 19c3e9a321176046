//! Input that somebody wrote to take the compiler's time, its memory or its stack. Each of these took more
//! than there is, before it was seen to.

use libxl_idl::{NESTING_LIMIT, compile};
use std::fmt::Write as _;

/// Definitions that each use the one before them, in two fields.
fn each_uses_the_last(count: usize) -> String {
    let mut source = String::from("t0 = Struct(None, [('x', integer)])\n");
    for n in 1..count {
        let last = n - 1;
        let _ = writeln!(
            source,
            "t{n} = Struct(None, [('x', t{last}), ('y', t{last})])"
        );
    }
    source
}

#[test]
fn nameless_types_that_use_each_other_are_looked_at_once() {
    let report = compile(&each_uses_the_last(64), "x").unwrap_err();
    assert_eq!(report.list().len(), 64);
}

#[test]
fn a_long_chain_of_types_does_not_need_a_deep_stack() {
    let source = each_uses_the_last(50_000);
    assert_eq!(compile(&source, "x").unwrap_err().list().len(), 50_000);
}

#[test]
fn nesting_up_to_the_limit_and_far_beyond_it_is_read_on_a_small_stack() {
    let read = |depth: usize| {
        let source = format!("t = Struct('t', {}", "[(".repeat(depth));
        assert!(compile(&source, "x").is_err());
        let complete = format!("t = {}1{}", "(".repeat(depth), ")".repeat(depth));
        assert!(compile(&complete, "x").is_err());
    };
    let thread = std::thread::Builder::new().stack_size(1 << 20);
    let reader = thread.spawn(move || [1, NESTING_LIMIT, 1_000_000].map(read));
    reader.unwrap().join().unwrap();
}

#[test]
fn a_report_does_not_grow_with_what_is_wrong() {
    for source in [
        "?".repeat(200_000),
        "?\n".repeat(200_000),
        format!("a = {}", "é".repeat(200_000)),
        format!("{} = b\n", "a".repeat(200_000)),
    ] {
        let report = compile(&source, "x").unwrap_err().to_string();
        assert!(report.len() < 600_000, "{} bytes", report.len());
        assert!(report.lines().count() < 1000);
    }
}

#[test]
fn a_long_name_that_is_unknown_is_not_compared_with_long_ones() {
    let (a, b) = ("a".repeat(100_000), "b".repeat(100_000));
    let source = format!("{a} = Struct('s', [])\nt = Struct('t', [('x', {b})])\n");
    let report = compile(&source, "x").unwrap_err();
    assert!(report.list()[0].message.starts_with("unknown type"));
}

#[test]
fn of_a_long_line_what_is_around_the_error_is_shown() {
    let source = format!("{}a = ?{}\n", "# é\n", " # é".repeat(1000));
    let report = compile(&source, "x").unwrap_err().to_string();
    let lines: Vec<&str> = report.lines().collect();
    assert!(lines[1].starts_with("2 | a = ? # é"), "{}", lines[1]);
    assert!(lines[1].len() < 300);
    assert_eq!(lines[2].find('^'), lines[1].find('?'), "{report}");
    let source = format!("a = Struct('{}', ?)\n", "é".repeat(1000));
    let report = compile(&source, "x").unwrap_err().to_string();
    let lines: Vec<&str> = report.lines().collect();
    let column = |line: &str, c: char| line.chars().position(|other| other == c);
    assert_eq!(column(lines[2], '^'), column(lines[1], '?'), "{report}");
    assert!(lines[0].contains(":1:1016:"), "{}", lines[0]);
}
