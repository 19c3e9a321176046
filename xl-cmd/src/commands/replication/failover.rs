//! `replication-failover`: the domain goes on here.

use super::super::{Context, print};
use crate::args::ReplicationFailover;
use crate::as_xl::{self, dry_run};
use libxl_ext::bundle::reaching_out;
use libxl_ext::event::Observer as _;
use libxl_ext::model::disk::DeviceDisk;
use libxl_ext::model::replica::{Replica, ReplicaState};
use libxl_ext::store::replace_file;
use libxl_ext::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::Value;
use std::path::PathBuf;

#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    disks: Vec<DeviceDisk>,
}

pub(in super::super) fn run(context: &Context, args: &ReplicationFailover) -> Result<()> {
    let domain = &args.domain;
    let replica = context.host.replica(domain)?;
    if matches!(
        replica.state,
        ReplicaState::Receiving | ReplicaState::Stopped { .. } | ReplicaState::FailedOver { .. }
    ) {
        // It says why not, whatever is the matter with the configuration.
        return context.host.fail_over(domain, &context.terminal).map(drop);
    }
    let disks = disks_here(&replica)?;
    // Before the failover: whatever becomes of us, it is there.
    let file = written(context, domain, &replica, &disks)?;
    if let Some(file) = file.as_ref().filter(|_| !args.no_start && !args.keep_paths) {
        require_nothing_else(&dry_run::of_file(file)?)?;
    }
    let failed_over = context.host.fail_over(domain, &context.terminal);
    context.terminal.finish();
    let failed_over = failed_over?;
    let number = failed_over.replica.checkpoint.map_or(0, |last| last.number);
    print(&format!(
        "Domain '{domain}': failed over to this host, as of checkpoint {number}\n"
    ))?;
    match file {
        Some(file) if args.no_start => print(&format!("start it: xl create {}\n", file.display())),
        Some(file) => {
            context.terminal.step(&format!("start domain '{domain}'"));
            as_xl::create(&context.store, &file, &[]).map_err(|error| {
                error.while_doing(format!(
                    "domain '{domain}' has failed over, and could not be started; `xl create {}` does it",
                    file.display()
                ))
            })?;
            context.terminal.finish();
            print(&format!("Domain '{domain}': started\n"))
        }
        None => print(&format!(
            "no configuration file came with it (replication-start --domain-config); with one, start it on these disks:\n\
             {disks}\n"
        )),
    }
}

/// The disks of the configuration, those that were replicated by their images here, as a line of a configuration file.
fn disks_here(replica: &Replica) -> Result<String> {
    let unreadable = |error: serde_json::Error| {
        Error::new(
            ErrorKind::Corrupt,
            "the configuration that came with the domain cannot be read",
        )
        .because(error)
    };
    let mut configuration: Configuration =
        serde_json::from_str(&replica.configuration).map_err(unreadable)?;
    for disk in &mut configuration.disks {
        let here = replica.disks.iter().find(|here| here.vdev == disk.vdev());
        match here {
            Some(here) => {
                disk.pdev_path = Some(here.image.to_string_lossy().into_owned());
                disk.format = Some(here.format.driver().to_owned());
            }
            // What is in it is on the other host.
            None if disk.is_cdrom != 0 => {
                disk.pdev_path = None;
                disk.format = Some("empty".into());
            }
            None => {}
        }
    }
    let disks = configuration.disks.iter();
    let disks: Vec<_> = disks.map(as_xl::specification_of).collect::<Result<_>>()?;
    Ok(format!("disk=[{}]", disks.join(",")))
}

/// The configuration file with which the domain is started here: the one that came, with these disks at its end, where they
/// count.
fn written(
    context: &Context,
    domain: &str,
    replica: &Replica,
    disks: &str,
) -> Result<Option<PathBuf>> {
    let Some(text) = &replica.domain_config else {
        return Ok(None);
    };
    let file = context.host.replica_directory(domain).join("domain.cfg");
    replace_file(&file, format!("{text}\n{disks}\n").as_bytes())?;
    Ok(Some(file))
}

/// Refuses a configuration that names more of this host than its disks: who has fallen into strange hands over there is
/// not to start programs here.
fn require_nothing_else(configuration: &Value) -> Result<()> {
    let found = reaching_out(configuration);
    if found.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidRequest,
        format!(
            "the configuration that came with the domain names what is on its host: {}",
            found.join(", ")
        ),
    )
    .hint(
        "where that is the same here, and you trust that host, --keep-paths takes it as it is; --no-start only sets the \
         disks back",
    ))
}
