//! `snapshot-export-memory`

use super::{Context, print};
use crate::args::ExportMemory;
use libxl_ext::Result;

pub(super) fn run(context: &Context, args: &ExportMemory) -> Result<()> {
    context
        .host
        .export_memory(&args.domain, &args.name, &args.file, &context.terminal)?;
    context.terminal.finish();
    print(&format!(
        "Memory of snapshot '{}' written to {}\n",
        args.name,
        args.file.display()
    ))
}
