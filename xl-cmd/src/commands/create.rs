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
        live: args.live,
        kind: args.external.then_some(DiskKind::External),
        disks: args.disks.clone(),
    };
    context.change(
        &args.domain,
        &Request::Create(request),
        args.output,
        |done| {
            let pause = done.pause.map_or_else(String::new, |pause| {
                format!("; the guest stood still for {:.2} s", pause.as_secs_f32())
            });
            format!(
                "Domain '{}': snapshot '{}' created{pause}\n",
                done.plan.domain, done.plan.snapshot
            )
        },
    )
}
