//! `replication-failover`: the domain goes on here.

use super::super::{Context, print};
use crate::args::{Output, ReplicationFailover};
use crate::as_xl::{self, dry_run};
use libxl_ext::bundle::reaching_out;
use libxl_ext::event::Observer as _;
use libxl_ext::model::disk::DeviceDisk;
use libxl_ext::model::replica::{Replica, ReplicaState};
use libxl_ext::plan::{ManagedStartRequest, Request};
use libxl_ext::replication::FailedOver;
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
    if replica.memory.is_some() && !args.disks_only {
        return from_memory(context, args, &replica);
    }
    let disks = disks_here(&replica)?;
    // Before the failover: whatever becomes of us, it is there.
    let file = written(context, domain, &replica, &disks)?;
    if let Some(file) = file.as_ref().filter(|_| !args.no_start && !args.keep_paths) {
        require_nothing_else(&dry_run::of_file(file)?)?;
    }
    let failed_over = context.host.fail_over_disks(domain, &context.terminal);
    context.terminal.finish();
    say(domain, &failed_over?)?;
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

/// The guest goes on from its memory, with the configuration that is in that.
fn from_memory(context: &Context, args: &ReplicationFailover, replica: &Replica) -> Result<()> {
    let domain = &args.domain;
    // For when it is to be started afresh one day.
    written(context, domain, replica, &disks_here(replica)?)?;
    let is_free = args.no_start || args.keep_paths;
    let vet = |configuration: Option<String>| -> Result<()> {
        let Some(configuration) = configuration.filter(|_| !is_free) else {
            return Ok(());
        };
        require_nothing_else(&serde_json::from_str(&configuration).map_err(unreadable)?)
    };
    let known = context.host.configuration_in_memory(domain, replica);
    vet(known.map_err(|error| error.hint("--disks-only goes on without the memory"))?)?;
    let failed_over = context.host.fail_over(domain, &context.terminal);
    context.terminal.finish();
    let failed_over = failed_over?;
    say(domain, &failed_over)?;
    if args.no_start {
        return print(&format!("start it: xl-ext start {domain}\n"));
    }
    // Until it was cut off, the primary may have brought another one.
    vet(failed_over.memory).map_err(|error| {
        error.while_doing(format!(
            "domain '{domain}' has failed over, and is not started: `xl-ext start {domain}` does it"
        ))
    })?;
    let request = Request::ManagedStart(ManagedStartRequest::default());
    let output = Output::default();
    context.change(domain, &request, output, |done| {
        format!(
            "Domain '{}' goes on from its memory at the checkpoint\n",
            done.plan.domain
        )
    })
}

fn say(domain: &str, failed_over: &FailedOver) -> Result<()> {
    let number = failed_over.replica.checkpoint.map_or(0, |last| last.number);
    print(&format!(
        "Domain '{domain}': failed over to this host, as of checkpoint {number}\n"
    ))
}

fn unreadable(error: serde_json::Error) -> Error {
    let what = "the configuration that came with the domain cannot be read";
    Error::new(ErrorKind::Corrupt, what).because(error)
}

/// The disks of the configuration, those that were replicated by their images here, as a line of a configuration file.
fn disks_here(replica: &Replica) -> Result<String> {
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
