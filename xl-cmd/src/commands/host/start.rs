//! `host-start`: what goes on, and what is started, when the host is up.

use crate::args::HostStart;
use crate::as_xl::{self, dry_run};
use crate::commands::{Context, finish, print};
use libxl_ext::event::Observer as _;
use libxl_ext::plan::{ManagedStartRequest, Request};
use libxl_ext::{Error, ErrorKind, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// First those that were saved, then those of the directory that are not there. One that fails does not stop the
/// others.
pub(crate) fn start(context: &Context, args: &HostStart) -> Result<()> {
    let mut failed = 0_usize;
    let mut complain = |what: &str, error: &Error| {
        failed += 1;
        let error = format!("{what}: {}", error.report());
        tracing::error!("{error}");
        eprintln!("xl-ext: {error}");
    };
    let mut auto: BTreeMap<String, PathBuf> = BTreeMap::new();
    // Whatever is the matter with them, what was saved goes on.
    let files = configurations(args.auto()).unwrap_or_else(|error| {
        complain("no domain is started afresh", &error);
        Vec::new()
    });
    for file in files {
        let name = dry_run::of_file(&file).and_then(|found| dry_run::name(&found));
        match name {
            Ok(name) => drop(auto.entry(name).or_insert(file)),
            Err(error) => complain(&file.display().to_string(), &error),
        }
    }
    let (saved, unknown) = context.host.managed_saves(&context.terminal);
    for error in &unknown {
        complain("not started", error);
    }
    // Also those that are not to go on by themselves: as long as there is an image, nothing else may be started.
    let mut seen = BTreeSet::new();
    for it in saved {
        let goes_on = it.image.at_boot || auto.contains_key(&it.domain);
        let saved_again = args
            .saved_by_xendomains(&it.domain)
            .filter(|_| it.stale.is_some());
        if goes_on && !is_there(context, &it.domain, &mut complain) {
            if let Some(file) = saved_again {
                leave(context, &it.domain, &file);
            } else if args.output.plan {
                print(&format!("'{}': goes on from what was saved\n", it.domain))?;
            } else if let Err(error) = go_on(context, &it.domain) {
                complain(&format!("domain '{}' does not go on", it.domain), &error);
            }
        }
        seen.insert(it.domain);
    }
    for (name, file) in &auto {
        if seen.contains(name) || is_there(context, name, &mut complain) {
            continue;
        }
        if let Some(saved) = args.saved_by_xendomains(name) {
            leave(context, name, &saved);
        } else if args.output.plan {
            print(&format!("'{name}': xl create {}\n", file.display()))?;
        } else if let Err(error) = as_xl::create(&context.store, file, &["-q"]) {
            complain(&format!("domain '{name}' is not started"), &error);
        } else {
            context
                .terminal
                .note(&format!("domain '{name}' is started"));
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(Error::new(
            ErrorKind::DomainState,
            format!("{failed} domains or files failed"),
        )),
    }
}

/// Whether there is such a domain. One that nobody can tell of is left alone.
fn is_there(context: &Context, domain: &str, complain: &mut dyn FnMut(&str, &Error)) -> bool {
    match context.host.domid_of(domain) {
        Ok(domid) => domid.is_some(),
        Err(error) => {
            complain(&format!("domain '{domain}' is left alone"), &error);
            true
        }
    }
}

fn leave(context: &Context, domain: &str, saved: &Path) {
    context.terminal.note(&format!(
        "domain '{domain}' is left to xendomains, which has saved it to {}",
        saved.display()
    ));
}

fn go_on(context: &Context, domain: &str) -> Result<()> {
    context.terminal.about(domain);
    let request = Request::ManagedStart(ManagedStartRequest::default());
    let done = context.host.execute(domain, &request, &context.terminal);
    context.terminal.finish();
    // The guest runs; what is left over is no reason to say otherwise.
    if let Err(error) = finish(done?) {
        context.terminal.note(&error.report());
    }
    context.terminal.note(&format!(
        "domain '{domain}' goes on from where it was saved"
    ));
    Ok(())
}

/// The files in the directory, in the order of their names, as xendomains takes them.
fn configurations(directory: Option<&Path>) -> Result<Vec<PathBuf>> {
    let Some(directory) = directory else {
        return Ok(Vec::new());
    };
    let failed = |error| Error::io(format!("list {}", directory.display()), error);
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let is_hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        // A link to a file elsewhere is usual.
        if !is_hidden && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_come_in_their_order_and_links_count() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["b.cfg", "a", ".hidden"] {
            std::fs::write(at(name), "").unwrap();
        }
        std::fs::create_dir(at("c")).unwrap();
        std::os::unix::fs::symlink(at("a"), at("0-link")).unwrap();
        std::os::unix::fs::symlink("/nowhere", at("dangling")).unwrap();
        let found = configurations(Some(directory.path())).unwrap();
        assert_eq!(found, [at("0-link"), at("a"), at("b.cfg")]);
        assert!(configurations(Some(&at("none"))).unwrap().is_empty());
        assert!(configurations(None).unwrap().is_empty());
    }
}
