//! What can be typed for saved domains.

use super::{Format, Output, guest_state};
use clap::{ArgGroup, Args};
use libxl_ext::model::domain::GuestState;
use std::path::{Path, PathBuf};

// Options are what they are.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("state").args(["running", "paused"]))]
pub(crate) struct ManagedSave {
    /// Let the guest run when it goes on, whatever it does now.
    #[arg(long)]
    running: bool,
    /// Leave the guest paused when it goes on.
    #[arg(long)]
    paused: bool,
    /// Let it go on by itself when the host boots (host-start).
    #[arg(long)]
    pub(crate) at_boot: bool,
    /// Save every domain that runs or is paused, but domain 0.
    #[arg(long)]
    pub(crate) all: bool,
    /// How the memory is kept.
    #[arg(long, value_enum, default_value_t = Format::Packed)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) output: Output,
    /// The domains. One that fails does not stop the others.
    #[arg(
        required_unless_present = "all",
        conflicts_with = "all",
        value_name = "DOMAIN"
    )]
    pub(crate) domains: Vec<String>,
}

impl ManagedSave {
    /// How the guest goes on, if that was said.
    pub(crate) fn state(&self) -> Option<GuestState> {
        guest_state(self.running, self.paused)
    }
}

#[derive(Debug, Args)]
pub(crate) struct ManagedSaveStatus {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The domain.
    pub(crate) domain: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ManagedSaveList {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ManagedSaveRemove {
    #[command(flatten)]
    pub(crate) output: Output,
    /// The domain.
    pub(crate) domain: String,
}

#[derive(Debug, Args)]
pub(crate) struct ManagedSaveExport {
    /// The domain.
    pub(crate) domain: String,
    /// The new file.
    pub(crate) file: PathBuf,
}

// Options are what they are.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("state").args(["running", "paused"]))]
pub(crate) struct Start {
    /// Let the guest run, whatever it was to do.
    #[arg(long)]
    running: bool,
    /// Leave the guest paused.
    #[arg(short, long)]
    pub(crate) paused: bool,
    /// Drop what was saved and start the domain of the configuration file afresh.
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Attach to its console then.
    #[arg(short, long, conflicts_with_all = ["plan", "json"])]
    pub(crate) console: bool,
    #[command(flatten)]
    pub(crate) output: Output,
    /// The domain, or its configuration file: what contains a / or ends with .cfg.
    #[arg(value_name = "DOMAIN|FILE.cfg")]
    pub(crate) what: String,
}

impl Start {
    /// How the guest goes on, if that was said.
    pub(crate) fn state(&self) -> Option<GuestState> {
        guest_state(self.running, self.paused)
    }

    /// The configuration file, if that is what was given. What is in the directory where we are does not count.
    pub(crate) fn file(&self) -> Option<&Path> {
        let path = Path::new(&self.what);
        let is_file = self.what.contains('/') || path.extension().is_some_and(|it| it == "cfg");
        is_file.then_some(path)
    }

    /// Whether a domain is to go on from what was saved, and not only to be planned for.
    pub(crate) fn goes_on(&self) -> bool {
        self.file().is_none() && !self.fresh && !self.output.plan
    }
}

#[cfg(test)]
mod tests {
    use crate::args::{Arguments, Command};
    use clap::Parser;

    fn parse(words: &[&str]) -> Result<Command, i32> {
        match Arguments::try_parse_from(["xl-ext"].iter().chain(words)) {
            Ok(arguments) => Ok(arguments.command),
            Err(error) => Err(error.exit_code()),
        }
    }

    #[test]
    fn domains_are_named_or_all_are_meant() {
        for bad in [
            &["managed-save"][..],
            &["managed-save", "--all", "g1"],
            &["managed-save", "--running", "--paused", "g1"],
            &["start"],
            &["start", "-c", "--plan", "g1"],
            &["managed-save-remove"],
        ] {
            assert_eq!(parse(bad).err(), Some(2), "{bad:?}");
        }
        for good in [
            &["managed-save", "--all"][..],
            &["managed-save", "g1", "g2"],
            &["managed-save-status"],
        ] {
            assert!(parse(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_file_is_told_by_its_name_alone() {
        let file = |what: &str| match parse(&["start", what]).unwrap() {
            Command::Start(start) => start.file().is_some(),
            other => panic!("{other:?}"),
        };
        assert!(file("g1.cfg") && file("./g1") && file("/etc/xen/auto/g1"));
        assert!(!file("g1") && !file("g1.example") && !file("Cargo.toml"));
    }
}
