//! `snapshot-delete`

use super::Context;
use crate::args::Delete;
use libxl_ext::Result;
use libxl_ext::plan::DeleteRequest;

pub(super) fn run(context: &Context, args: &Delete) -> Result<()> {
    let request = DeleteRequest {
        name: args.name.clone(),
    };
    let (host, terminal) = (&context.host, &context.terminal);
    context.change(
        args.output,
        || host.plan_delete(&args.domain, &request, terminal),
        || host.snapshot_delete(&args.domain, &request, terminal),
        |done| {
            Ok(format!(
                "Domain '{}': snapshot '{}' deleted\n",
                done.plan.domain, args.name
            ))
        },
    )
}
