//! `snapshot-rename` and `snapshot-describe`

use super::Context;
use crate::args::{Describe, Rename};
use libxl_ext::Result;
use libxl_ext::plan::{EditRequest, Request};

pub(super) fn rename(context: &Context, args: &Rename) -> Result<()> {
    let request = EditRequest {
        name: args.name.clone(),
        rename: Some(args.new_name.clone()),
        describe: None,
    };
    context.change(&args.domain, &Request::Edit(request), args.output, |done| {
        format!(
            "Domain '{}': snapshot '{}' is called '{}' now\n",
            done.plan.domain, args.name, args.new_name
        )
    })
}

pub(super) fn describe(context: &Context, args: &Describe) -> Result<()> {
    let request = EditRequest {
        name: args.name.clone(),
        rename: None,
        describe: Some(args.text.clone()),
    };
    context.change(&args.domain, &Request::Edit(request), args.output, |done| {
        format!(
            "Domain '{}': snapshot '{}' described\n",
            done.plan.domain, args.name
        )
    })
}
