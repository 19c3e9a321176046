//! `snapshot-check`: does the record say what is there, and is what is there recorded? Found out without a
//! change; what can be mended without losing anything is a list of repairs.
//!
//! ```text
//! survey (asks the ports and the store) -> Survey (plain data) -> find -> Finding, Repair -> repair
//! ```

mod find;
mod mend;
mod rebuild;
mod repair;
mod survey;

#[cfg(test)]
mod tests;

pub use repair::Repair;

pub(crate) use find::find;
pub(crate) use repair::perform;
pub(crate) use survey::survey;

use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which sort of thing.
    pub kind: FindingKind,
    /// The name of the snapshot that it concerns, if it is one alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// The file or directory that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// What it is, for a person.
    pub what: String,
}

/// Sorts of findings, for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// An operation was interrupted: recovery ends it before anything else is looked at.
    InterruptedOperation,
    /// The record is damaged, or gone though there are snapshots.
    DamagedRecord,
    /// The record contradicts itself.
    InconsistentRecord,
    /// The parent of a snapshot is gone.
    DanglingParent,
    /// The snapshot that the present state comes from is gone.
    MissingCurrent,
    /// A copy of what the record says is missing, old or damaged.
    StaleCopy,
    /// A memory image is missing, or is not what the record says.
    Memory,
    /// A pack, or a block of one, is missing or damaged.
    Pack,
    /// A pack that no memory image needs.
    OrphanPack,
    /// An image, or an internal snapshot in it, is missing or unreadable.
    Disk,
    /// A layer is missing, or does not stand on what the record says.
    Layer,
    /// A directory of the store, or something in it, that no record names.
    OrphanDirectory,
    /// An image with a name of ours that no record explains.
    OrphanImage,
    /// An internal snapshot with a name of ours that no record explains.
    OrphanTag,
    /// What an operation left that did not end.
    Temporary,
    /// A file in the store that is not ours.
    Foreign,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.snapshot {
            Some(name) => write!(f, "{name}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// What was found of one domain, and what can be done about it without losing anything.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Findings {
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// What would mend a part of it, in the order in which it is done.
    pub repairs: Vec<Repair>,
}

impl Findings {
    fn add(&mut self, kind: FindingKind, what: impl Into<String>) -> &mut Finding {
        self.findings.push(Finding {
            kind,
            snapshot: None,
            path: None,
            what: what.into(),
        });
        self.findings.last_mut().expect("one was added")
    }
}

impl Finding {
    fn of(&mut self, snapshot: &str) -> &mut Self {
        self.snapshot = Some(snapshot.to_owned());
        self
    }

    fn at(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.path = Some(path.into());
        self
    }
}
