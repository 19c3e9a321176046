//! What the commands print. Text is for people and may change; JSON is for machines and grows only.

use comfy_table::{Table, presets};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use libxl_ext::model::record::{DomainRecord, RecordState, SnapshotRecord};
use libxl_ext::snapshot::{Done, Host};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// What `--json` prints after a change: the plan's identity and the snapshots as they are now.
pub(crate) fn done_json(host: &Host, done: &Done) -> Value {
    json!({
        "operation": done.plan.operation,
        "id": done.plan.id,
        "snapshot": done.plan.snapshot,
        "notes": done.plan.notes,
        "pause_ms": done.pause.map(|pause| pause.as_secs_f64() * 1e3),
        "now": list_json(host, &done.record),
    })
}

/// All snapshots of a domain.
pub(crate) fn list_json(host: &Host, record: &DomainRecord) -> Value {
    let current = record
        .current
        .and_then(|id| record.get(id))
        .map(SnapshotRecord::name);
    let snapshots: Vec<_> = record
        .snapshots
        .iter()
        .map(|snapshot| snapshot_json(host, record, snapshot))
        .collect();
    json!({ "domain": record.domain, "current": current, "snapshots": snapshots })
}

/// One snapshot: V6's `domain_snapshot` in libxl's JSON dialect, and beside it what we know more.
pub(crate) fn snapshot_json(
    host: &Host,
    record: &DomainRecord,
    snapshot: &SnapshotRecord,
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
        "disk_images": snapshot.disks,
    })
}

/// The snapshots as a table, oldest first.
pub(crate) fn table(record: &DomainRecord, zone: &TimeZone) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["Name", "Created", "Guest", "Memory", "Disks", ""]);
    for snapshot in &record.snapshots {
        table.add_row([
            snapshot.name().to_owned(),
            created(snapshot, zone),
            snapshot.guest.to_string(),
            memory(snapshot),
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
pub(crate) fn info(record: &DomainRecord, snapshot: &SnapshotRecord, zone: &TimeZone) -> String {
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
    row("Created", created(snapshot, zone));
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
    row("Memory", memory(snapshot));
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

fn created(snapshot: &SnapshotRecord, zone: &TimeZone) -> String {
    i64::try_from(snapshot.snapshot.creation_time)
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

fn memory(snapshot: &SnapshotRecord) -> String {
    // The rounding of a display.
    #[allow(clippy::cast_precision_loss)]
    snapshot.memory.as_ref().map_or_else(
        || "-".to_owned(),
        |proof| format!("{:.1} MiB", proof.bytes as f64 / f64::from(1 << 20)),
    )
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
    use libxl_ext::model::domain::{GuestState, GuestType};
    use libxl_ext::model::name::SnapshotId;
    use libxl_ext::model::record::MemoryProof;
    use libxl_ext::types::DomainSnapshot;

    fn record() -> DomainRecord {
        let mut domain = DomainRecord::new("web1");
        for (number, name) in [(1_u64, "installed"), (2, "été"), (3, "-rf")] {
            let memory = MemoryProof {
                bytes: number << 27,
                xxh3: String::new(),
            };
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
            });
        }
        domain.mark_deleting(&[domain.snapshots[1].id]);
        domain.current = Some(domain.snapshots[0].id);
        domain
    }

    #[test]
    fn a_table_has_a_line_for_each_snapshot() {
        insta::assert_snapshot!(table(&record(), &TimeZone::UTC));
    }

    #[test]
    fn a_tree_is_indented() {
        insta::assert_snapshot!(tree(&record()));
    }

    #[test]
    fn what_a_user_wrote_cannot_drive_the_terminal() {
        let record = record();
        let text = info(&record, &record.snapshots[1], &TimeZone::UTC);
        assert!(!text.contains('\u{1b}'));
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_domain_without_snapshots_has_an_empty_tree() {
        assert_eq!(tree(&DomainRecord::new("web1")), "");
    }
}
