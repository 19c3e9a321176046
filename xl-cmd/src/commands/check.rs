//! `snapshot-check`

use super::{Context, print, print_json};
use crate::args::Check;
use libxl_ext::check::{Finding, Findings};
use libxl_ext::{Error, ErrorKind, Result};
use serde_json::json;

pub(super) fn run(context: &Context, args: &Check) -> Result<()> {
    let terminal = &context.terminal;
    let inspection = context.host.inspect(&args.domain, args.repair, terminal)?;
    let found = inspection.found().clone();
    terminal.finish();
    if !args.json {
        print(&words(&found, args.repair))?;
    }
    let left = if args.repair {
        let left = inspection.repair(terminal)?;
        terminal.finish();
        left
    } else {
        found.clone()
    };
    if args.json {
        print_json(&json!({
            "domain": args.domain,
            "findings": found.findings,
            "repairs": found.repairs,
            "repaired": args.repair,
            "left": left.findings,
        }))?;
    } else if args.repair && found != left && !left.findings.is_empty() {
        print("What is left:\n")?;
        print(&words(&left, true))?;
    }
    match left.findings.len() {
        0 => Ok(()),
        count => Err(not_well(count, &left, args.repair)),
    }
}

fn not_well(count: usize, left: &Findings, repaired: bool) -> Error {
    let error = Error::new(ErrorKind::Corrupt, super::things_amiss(count));
    match (repaired, left.repairs.len()) {
        (true, _) => error.hint("what would lose something if it were mended is left to you"),
        (false, 0) => error,
        (false, _) => error.hint("--repair does what is listed after the findings"),
    }
}

fn words(found: &Findings, repair: bool) -> String {
    if found.findings.is_empty() {
        return "The store says what is there\n".into();
    }
    let findings = found.findings.iter().map(Finding::to_string);
    let how = if repair { "repair" } else { "--repair would" };
    let repairs = found
        .repairs
        .iter()
        .map(|repair| format!("{how}: {repair}"));
    let lines = findings.chain(repairs);
    lines.map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use libxl_ext::check::{FindingKind, Repair};

    #[test]
    fn what_is_found_comes_before_what_is_done() {
        assert_eq!(
            words(&Findings::default(), false),
            "The store says what is there\n"
        );
        let found = Findings {
            findings: vec![Finding {
                kind: FindingKind::StaleCopy,
                snapshot: Some("first".into()),
                path: None,
                what: "there is no copy of its record".into(),
            }],
            repairs: vec![Repair::WriteCopies],
        };
        insta::assert_snapshot!(words(&found, false), @r"
        first: there is no copy of its record
        --repair would: write the copies of what the record says
        ");
        insta::assert_snapshot!(words(&found, true), @r"
        first: there is no copy of its record
        repair: write the copies of what the record says
        ");
    }
}
