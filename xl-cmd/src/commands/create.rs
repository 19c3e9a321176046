//! `snapshot-create`

use super::Context;
use crate::args::Create;
use crate::as_xl::dry_run;
use crate::snapshot_file::{self, Memory, SnapshotFile};
use libxl_ext::model::disk::DiskKind;
use libxl_ext::plan::{CreateRequest, DiskChoice, Request};
use libxl_ext::{Error, ErrorKind, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

pub(super) fn run(context: &Context, args: &Create) -> Result<()> {
    let described = args.config.as_deref().map(snapshot_file::read);
    let request = request(args, described.transpose()?.unwrap_or_default())?;
    let domain = domain(args, request.configuration.as_ref())?;
    context.change(&domain, &Request::Create(request), args.output, |done| {
        let pause = done.pause.map_or_else(String::new, |pause| {
            format!("; the guest stood still for {:.2} s", pause.as_secs_f32())
        });
        format!(
            "Domain '{}': snapshot '{}' created{pause}\n",
            done.plan.domain, done.plan.snapshot
        )
    })
}

/// What was typed, and what a file says where nothing was.
fn request(args: &Create, described: SnapshotFile) -> Result<CreateRequest> {
    let (disk_only, memory_file) = match (args.disk_only, &args.memory_file, described.memory) {
        (true, ..) => (true, None),
        (_, Some(file), _) => (false, Some(file.clone())),
        (_, _, Some(Memory::No)) => (true, None),
        (_, _, Some(Memory::File(file))) => (false, Some(file)),
        (_, _, Some(Memory::Yes) | None) => (false, None),
    };
    if args.domain_config.is_some() && !disk_only {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "--domain-config is for a snapshot of the disks alone (--disk-only)",
        ));
    }
    let is_typed = |disk: &&DiskChoice| args.disks.iter().any(|typed| typed.vdev == disk.vdev);
    let described_disks = described.disks.iter().filter(|disk| !is_typed(disk));
    let external = args.external.then_some(DiskKind::External);
    Ok(CreateRequest {
        name: args.name.clone().or(described.name),
        description: args.description.clone().or(described.description),
        live: args.live,
        kind: external.or(described.kind),
        disks: args.disks.iter().chain(described_disks).cloned().collect(),
        only_disks: false,
        disk_only,
        configuration: args
            .domain_config
            .as_deref()
            .map(dry_run::of_file)
            .transpose()?,
        memory_file: memory_file.as_deref().map(absolute).transpose()?,
        format: args.format.into(),
    })
}

/// A new file's path without links in its directory.
fn absolute(file: &Path) -> Result<PathBuf> {
    let failed = |error| {
        Error::io(
            format!("look for the directory of {}", file.display()),
            error,
        )
    };
    let file = std::path::absolute(file).map_err(failed)?;
    match (file.parent(), file.file_name()) {
        (Some(directory), Some(name)) => Ok(directory.canonicalize().map_err(failed)?.join(name)),
        _ => Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("{} is no file", file.display()),
        )),
    }
}

/// The domain that was named, or the one of the configuration file: not two of them.
fn domain(args: &Create, configuration: Option<&Value>) -> Result<String> {
    let configured = configuration.map(dry_run::name).transpose()?;
    match (&args.domain, configured) {
        (Some(domain), Some(configured)) if *domain != configured => Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("the configuration file is that of domain '{configured}', not of '{domain}'"),
        )),
        (Some(domain), _) => Ok(domain.clone()),
        (None, Some(configured)) => Ok(configured),
        (None, None) => Err(Error::new(ErrorKind::InvalidRequest, "no domain is named")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Arguments, Command};
    use clap::Parser;
    use libxl_ext::model::name::SnapshotName;
    use libxl_ext::plan::Take;

    fn described() -> SnapshotFile {
        let disk = |vdev: &str, kind| DiskChoice {
            vdev: vdev.into(),
            take: Some(Take::As(kind)),
            file: None,
        };
        SnapshotFile {
            name: Some(SnapshotName::new("described").unwrap()),
            description: Some("words".into()),
            memory: Some(Memory::No),
            kind: Some(DiskKind::Internal),
            disks: vec![
                disk("xvda", DiskKind::Internal),
                disk("xvdb", DiskKind::Internal),
            ],
        }
    }

    fn typed(words: &[&str]) -> Create {
        let words = ["xl-ext", "snapshot-create", "g1"].iter().chain(words);
        match Arguments::try_parse_from(words).unwrap().command {
            Command::SnapshotCreate(create) => create,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_typed_wins_over_the_file() {
        let request_of = |words: &[&str]| request(&typed(words), described()).unwrap();
        let from_file = request_of(&[]);
        assert_eq!(from_file.name.unwrap().as_str(), "described");
        assert!(from_file.disk_only && from_file.memory_file.is_none());
        assert_eq!(from_file.kind, Some(DiskKind::Internal));
        let both = request_of(&[
            "--name=typed",
            "--description=",
            "--external",
            "--memory-file=/tmp/../tmp/m",
            "--disk=xvdb,snapshot=no",
        ]);
        assert_eq!(both.name.unwrap().as_str(), "typed");
        assert_eq!(both.description.as_deref(), Some(""));
        assert_eq!(both.kind, Some(DiskKind::External));
        assert_eq!(both.memory_file, Some("/tmp/m".into()));
        assert!(!both.disk_only);
        let takes: Vec<_> = both
            .disks
            .iter()
            .map(|disk| (&*disk.vdev, disk.take))
            .collect();
        let internal = Some(Take::As(DiskKind::Internal));
        assert_eq!(takes, [("xvdb", Some(Take::No)), ("xvda", internal)]);
    }

    #[test]
    fn a_configuration_is_for_the_disks_alone() {
        let args = typed(&["--domain-config=/nowhere"]);
        let refused = |described| request(&args, described).unwrap_err().report();
        let with_memory = refused(SnapshotFile::default());
        assert!(with_memory.contains("--disk-only"), "{with_memory}");
        assert!(refused(described()).contains("/nowhere"));
    }
}
