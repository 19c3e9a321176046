//! `snapshot-create`

use super::Context;
use crate::args::Create;
use libxl_ext::Result;
use libxl_ext::plan::CreateRequest;

pub(super) fn run(context: &Context, args: &Create) -> Result<()> {
    let request = CreateRequest {
        name: args.name.clone(),
        description: args.description.clone(),
    };
    let (host, terminal) = (&context.host, &context.terminal);
    context.change(
        args.output,
        || host.plan_create(&args.domain, &request, terminal),
        || host.snapshot_create(&args.domain, &request, terminal),
        |done| {
            Ok(format!(
                "Domain '{}': snapshot '{}' created\n",
                done.plan.domain, done.plan.snapshot
            ))
        },
    )
}
