//! `snapshot-export`, `snapshot-import`

use super::{Context, print, print_json};
use crate::args::{Export, Import};
use libxl_ext::Result;
use libxl_ext::bundle::ImportRequest;

pub(super) fn export(context: &Context, args: &Export) -> Result<()> {
    let done = context
        .host
        .export(&args.domain, &args.file, &context.terminal)?;
    context.terminal.finish();
    if args.json {
        return print_json(&done);
    }
    print(&format!(
        "Domain '{}': {} snapshots and {} images are in {}\n",
        args.domain,
        done.snapshots,
        done.images,
        args.file.display()
    ))
}

pub(super) fn import(context: &Context, args: &Import) -> Result<()> {
    let request = ImportRequest {
        name: args.name.clone(),
        directory: args.directory.clone(),
        keep_paths: args.keep_paths,
    };
    let done = context
        .host
        .import(&args.file, &request, &context.terminal)?;
    context.terminal.finish();
    if args.json {
        return print_json(&done);
    }
    print(&format!(
        "Domain '{}': {} snapshots, with {} images\n",
        done.domain,
        done.snapshots,
        done.images.len()
    ))
}
