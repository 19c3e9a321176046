//! `snapshot-revert`

use super::{Context, finish, print, print_json};
use crate::args::Revert;
use crate::render;
use libxl_ext::Result;
use libxl_ext::model::name::SnapshotName;
use libxl_ext::plan::{Request, RevertRequest};
use libxl_ext::snapshot::Done;
use serde_json::json;

pub(super) fn run(context: &Context, args: &Revert) -> Result<()> {
    let request = RevertRequest {
        name: args.name.clone(),
        state: args.state(),
        force: args.force,
    };
    match &args.keep_current {
        Some(keep) => keeping(context, args, &request, keep.clone()),
        None => context.change(
            &args.domain,
            &Request::Revert(request),
            args.output,
            |done| describe(args, done),
        ),
    }
}

fn describe(args: &Revert, done: &Done) -> String {
    let guest = args
        .state()
        .or(done.record.find(&args.name).ok().map(|found| found.guest));
    let guest = guest.map_or_else(String::new, |guest| format!(", {guest}"));
    format!(
        "Domain '{}': back at snapshot '{}'{guest}\n",
        done.plan.domain, args.name
    )
}

/// The same, with the present state kept as a snapshot.
fn keeping(
    context: &Context,
    args: &Revert,
    request: &RevertRequest,
    keep: Option<SnapshotName>,
) -> Result<()> {
    let Context { host, terminal, .. } = context;
    if args.output.plan {
        let (kept, reverted) = host.plan_keeping(&args.domain, request, keep, terminal)?;
        terminal.finish();
        return if args.output.json {
            print_json(&[kept, reverted])
        } else {
            print(&format!("{kept}{reverted}"))
        };
    }
    let (kept, reverted) = host.revert_keeping(&args.domain, request, keep, terminal)?;
    terminal.finish();
    if args.output.json {
        let mut json = render::done_json(host, &reverted)?;
        json["kept"] = json!(kept.plan.snapshot);
        print_json(&json)?;
    } else {
        print(&format!(
            "Domain '{}': the present state is kept as snapshot '{}'\n{}",
            kept.plan.domain,
            kept.plan.snapshot,
            describe(args, &reverted)
        ))?;
    }
    finish(kept).and_then(|()| finish(reverted))
}
