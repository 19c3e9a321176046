//! `snapshot-info`

use super::{Context, print, print_json};
use crate::args::Info;
use crate::render;
use jiff::tz::TimeZone;
use libxl_ext::Result;

pub(super) fn run(context: &Context, args: &Info) -> Result<()> {
    let record = context.host.snapshots(&args.domain, &context.terminal)?;
    context.terminal.finish();
    let snapshot = record.find(&args.name)?;
    let rooms = context.host.memory_rooms(&record)?;
    if args.json {
        print_json(&render::snapshot_json(
            &context.host,
            &record,
            snapshot,
            &rooms,
        ))
    } else {
        let room = rooms.get(&snapshot.id).copied();
        print(&render::info(&record, snapshot, room, &TimeZone::system()))
    }
}
