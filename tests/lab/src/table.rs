//! `docs/features.md`: which step showed what, or where `docs/LIMITS.md` says why none did.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};

use crate::coverage::{self, Cell, Disks, Feature};
use crate::guest::Kind;
use crate::results::{Outcome, StepResult};

/// What begins a row of LIMITS.md that names cells.
const ENTRY: &str = "| <a id=\"";

const INTRODUCTION: &str = "\
# Features

Which test of the lab showed what, for each type of guest and each way in which its disks are held. `make table` writes
this page from the results of a run; a cell names the steps (`tests/lab/src/steps`) that ran and passed, or leads to the
reason why there is none. In a snapshot of the kind \"mixed\" some disks are held internally and others externally.
";

/// Entries of LIMITS.md that say why no step shows a cell.
#[derive(Debug, Default)]
pub struct Limits(BTreeMap<Cell, String>);

impl Limits {
    /// Reads the rows `| <a id="ENTRY"></a>... | CELLS | REASON |`. CELLS are, each in backticks, features, guests and
    /// disks by their names, several joined by `+`, or `all`: `` `create-live+verify pv all` ``.
    ///
    /// # Errors
    /// When a row names something that there is not, a cell for the second time, or gives no reason.
    pub fn parse(text: &str) -> Result<Self> {
        let mut limits = BTreeMap::new();
        for row in text.lines().filter(|line| line.starts_with(ENTRY)) {
            let wrong = || format!("in LIMITS.md: {row}");
            let (id, rest) = row[ENTRY.len()..].split_once('"').with_context(wrong)?;
            let columns: Vec<_> = rest.split('|').collect();
            let &[_, cells, reason, _] = &columns[..] else {
                bail!("not three columns {}", wrong());
            };
            if reason.trim().len() < 20 {
                bail!("no reason {}", wrong());
            }
            for group in cells.split('`').skip(1).step_by(2) {
                for cell in parse_group(group).with_context(wrong)? {
                    if let Some(other) = limits.insert(cell, id.to_owned()) {
                        bail!("{cell} is named by {id} and {other} in LIMITS.md");
                    }
                }
            }
        }
        Ok(Self(limits))
    }

    /// The entry that says why no step shows a cell.
    pub fn entry(&self, cell: Cell) -> Option<&str> {
        self.0.get(&cell).map(String::as_str)
    }
}

fn parse_group(group: &str) -> Result<Vec<Cell>> {
    let words: Vec<_> = group.split_ascii_whitespace().collect();
    let &[features, guests, disks] = &words[..] else {
        bail!("`{group}` is not FEATURES GUESTS DISKS");
    };
    let features: Vec<Feature> = parse_items(features, Feature::ALL)?;
    let guests: Vec<Kind> = parse_items(guests, Kind::ALL)?;
    let disks: Vec<Disks> = parse_items(disks, Disks::ALL)?;
    let chosen = |cell: &Cell| {
        features.contains(&cell.feature)
            && guests.contains(&cell.guest)
            && disks.contains(&cell.disks)
    };
    Ok(Cell::all().filter(chosen).collect())
}

fn parse_items<'a, T>(names: &'a str, all: &[T]) -> Result<Vec<T>>
where
    T: Copy + serde::Deserialize<'a>,
{
    if names == "all" {
        return Ok(all.to_vec());
    }
    names
        .split('+')
        .map(|name| coverage::parse(name).with_context(|| format!("there is no {name}")))
        .collect()
}

/// The page, and the cells that it has to leave open.
pub fn render(results: &[StepResult], limits: &Limits) -> (String, Vec<Cell>) {
    let shown = shown(results);
    let mut open = Vec::new();
    let mut page = INTRODUCTION.to_owned();
    let versions: BTreeSet<_> = passed(results).map(|result| &*result.xen).collect();
    if !versions.is_empty() {
        let versions: Vec<_> = versions.into_iter().collect();
        // Writing to a String cannot fail.
        let _ = writeln!(page, "\nRun with Xen {}.", versions.join(", "));
    }
    for guest in Kind::ALL {
        let _ = write!(page, "\n## {}\n\n| |", guest.title());
        for disks in Disks::ALL {
            let _ = write!(page, " {} |", disks.title());
        }
        let _ = writeln!(page, "\n|---|{}", "---|".repeat(Disks::ALL.len()));
        for feature in Feature::ALL {
            let _ = write!(page, "| {} |", feature.title());
            for disks in Disks::ALL {
                let cell = Cell {
                    guest: *guest,
                    feature: *feature,
                    disks: *disks,
                };
                let text = match (shown.get(&cell), limits.entry(cell)) {
                    (Some(steps), _) => {
                        let steps: Vec<_> = steps.iter().map(|step| format!("`{step}`")).collect();
                        steps.join(", ")
                    }
                    (None, Some(entry)) => format!("[{entry}](LIMITS.md#{entry})"),
                    (None, None) => {
                        open.push(cell);
                        "**not run**".to_owned()
                    }
                };
                let _ = write!(page, " {text} |");
            }
            page.push('\n');
        }
    }
    (page, open)
}

/// What a page claims that the results do not show. Of a step that was skipped, since it is expensive, an earlier run
/// may have shown what the page says.
///
/// # Errors
/// When the text is not such a page.
pub fn unfounded(page: &str, results: &[StepResult]) -> Result<Vec<String>> {
    let shown = shown(results);
    let founded =
        |cell: Cell, step: &str| shown.get(&cell).is_some_and(|steps| steps.contains(&step));
    let skipped = |cell: Cell, step: &str| {
        let mut skipped = results
            .iter()
            .filter(|result| result.outcome == Outcome::Skipped);
        skipped.any(|result| result.name == step && result.cells.contains(&cell))
    };
    Ok(claims(page)?
        .into_iter()
        .filter(|(cell, step)| !founded(*cell, step) && !skipped(*cell, step))
        .map(|(cell, step)| format!("{cell}: {step}"))
        .collect())
}

/// The steps that a page names, with their cells.
///
/// # Errors
/// When the text is not such a page.
pub fn claims(page: &str) -> Result<Vec<(Cell, String)>> {
    let mut claims = Vec::new();
    let mut part = None;
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            part = Kind::ALL.iter().find(|guest| guest.title() == title);
        }
        let columns: Vec<_> = line.split('|').map(str::trim).collect();
        // The line begins and ends with the separator.
        let ["", title, cells @ .., ""] = &columns[..] else {
            continue;
        };
        if title.is_empty() || title.starts_with("---") {
            continue;
        }
        let feature = Feature::ALL
            .iter()
            .find(|feature| feature.title() == *title)
            .with_context(|| format!("the page has a row {title:?}"))?;
        let guest = part.context("the page has a row outside of the parts")?;
        if cells.len() != Disks::ALL.len() {
            bail!(
                "the row {title:?} of {} has {} cells",
                guest.title(),
                cells.len()
            );
        }
        for (disks, text) in Disks::ALL.iter().zip(cells) {
            let cell = Cell {
                guest: *guest,
                feature: *feature,
                disks: *disks,
            };
            let steps = text.split('`').filter(|word| word.starts_with("ts-"));
            claims.extend(steps.map(|step| (cell, step.to_owned())));
        }
    }
    Ok(claims)
}

fn passed(results: &[StepResult]) -> impl Iterator<Item = &StepResult> {
    results
        .iter()
        .filter(|result| result.outcome == Outcome::Passed)
}

fn shown(results: &[StepResult]) -> BTreeMap<Cell, BTreeSet<&str>> {
    let mut shown = BTreeMap::<Cell, BTreeSet<&str>>::new();
    for result in passed(results) {
        for cell in &result.cells {
            shown.entry(*cell).or_default().insert(&result.name);
        }
    }
    shown
}

#[cfg(test)]
mod tests;
