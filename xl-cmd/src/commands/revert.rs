//! `snapshot-revert`

use super::Context;
use crate::args::Revert;
use libxl_ext::Result;
use libxl_ext::plan::{Request, RevertRequest};

pub(super) fn run(context: &Context, args: &Revert) -> Result<()> {
    let request = RevertRequest {
        name: args.name.clone(),
        state: args.state(),
        force: args.force,
    };
    context.change(
        &args.domain,
        &Request::Revert(request),
        args.output,
        |done| {
            let guest = args
                .state()
                .or(done.record.find(&args.name).ok().map(|found| found.guest));
            let guest = guest.map_or_else(String::new, |guest| format!(", {guest}"));
            format!(
                "Domain '{}': back at snapshot '{}'{guest}\n",
                done.plan.domain, args.name
            )
        },
    )
}
