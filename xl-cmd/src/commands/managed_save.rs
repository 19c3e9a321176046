//! `managed-save`, `managed-save-status`, `managed-save-list`, `managed-save-remove`, `managed-save-export` and `start`

use super::{Answer, Context, Said, print, print_json};
use crate::args::{
    ManagedSave, ManagedSaveExport, ManagedSaveList, ManagedSaveRemove, ManagedSaveStatus, Start,
};
use crate::as_xl::{self, dry_run};
use crate::render;
use jiff::tz::TimeZone;
use libxl_ext::event::Observer as _;
use libxl_ext::model::domain::{DomainState, GuestState};
use libxl_ext::plan::{ManagedSaveRequest, ManagedStartRequest, Request};
use libxl_ext::snapshot::Done;
use libxl_ext::{Error, ErrorKind, Result};
use serde_json::Value;
use std::path::Path;

/// Each domain by itself: one that fails does not stop the others.
pub(super) fn save(context: &Context, args: &ManagedSave) -> Result<()> {
    let request = Request::ManagedSave(ManagedSaveRequest {
        state: args.state(),
        at_boot: args.at_boot,
        format: args.format.into(),
    });
    if let [domain] = &args.domains[..] {
        return context.change(domain, &request, args.output, saved);
    }
    let domains = if args.all {
        all(context)?
    } else {
        args.domains.clone()
    };
    let mut json: Vec<Value> = Vec::new();
    let mut failed = 0;
    for domain in &domains {
        context.terminal.about(domain);
        match context.attempt(domain, &request, args.output, saved) {
            Ok((said, end)) => {
                match said {
                    Said::Json(value) => json.push(value),
                    Said::Text(text) => print(&text)?,
                }
                if let Err(error) = end {
                    failed += 1;
                    complain(&error);
                }
            }
            Err(error) => {
                failed += 1;
                complain(&error);
                if error.kind() == ErrorKind::Aborted {
                    break;
                }
            }
        }
    }
    if args.output.json {
        print_json(&json)?;
    }
    if failed == 0 {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::DomainState,
        format!("{failed} of {} domains failed", domains.len()),
    ))
}

fn saved(done: &Done) -> String {
    format!("Domain '{}' saved; it is off now\n", done.plan.domain)
}

fn complain(error: &Error) {
    tracing::error!("{}", error.report());
    eprintln!("xl-ext: {}", error.report());
}

/// The domains that can be saved, by their numbers: a name of digits would be taken for one.
fn all(context: &Context) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for domain in context.host.running()? {
        match domain.state {
            DomainState::Running | DomainState::Paused | DomainState::Suspended => {
                all.push(domain.domid.to_string());
            }
            state => context
                .terminal
                .note(&format!("domain '{}' is {state}: left alone", domain.name)),
        }
    }
    Ok(all)
}

pub(super) fn start(context: &Context, args: &Start) -> Result<()> {
    match args.file() {
        Some(file) => start_file(context, args, file),
        None if args.fresh => Err(Error::new(
            ErrorKind::InvalidRequest,
            "--fresh needs the domain's configuration file",
        )
        .hint("`xl-ext start --fresh FILE.cfg`; a file has a / in its name, or ends with .cfg")),
        None => go_on(context, args, &args.what),
    }
}

/// From what was saved.
fn go_on(context: &Context, args: &Start, domain: &str) -> Result<()> {
    let request = Request::ManagedStart(ManagedStartRequest {
        state: args.state(),
    });
    let ended = context.change(domain, &request, args.output, |done| {
        format!(
            "Domain '{}' goes on from where it was saved\n",
            done.plan.domain
        )
    });
    ended.map_err(|error| match error.kind() {
        // For a domain that runs it is said that it does, and it needs no way to be started.
        ErrorKind::NoSuchSnapshot if error.way_out().is_some() => error,
        ErrorKind::NoSuchSnapshot | ErrorKind::NoSuchDomain => {
            error.hint("`xl-ext start FILE.cfg` starts the domain of a configuration file")
        }
        _ => error,
    })?;
    attach(args, domain)
}

/// From what was saved, if it was; else as `xl create` would, on the layers that the disks are.
fn start_file(context: &Context, args: &Start, file: &Path) -> Result<()> {
    let domain = dry_run::name(&dry_run::of_file(file)?)?;
    // Recovery goes first, whatever is found.
    let is_saved = match context.host.managed_save(&domain, &context.terminal) {
        Ok(saved) => saved.is_some(),
        // A record that cannot be read has to be given up before the domain can be started afresh.
        Err(error) if args.fresh && error.kind() == ErrorKind::Corrupt => true,
        Err(error) => return Err(error),
    };
    if is_saved && !args.fresh {
        return go_on(context, args, &domain);
    }
    if let Some(domid) = context.host.domid_of(&domain)? {
        return Err(Error::new(
            ErrorKind::DomainState,
            format!("domain '{domain}' is there already (domid {domid})"),
        ));
    }
    if is_saved {
        context.change(&domain, &Request::ManagedSaveRemove, args.output, |done| {
            format!("Domain '{}': what was saved is gone\n", done.plan.domain)
        })?;
    }
    context.terminal.finish();
    if args.output.plan {
        let text = match as_xl::words_for_create(&context.store, file, &[]) {
            Ok(words) => {
                let words = words.iter().map(|word| word.to_string_lossy());
                words.collect::<Vec<_>>().join(" ")
            }
            // It was only planned that what was saved is dropped.
            Err(_) if is_saved => format!("create -f {}", file.display()),
            Err(error) => return Err(error),
        };
        return print(&format!("then: xl {text}\n"));
    }
    let paused = args.state() == Some(GuestState::Paused);
    as_xl::create(&context.store, file, if paused { &["-p"] } else { &[] })?;
    attach(args, &domain)
}

fn attach(args: &Start, domain: &str) -> Result<()> {
    if args.console {
        return Err(as_xl::become_console(domain));
    }
    Ok(())
}

pub(super) fn remove(context: &Context, args: &ManagedSaveRemove) -> Result<()> {
    context.change(
        &args.domain,
        &Request::ManagedSaveRemove,
        args.output,
        |done| format!("Domain '{}': what was saved is gone\n", done.plan.domain),
    )
}

pub(super) fn export(context: &Context, args: &ManagedSaveExport) -> Result<()> {
    context
        .host
        .export_managed_save(&args.domain, &args.file, &context.terminal)?;
    context.terminal.finish();
    let (domain, file) = (&args.domain, args.file.display());
    print(&format!(
        "What was saved of domain '{domain}' written to {file}: once the domain runs, neither is to be restored again\n"
    ))
}

pub(super) fn status(context: &Context, args: &ManagedSaveStatus) -> Result<Answer> {
    let Some(domain) = &args.domain else {
        list(context, &ManagedSaveList { json: args.json })?;
        return Ok(Answer::Done);
    };
    let status = context.host.managed_save(domain, &context.terminal);
    context.terminal.finish();
    let status = status?;
    if args.json {
        print_json(&status)?;
    } else if let Some(status) = &status {
        print(&render::managed(
            std::slice::from_ref(status),
            &TimeZone::system(),
        ))?;
    }
    Ok(match status {
        Some(_) => Answer::Done,
        None => Answer::No,
    })
}

pub(super) fn list(context: &Context, args: &ManagedSaveList) -> Result<()> {
    let (all, failed) = context.host.managed_saves(&context.terminal);
    context.terminal.finish();
    if args.json {
        print_json(&all)?;
    } else if !all.is_empty() {
        print(&render::managed(&all, &TimeZone::system()))?;
    }
    failed.iter().for_each(complain);
    match failed.len() {
        0 => Ok(()),
        number => Err(Error::new(
            ErrorKind::Corrupt,
            format!("of {number} domains it cannot be told whether they were saved"),
        )),
    }
}
