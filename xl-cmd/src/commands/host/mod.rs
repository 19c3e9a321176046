//! `host-shutdown` and `host-start`: what becomes of the domains when their host goes down, and when it is up again.
//!
//! ```text
//! the domains that run -> fates (pure) -> saves, several at a time -> clean shutdowns of the rest
//! ```

mod fates;
mod saves;
mod start;

pub(super) use start::start;

use super::{Context, json, print, print_json};
use crate::args::HostShutdown;
use crate::as_xl;
use fates::{Fate, fates};
use libxl_ext::event::Observer as _;
use libxl_ext::model::domain::DomainState;
use libxl_ext::snapshot::RunningDomain;
use libxl_ext::{Error, ErrorKind, Result};
use saves::{Children, Save, save_all};
use std::time::{Duration, Instant};

/// How often it is looked whether a domain is gone.
const LOOK: Duration = Duration::from_millis(500);

/// How long one that has shut down may take to go: xl's monitor destroys it, and its QEMU flushes the images. It may also
/// be kept (`on_poweroff="preserve"`).
const CLEANUP: Duration = Duration::from_secs(20);

/// Saves what fits the budget, and shuts down the rest.
pub(super) fn shutdown(context: &Context, args: &HostShutdown) -> Result<()> {
    let room = context.host.free_bytes()?;
    let room = args.save_mib.0.map_or(room, |mib| room.min(mib << 20));
    recover(context, &context.host.running()?);
    let all = fates(context.host.running()?, room);
    if args.output.plan {
        if args.output.json {
            return print_json(&all.iter().map(json).collect::<Result<Vec<_>>>()?);
        }
        let lines = all
            .iter()
            .map(|(domain, fate)| format!("'{}': {fate}\n", domain.name));
        return print(&lines.collect::<String>());
    }
    for (domain, fate) in &all {
        if *fate != Fate::Save {
            say(context, domain, &fate.to_string());
        }
    }
    let wanted = |wanted: fn(&Fate) -> bool| {
        let all = all.iter().filter(move |(_, fate)| wanted(fate));
        all.map(|(domain, _)| domain.clone())
    };
    let limits = saves::Limits {
        parallel: usize::from(args.parallel),
        time: Duration::from_secs(args.save_seconds),
    };
    let mut children = Children::new(&context.store)?;
    let ended = save_all(
        &mut children,
        wanted(|fate| *fate == Fate::Save).collect(),
        limits,
        &|| context.terminal.wants_abort(),
    );
    let (mut saved, mut rest) = (0_usize, Vec::new());
    for (domain, end) in ended {
        match end {
            Save::Done => {
                saved += 1;
                say(context, &domain, "saved; it goes on when the host boots");
            }
            Save::Failed | Save::OutOfTime => {
                say(context, &domain, &format!("{end}: it is shut down"));
                rest.push(domain);
            }
            Save::Stopped => {}
        }
    }
    if context.terminal.wants_abort() {
        return Err(Error::new(ErrorKind::Aborted, "stopped on request").hint(format!(
            "{saved} domains are saved, and the others run; `xl-ext host-start` lets those that are saved go on"
        )));
    }
    rest.extend(wanted(|fate| matches!(fate, Fate::ShutDown(_))));
    // A save that was killed may have left its guest suspended, and such a one does not hear of it.
    recover(context, &rest);
    let left = shut_down(context, &rest, Duration::from_secs(args.shutdown_seconds))?;
    if left.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::DomainState,
        format!("still there: {}", left.join(", ")),
    ))
}

/// Ends what killed commands left unfinished: their guests may be suspended.
fn recover(context: &Context, domains: &[RunningDomain]) {
    for domain in domains {
        match context.host.snapshots(&domain.name, &context.terminal) {
            // One that was never snapshotted is no matter.
            Ok(_) => {}
            Err(error) => say(context, domain, &error.report()),
        }
    }
}

/// Asks each to shut down, and waits. Returns the names of those that did not.
fn shut_down(context: &Context, domains: &[RunningDomain], limit: Duration) -> Result<Vec<String>> {
    for domain in domains {
        // One that cannot be asked is among those that are left.
        if let Err(error) = as_xl::shutdown(domain.domid) {
            say(context, domain, &error.report());
        }
    }
    let end = Instant::now() + limit;
    let mut ended = None;
    loop {
        let now = context.host.running()?;
        let find = |domain: &RunningDomain| now.iter().find(|it| it.domid == domain.domid);
        let has_ended =
            |it: &RunningDomain| [DomainState::Shutdown, DomainState::Crashed].contains(&it.state);
        let left: Vec<_> = domains.iter().filter_map(find).collect();
        let up = left.iter().filter(|it| !has_ended(it));
        let up: Vec<_> = up.map(|domain| domain.name.clone()).collect();
        if left.is_empty() || context.terminal.wants_abort() {
            return Ok(up);
        }
        if up.is_empty() {
            let since: &mut Instant = ended.get_or_insert_with(Instant::now);
            if since.elapsed() >= CLEANUP {
                return Ok(up);
            }
        } else if Instant::now() >= end {
            return Ok(up);
        }
        std::thread::sleep(LOOK);
    }
}

fn say(context: &Context, domain: &RunningDomain, what: &str) {
    context
        .terminal
        .note(&format!("domain '{}': {what}", domain.name));
}
