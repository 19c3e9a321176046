//! `snapshot-delete`

use super::Context;
use crate::args::Delete;
use libxl_ext::Result;
use libxl_ext::plan::{DeleteRequest, Request};

pub(super) fn run(context: &Context, args: &Delete) -> Result<()> {
    let request = DeleteRequest {
        name: args.name.clone(),
    };
    context.change(
        &args.domain,
        &Request::Delete(request),
        args.output,
        |done| {
            format!(
                "Domain '{}': snapshot '{}' deleted\n",
                done.plan.domain, args.name
            )
        },
    )
}
