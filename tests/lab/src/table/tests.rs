use std::path::PathBuf;

use super::*;
use crate::coverage::Cells;
use crate::step::Step;
use crate::steps;

const LIMITS: &str = "\
# Limits

| limit | reason |
|---|---|
| not of the table | it has no anchor |

| entry | cells | why |
|---|---|---|
| <a id=\"no-live\"></a>no-live | `create-live pv all`, `create-live hvm internal+raw` | the hypervisor said no on 1 January |
| <a id=\"slow\"></a>slow | `verify+killed pvh+hvm all` | it would take four minutes more |
";

fn result(name: &str, outcome: Outcome, cells: &[Cells]) -> StepResult {
    StepResult {
        name: name.to_owned(),
        outcome,
        xen: "4.17.6".to_owned(),
        cells: cells.iter().flat_map(|cells| cells.iter()).collect(),
    }
}

fn results() -> Vec<StepResult> {
    use Disks::{External, Internal, Mixed};
    use Feature::{Create, CreateLive, Revert, Verify};
    let both = &[Internal, External];
    vec![
        result(
            "ts-b",
            Outcome::Passed,
            &[Cells::pv(&[Create, Revert], both)],
        ),
        result("ts-a", Outcome::Passed, &[Cells::pv(&[Create], both)]),
        result(
            "ts-fails",
            Outcome::Failed,
            &[Cells::pv(&[Create], &[Mixed])],
        ),
        result(
            "ts-skipped",
            Outcome::Skipped,
            &[Cells::pvh(&[CreateLive], &[Mixed])],
        ),
        result(
            "ts-hvm",
            Outcome::Passed,
            &[Cells::hvm(&[Verify], &[Mixed])],
        ),
    ]
}

#[test]
fn the_page_names_steps_that_passed_and_entries_of_limits() {
    let (page, open) = render(&results(), &Limits::parse(LIMITS).unwrap());
    insta::assert_snapshot!(page);
    assert_eq!(page.matches("**not run**").count(), open.len());
    assert!(!page.contains("ts-fails") && !page.contains("ts-skipped"));
}

#[test]
fn a_claim_needs_a_step_that_passed() {
    let limits = Limits::parse(LIMITS).unwrap();
    let (page, _) = render(&results(), &limits);
    assert_eq!(unfounded(&page, &results()).unwrap(), [""; 0]);

    let mut now = results();
    now[0].outcome = Outcome::Failed;
    assert_eq!(
        unfounded(&page, &now).unwrap(),
        [
            "PV, create, guest running, qcow2 internal: ts-b",
            "PV, create, guest running, qcow2 external: ts-b",
            "PV, revert, guest running, qcow2 internal: ts-b",
            "PV, revert, guest running, qcow2 external: ts-b",
        ]
    );
    now[0].outcome = Outcome::Skipped;
    assert_eq!(
        unfounded(&page, &now).unwrap(),
        [""; 0],
        "an earlier run may have shown it"
    );
    now.remove(0);
    assert_eq!(unfounded(&page, &now).unwrap().len(), 4, "it did not run");
}

#[test]
fn rows_of_limits_that_say_nothing_are_refused() {
    for (row, words) in [
        (
            "| <a id=\"x\"></a>x | `create pv` | a reason that is long enough |",
            "`create pv` is not",
        ),
        (
            "| <a id=\"x\"></a>x | `creation pv all` | a reason that is long enough |",
            "no creation",
        ),
        (
            "| <a id=\"x\"></a>x | `create pv all` | slow |",
            "no reason",
        ),
        (
            "| <a id=\"x\"></a>x | `create pv all` |",
            "not three columns",
        ),
        (
            "| <a id=\"x\"></a>x | `create pv all`, `all pv raw` | a reason that is long enough |",
            "is named by x and x",
        ),
    ] {
        let error = format!("{:#}", Limits::parse(row).unwrap_err());
        assert!(error.contains(words), "{error}");
    }
}

fn document(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(name);
    std::fs::read_to_string(path).unwrap()
}

fn declared(step: &Step) -> BTreeSet<Cell> {
    step.cells.iter().flat_map(|cells| cells.iter()).collect()
}

#[test]
fn every_cell_has_a_step_or_a_reason() {
    let limits = Limits::parse(&document("LIMITS.md")).unwrap();
    let shown: BTreeSet<_> = steps::all().flat_map(declared).collect();
    let open: Vec<_> = Cell::all()
        .filter(|cell| !shown.contains(cell) && limits.entry(*cell).is_none())
        .map(|cell| cell.to_string())
        .collect();
    assert!(
        open.is_empty(),
        "no step covers these cells, and docs/LIMITS.md does not say why:\n{}",
        open.join("\n")
    );
    let both: Vec<_> = shown
        .iter()
        .filter_map(|cell| Some(format!("{}: {cell}", limits.entry(*cell)?)))
        .collect();
    assert!(
        both.is_empty(),
        "docs/LIMITS.md says why no step covers these cells, and one does:\n{}",
        both.join("\n")
    );
}

#[test]
fn the_committed_page_claims_what_the_steps_cover() {
    let page = document("features.md");
    let by_name: BTreeMap<_, _> = steps::all()
        .map(|step| (step.name, declared(step)))
        .collect();
    for (cell, step) in claims(&page).unwrap() {
        assert!(
            by_name
                .get(&*step)
                .is_some_and(|cells| cells.contains(&cell)),
            "docs/features.md says that {step} shows {cell}; `make table` writes it anew"
        );
    }
    let limits = Limits::parse(&document("LIMITS.md")).unwrap();
    for (entry, link) in page
        .split("](LIMITS.md#")
        .skip(1)
        .map(|rest| rest.split_once(')').unwrap().0)
        .map(|id| (limits.0.values().any(|entry| entry == id), id))
    {
        assert!(
            entry,
            "docs/features.md leads to {link}, which LIMITS.md has not"
        );
    }
}
