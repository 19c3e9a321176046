//! How the steps of a run ended, in a file for machines.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::coverage::Cell;

/// The file's name in the directory of the logs.
pub const FILE: &str = "results.json";

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It showed what its name says.
    Passed,
    /// It did not.
    Failed,
    /// It could show nothing here.
    Skipped,
}

/// One step of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepResult {
    /// The step's name.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What `xl info xen_version` told in the lab.
    pub xen: String,
    /// What the step shows if it passed.
    pub cells: Vec<Cell>,
}

/// Writes the file anew; a reader finds the old or the new one.
///
/// # Errors
/// When it cannot be written.
pub fn write(dir: &Path, results: &[StepResult]) -> Result<()> {
    let path = dir.join(FILE);
    let save = || -> std::io::Result<()> {
        fs::create_dir_all(dir)?;
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        serde_json::to_writer_pretty(&mut file, results)?;
        file.write_all(b"\n")?;
        file.persist(&path)?;
        Ok(())
    };
    save().with_context(|| format!("cannot write {}", path.display()))
}

/// Reads the files of one or more runs. What a later file says of a step goes before what an earlier one says.
///
/// # Errors
/// When one cannot be read or is no such file.
pub fn read(paths: &[impl AsRef<Path>]) -> Result<Vec<StepResult>> {
    let mut steps = BTreeMap::new();
    for path in paths {
        let path = path.as_ref();
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let results: Vec<StepResult> = serde_json::from_slice(&text)
            .with_context(|| format!("{} does not hold results of steps", path.display()))?;
        steps.extend(
            results
                .into_iter()
                .map(|result| (result.name.clone(), result)),
        );
    }
    Ok(steps.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(name: &str, outcome: Outcome) -> StepResult {
        StepResult {
            name: name.to_owned(),
            outcome,
            xen: "4.17.6".to_owned(),
            cells: Cell::all().take(2).collect(),
        }
    }

    #[test]
    fn a_later_file_goes_before_an_earlier_one() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let both = [
            result("ts-a", Outcome::Failed),
            result("ts-b", Outcome::Skipped),
        ];
        write(first.path(), &both).unwrap();
        let again = [result("ts-a", Outcome::Passed)];
        write(second.path(), &again).unwrap();
        let paths = [first.path().join(FILE), second.path().join(FILE)];
        assert_eq!(read(&paths).unwrap(), [again[0].clone(), both[1].clone()]);
    }

    #[test]
    fn what_is_no_result_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        fs::write(&path, r#"[{"name": "ts-a", "outcome": "fine"}]"#).unwrap();
        let error = format!("{:#}", read(&[&path]).unwrap_err());
        assert!(error.contains("does not hold results"), "{error}");
    }
}
