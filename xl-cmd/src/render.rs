//! What the commands print. Text is for people and may change; JSON is for machines and grows only.

use comfy_table::{Table, presets};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use libxl_ext::Result;
use libxl_ext::model::disk::DiskTarget;
use libxl_ext::model::name::SnapshotId;
use libxl_ext::model::record::{DomainRecord, MemoryProof, RecordState, SnapshotRecord};
use libxl_ext::observe::MemoryRoom;
use libxl_ext::snapshot::{Done, Host, ManagedSave, PullInfo, ReplicationInfo};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// The room that each memory image takes.
type Rooms = BTreeMap<SnapshotId, MemoryRoom>;

/// What `--json` prints after a change: the plan's identity and the snapshots as they are now.
///
/// # Errors
/// As [`list_json`].
pub(crate) fn done_json(host: &Host, done: &Done) -> Result<Value> {
    Ok(json!({
        "operation": done.plan.operation,
        "id": done.plan.id,
        "snapshot": done.plan.snapshot,
        "notes": done.plan.notes,
        "pause_ms": done.pause.map(|pause| pause.as_secs_f64() * 1e3),
        "now": list_json(host, &done.record)?,
    }))
}

/// All snapshots of a domain.
///
/// # Errors
/// If the store cannot be listed.
pub(crate) fn list_json(host: &Host, record: &DomainRecord) -> Result<Value> {
    let rooms = host.memory_rooms(record)?;
    let current = record
        .current
        .and_then(|id| record.get(id))
        .map(SnapshotRecord::name);
    let snapshots: Vec<_> = record
        .snapshots
        .iter()
        .map(|snapshot| snapshot_json(host, record, snapshot, &rooms))
        .collect();
    Ok(json!({
        "domain": record.domain,
        "current": current,
        "disks_now": disks_now(record, record.snapshots.iter().rev()),
        "snapshots": snapshots,
    }))
}

/// Which images the disks of snapshots are now, each device once: where the domain goes on.
fn disks_now<'a>(
    record: &DomainRecord,
    snapshots: impl Iterator<Item = &'a SnapshotRecord>,
) -> Vec<DiskTarget> {
    let mut disks: Vec<DiskTarget> = Vec::new();
    for proof in snapshots.flat_map(|snapshot| &snapshot.disks) {
        if disks.iter().all(|disk| disk.vdev != proof.target.vdev) {
            disks.push(record.disk_now(&proof.target));
        }
    }
    disks.sort_by(|one, other| one.vdev.cmp(&other.vdev));
    disks
}

/// One snapshot: V6's `domain_snapshot` in libxl's JSON dialect, and beside it what we know more.
pub(crate) fn snapshot_json(
    host: &Host,
    record: &DomainRecord,
    snapshot: &SnapshotRecord,
    rooms: &Rooms,
) -> Value {
    let v6 = host.domain_snapshot(&record.domain, snapshot);
    json!({
        "domain_snapshot": v6,
        "id": snapshot.id,
        "parent": parent(record, snapshot),
        "current": record.current == Some(snapshot.id),
        "state": snapshot.state,
        "guest": snapshot.guest,
        "type": snapshot.guest_type,
        "memory_image": snapshot.memory,
        "memory_room": rooms.get(&snapshot.id),
        "disk_images": snapshot.disks,
        "disks_now": disks_now(record, [snapshot].into_iter()),
    })
}

/// Saved domains as a table.
pub(crate) fn managed(all: &[ManagedSave], zone: &TimeZone) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "DOMAIN", "SAVED", "TYPE", "GOES ON", "SIZE", "STORED", "STATE",
    ]);
    for saved in all {
        let image = &saved.image;
        table.add_row([
            printable(&saved.domain),
            time(image.saved_at, zone),
            image.guest_type.to_string(),
            image.guest.to_string(),
            size(image.memory.as_ref()),
            mebibytes(saved.room.stored),
            saved.stale.as_deref().map_or("good".into(), printable),
        ]);
    }
    lines(&table)
}

/// How a pull goes, or went, on one line.
pub(crate) fn pull(info: &PullInfo) -> String {
    let base = match &info.base {
        None => "nothing".to_owned(),
        Some(base) => base.image.display().to_string(),
    };
    let percent = info.cur.saturating_mul(100).checked_div(info.end);
    let mut text = format!(
        "{} ({}) onto {}: {}, {} of {} bytes ({}%)",
        info.vdev,
        info.image.display(),
        base,
        info.state.as_str(),
        info.cur,
        info.end,
        percent.unwrap_or(100)
    );
    if info.bandwidth > 0 && !info.state.is_over() {
        let _ = write!(text, ", at most {} bytes/s", info.bandwidth);
    }
    if let Some(why) = &info.reason {
        let _ = write!(text, ": {why}");
    }
    format!("{}\n", printable(&text))
}

/// The snapshots as a table, oldest first.
pub(crate) fn table(record: &DomainRecord, rooms: &Rooms, zone: &TimeZone) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["Name", "Created", "Guest", "Memory", "Stored", "Disks", ""]);
    for snapshot in &record.snapshots {
        table.add_row([
            snapshot.name().to_owned(),
            time(snapshot.snapshot.creation_time, zone),
            snapshot.guest.to_string(),
            size(snapshot.memory.as_ref()),
            rooms
                .get(&snapshot.id)
                .map_or_else(|| "-".to_owned(), |room| mebibytes(room.stored)),
            vdevs(snapshot),
            remark(record, snapshot).to_owned(),
        ]);
    }
    lines(&table)
}

/// The snapshots with each one's children below it.
pub(crate) fn tree(record: &DomainRecord) -> String {
    let mut text = String::new();
    for (depth, snapshot) in record.walk() {
        let remark = match remark(record, snapshot) {
            "" => String::new(),
            remark => format!("  ({remark})"),
        };
        let _ = writeln!(text, "{}{}{remark}", "  ".repeat(depth), snapshot.name());
    }
    text
}

/// One snapshot, a line for each fact.
pub(crate) fn info(
    record: &DomainRecord,
    snapshot: &SnapshotRecord,
    room: Option<MemoryRoom>,
    zone: &TimeZone,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut row = |name: &str, value: String| {
        table.add_row([format!("{name}:"), value]);
    };
    row("Name", snapshot.name().to_owned());
    row("Domain", record.domain.clone());
    row(
        "Description",
        printable(snapshot.snapshot.description.as_deref().unwrap_or("-")),
    );
    row("Created", time(snapshot.snapshot.creation_time, zone));
    row(
        "Guest",
        format!("{}, {}", snapshot.guest_type, snapshot.guest),
    );
    row(
        "Current",
        if record.current == Some(snapshot.id) {
            "yes"
        } else {
            "no"
        }
        .to_owned(),
    );
    row("Parent", parent(record, snapshot).unwrap_or("-").to_owned());
    let children: Vec<_> = record
        .children(Some(snapshot.id))
        .map(SnapshotRecord::name)
        .collect();
    row(
        "Children",
        if children.is_empty() {
            "-".to_owned()
        } else {
            children.join(", ")
        },
    );
    row("Memory", size(snapshot.memory.as_ref()));
    if let Some(room) = room {
        let stored = mebibytes(room.stored);
        let alone = mebibytes(room.alone);
        row(
            "Stored",
            if snapshot
                .memory
                .as_ref()
                .is_some_and(|it| it.packed.is_some())
            {
                format!("{stored}, of which no other snapshot needs {alone}")
            } else {
                stored
            },
        );
    }
    for proof in &snapshot.disks {
        row(
            "Disk",
            format!(
                "{} {}, {}",
                proof.target.vdev,
                proof.kind,
                proof.target.image.display()
            ),
        );
    }
    for disk in disks_now(record, [snapshot].into_iter()) {
        row(
            "Disk now",
            format!("{} {}", disk.vdev, disk.image.display()),
        );
    }
    if snapshot.state == RecordState::Deleting {
        row(
            "State",
            "its deletion has begun; snapshot-delete finishes it".to_owned(),
        );
    }
    lines(&table)
}

fn lines(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn parent<'a>(record: &'a DomainRecord, snapshot: &SnapshotRecord) -> Option<&'a str> {
    snapshot
        .parent
        .and_then(|id| record.get(id))
        .map(SnapshotRecord::name)
}

fn remark(record: &DomainRecord, snapshot: &SnapshotRecord) -> &'static str {
    match snapshot.state {
        RecordState::Deleting => "deletion unfinished",
        RecordState::Complete if record.current == Some(snapshot.id) => "current",
        RecordState::Complete => "",
    }
}

/// How replications are, a paragraph for each.
pub(crate) fn replications(infos: &[ReplicationInfo], zone: &TimeZone) -> String {
    let mut text = String::new();
    for info in infos {
        let since = info
            .since
            .map(|since| format!(" since {}", time(since, zone)));
        let with = match &info.peer {
            Some(peer) => format!(" to {}", printable(peer)),
            None => " to this host".to_owned(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "Domain '{}': replication{with} is {}{}",
            printable(&info.domain),
            info.state,
            since.unwrap_or_default()
        );
        let mut row = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<12}{value}");
        };
        if let Some(why) = &info.why {
            let lines: Vec<_> = why.lines().map(|line| printable(line.trim())).collect();
            row("Why", lines.join("; "));
        }
        if let Some(checkpoint) = info.checkpoint {
            let pause = info
                .pause_us
                .map(|pause| Duration::from_micros(pause).as_secs_f64() * 1e3);
            let pause = pause.map(|pause| format!(", the guest stood still for {pause:.1} ms"));
            let at = time(checkpoint.at, zone);
            let number = checkpoint.number;
            row(
                "Checkpoint",
                format!("{number} at {at}{}", pause.unwrap_or_default()),
            );
        }
        if let Some(memory) = info.memory {
            let bytes = memory.bytes.map(mebibytes);
            let stored = memory.stored_bytes.map(mebibytes);
            let stored = stored.map(|stored| format!(", {stored} stored"));
            row(
                "Memory",
                match bytes {
                    Some(bytes) => {
                        format!("{bytes} with the checkpoint{}", stored.unwrap_or_default())
                    }
                    None => "with each checkpoint".to_owned(),
                },
            );
        }
        row("Generation", info.generation.to_string());
        let disks: Vec<_> = info
            .disks
            .iter()
            .map(|disk| printable(&disk.to_string()))
            .collect();
        row("Disks", disks.join(", "));
        let is_over = matches!(info.state.as_str(), "stopped" | "failed over" | "lost");
        if info.role == "secondary" && !info.is_served && !is_over {
            row(
                "Trouble",
                "the QEMU that kept it is gone: it cannot fail over".to_owned(),
            );
        }
    }
    if text.is_empty() {
        text.push_str("no replication\n");
    }
    text
}

fn time(seconds: u64, zone: &TimeZone) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .map_or_else(
            || "?".to_owned(),
            |time| {
                time.to_zoned(zone.clone())
                    .strftime("%Y-%m-%d %H:%M:%S %z")
                    .to_string()
            },
        )
}

fn size(memory: Option<&MemoryProof>) -> String {
    memory.map_or_else(|| "-".to_owned(), |proof| mebibytes(proof.bytes))
}

pub(crate) fn mebibytes(bytes: u64) -> String {
    // The rounding of a display.
    #[allow(clippy::cast_precision_loss)]
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    format!("{mebibytes:.1} MiB")
}

fn vdevs(snapshot: &SnapshotRecord) -> String {
    let vdevs: Vec<_> = snapshot
        .disks
        .iter()
        .map(|proof| proof.target.vdev.as_str())
        .collect();
    if vdevs.is_empty() {
        "-".to_owned()
    } else {
        vdevs.join(" ")
    }
}

/// Text of a user's without what could drive a terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use libxl_ext::model::disk::{DiskKind, ImageFormat};
    use libxl_ext::model::domain::{GuestState, GuestType};
    use libxl_ext::model::layer::Layer;
    use libxl_ext::model::name::SnapshotId;
    use libxl_ext::model::record::{DiskProof, MemoryProof};
    use libxl_ext::types::DomainSnapshot;
    use std::path::Path;

    fn record() -> DomainRecord {
        let mut domain = DomainRecord::new("web1");
        for (number, name) in [(1_u64, "installed"), (2, "été"), (3, "-rf")] {
            let memory = MemoryProof::plain(number << 27, "");
            domain.add(SnapshotRecord {
                id: SnapshotId::random(),
                parent: None,
                state: RecordState::Complete,
                guest: GuestState::Running,
                guest_type: GuestType::Pv,
                domain_uuid: SnapshotId::random().0,
                snapshot: DomainSnapshot {
                    name: Some(name.into()),
                    description: Some("red \u{1b}[31malert".into()),
                    creation_time: 1_700_000_000 + number,
                    ..DomainSnapshot::default()
                },
                memory: (number != 3).then_some(memory),
                disks: Vec::new(),
                configuration: None,
                contents: std::collections::BTreeMap::new(),
            });
        }
        domain.mark_deleting(&[domain.snapshots[1].id]);
        domain.current = Some(domain.snapshots[0].id);
        domain
    }

    /// A configuration file is to name it, where `xl-ext` is not `xl`.
    #[test]
    fn it_is_said_which_image_a_disk_is_now() {
        let mut domain = record();
        let disk = |path: &str, format| DiskTarget {
            vdev: "xvda".into(),
            image: Path::new(path).into(),
            format,
        };
        let base = disk("/i/a.raw", ImageFormat::Raw);
        let now = |domain: &DomainRecord| disks_now(domain, domain.snapshots.iter());
        for snapshot in &mut domain.snapshots {
            snapshot.disks.push(DiskProof {
                target: base.clone(),
                kind: DiskKind::External,
                stamp: None,
            });
        }
        assert_eq!(now(&domain), std::slice::from_ref(&base));
        domain.add_layers(&[Layer {
            vdev: "xvda".into(),
            image: Path::new("/i/layer").into(),
            backing: Some((&base).into()),
            below_written: None,
            base: (&base).into(),
            active: true,
            merging: None,
        }]);
        let layer = disk("/i/layer", ImageFormat::Qcow2);
        assert_eq!(now(&domain), std::slice::from_ref(&layer));
        let text = info(&domain, &domain.snapshots[0], None, &TimeZone::UTC);
        let lines: Vec<_> = text.lines().filter(|line| line.contains("Disk")).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        Disk:         xvda external, /i/a.raw
        Disk now:     xvda /i/layer
        ");
    }

    #[test]
    fn a_table_has_a_line_for_each_snapshot() {
        let record = record();
        let with_memory = record.snapshots.iter().filter(|it| it.memory.is_some());
        let room = MemoryRoom {
            stored: 7 << 20,
            alone: 1 << 20,
        };
        let rooms = with_memory.map(|it| (it.id, room)).collect();
        insta::assert_snapshot!(table(&record, &rooms, &TimeZone::UTC));
    }

    #[test]
    fn a_tree_is_indented() {
        insta::assert_snapshot!(tree(&record()));
    }

    #[test]
    fn what_a_user_wrote_cannot_drive_the_terminal() {
        let record = record();
        let room = MemoryRoom {
            stored: 7 << 20,
            alone: 1 << 20,
        };
        let text = info(&record, &record.snapshots[1], Some(room), &TimeZone::UTC);
        assert!(!text.contains('\u{1b}'));
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_domain_without_snapshots_has_an_empty_tree() {
        assert_eq!(tree(&DomainRecord::new("web1")), "");
    }
}
