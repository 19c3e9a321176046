//! `snapshot-create`

use super::Context;
use crate::args::Create;
use libxl_ext::Result;
use libxl_ext::model::disk::DiskKind;
use libxl_ext::plan::{CreateRequest, Request};

pub(super) fn run(context: &Context, args: &Create) -> Result<()> {
    let request = CreateRequest {
        name: args.name.clone(),
        description: args.description.clone(),
        kind: args.external.then_some(DiskKind::External),
        disks: args.disks.clone(),
    };
    context.change(
        &args.domain,
        &Request::Create(request),
        args.output,
        |done| {
            format!(
                "Domain '{}': snapshot '{}' created\n",
                done.plan.domain, done.plan.snapshot
            )
        },
    )
}
