//! `snapshot-list`

use super::{Context, print, print_json};
use crate::args::List;
use crate::render;
use jiff::tz::TimeZone;
use libxl_ext::Result;

pub(super) fn run(context: &Context, args: &List) -> Result<()> {
    let record = context.host.snapshots(&args.domain, &context.terminal)?;
    context.terminal.finish();
    if args.json {
        print_json(&render::list_json(&context.host, &record)?)
    } else if args.tree {
        print(&render::tree(&record))
    } else {
        let rooms = context.host.memory_rooms(&record)?;
        print(&render::table(&record, &rooms, &TimeZone::system()))
    }
}
