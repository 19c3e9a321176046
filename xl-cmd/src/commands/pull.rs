//! `block-pull`, `block-pull-info`, `block-pull-abort` and `block-pull-set-speed`

use super::{Context, finish, own_command, print, print_json};
use crate::args::{BlockPull, BlockPullAbort, BlockPullInfo, BlockPullSetSpeed};
use crate::as_xl::dry_run;
use crate::render;
use libxl_ext::event::Observer as _;
use libxl_ext::plan::{Increment, PullRequest, Request};
use libxl_ext::snapshot::{PullInfo, PullProgress};
use libxl_ext::{Error, ErrorKind, Result};
use serde_json::json;

pub(super) fn run(context: &Context, args: &BlockPull) -> Result<()> {
    let request = request(args)?;
    let (domain, disk) = (&*args.domain, &*args.disk);
    if args.output.plan {
        return context.change(domain, &Request::Pull(request), args.output, |_| {
            String::new()
        });
    }
    let pulled = context.host.pull(domain, &request, &context.terminal);
    let (done, mut info) = pulled.inspect_err(|_| context.terminal.finish())?;
    let has_begun = !done.plan.steps.is_empty();
    let is_at_work =
        |info: &PullInfo| matches!(info.state, PullProgress::Running | PullProgress::Copied);
    let goes_on = has_begun && info.as_ref().is_some_and(is_at_work);
    if goes_on && args.wait {
        context.terminal.step(&format!("pull {disk}"));
        info = Some(
            context
                .host
                .wait_for_pull(domain, disk, &context.terminal)?,
        );
    } else if goes_on {
        watch_in_background(context, &done.plan.domain, disk);
    }
    context.terminal.finish();
    if args.output.json {
        print_json(&json!({
            "operation": done.plan.operation,
            "id": done.plan.id,
            "notes": done.plan.notes,
            "nothing_to_do": !has_begun,
            "pull": info,
        }))?;
    } else if let Some(info) = info.as_ref().filter(|_| has_begun) {
        print(&render::pull(info))?;
    }
    // Between the increments of a domain that is off nobody works on it.
    let is_between = |info: &PullInfo| !args.wait && info.state == PullProgress::Interrupted;
    if let Some(info) = info.filter(|info| has_begun && !is_between(info)) {
        good(&info)?;
    }
    finish(done)
}

fn request(args: &BlockPull) -> Result<PullRequest> {
    let configuration = args.domain_config.as_deref().map(dry_run::of_file);
    Ok(PullRequest {
        disk: args.disk.clone(),
        base: args.base.clone(),
        bandwidth: args.bandwidth,
        on_error: args.on_error.into(),
        release_base: args.release_base,
        increment: args.step.map(|bytes| Increment {
            bytes,
            cursor: None,
        }),
        configuration: configuration.transpose()?,
    })
}

/// The last act of a pull is ours to do: somebody has to be there when everything is copied. If nobody is, the next command
/// does it.
fn watch_in_background(context: &Context, domain: &str, disk: &str) {
    let started = own_command(context).and_then(|mut command| {
        command
            .args(["block-pull-info", "--watch", "--", domain, disk])
            .spawn()
    });
    if let Err(error) = started {
        context.terminal.note(&format!(
            "nobody waits for the end of the pull ({error}); `xl-ext block-pull-info --watch {domain} {disk}` does"
        ));
    }
}

/// What ended otherwise than it should is a failure of the command that waited for it.
fn good(info: &PullInfo) -> Result<()> {
    let PullInfo { vdev, image, .. } = info;
    let disk = format!("{vdev} ({})", image.display());
    let failed = |kind: ErrorKind, what: &str| {
        let error = Error::new(kind, format!("the pull of {disk} {what}"));
        let error =
            error.hint("what was pulled until then stays; give the command again to go on with it");
        match &info.reason {
            Some(why) => error.because(why.clone()),
            None => error,
        }
    };
    match info.state {
        PullProgress::Failed => Err(failed(ErrorKind::Toolstack, "failed")),
        PullProgress::Stalled => Err(failed(ErrorKind::Toolstack, "stands still")),
        PullProgress::Aborted => Err(failed(ErrorKind::Aborted, "was ended")),
        PullProgress::Interrupted => Err(failed(
            ErrorKind::DomainState,
            "was interrupted: the domain that it belonged to is gone",
        )),
        PullProgress::Running
        | PullProgress::Paused
        | PullProgress::Copied
        | PullProgress::Completed => Ok(()),
    }
}

pub(super) fn info(context: &Context, args: &BlockPullInfo) -> Result<()> {
    let (domain, disk) = (&*args.domain, args.disk.as_deref());
    let infos = match disk.filter(|_| args.watch) {
        Some(disk) => {
            context.terminal.step(&format!("pull {disk}"));
            vec![
                context
                    .host
                    .wait_for_pull(domain, disk, &context.terminal)?,
            ]
        }
        None => context.host.pulls(domain, disk, &context.terminal)?,
    };
    context.terminal.finish();
    if args.json {
        return print_json(&infos);
    }
    if infos.is_empty() {
        return print("no pull\n");
    }
    let text: Vec<_> = infos.iter().map(render::pull).collect();
    print(&text.concat())
}

pub(super) fn abort(context: &Context, args: &BlockPullAbort) -> Result<()> {
    let info = context
        .host
        .abort_pull(&args.domain, &args.disk, &context.terminal)?;
    context.terminal.finish();
    if args.json {
        return print_json(&info);
    }
    print(&render::pull(&info))
}

pub(super) fn set_speed(context: &Context, args: &BlockPullSetSpeed) -> Result<()> {
    context
        .host
        .set_pull_speed(&args.domain, &args.disk, args.bandwidth)
}
