//! A plan as a person reads it.

use super::Plan;
use std::fmt;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.title())?;
        for (number, step) in (1..).zip(&self.steps) {
            writeln!(f, "{number:>4}. {step}")?;
        }
        let cost = &self.cost;
        let costs = [
            (
                "guest stands still while up to",
                cost.memory_written,
                "of memory are written",
            ),
            ("reads", cost.memory_read, "of a memory image"),
            ("up to", cost.disk_copied, "is copied from image to image"),
            ("needs up to", cost.room_needed, "of room"),
            ("gives back", cost.room_released, "of room"),
        ];
        for (before, bytes, after) in costs.iter().filter(|(_, bytes, _)| *bytes > 0) {
            writeln!(f, "  cost: {before} {} {after}", mebibytes(*bytes))?;
        }
        if let Some(last) = cost.room_last {
            let last = mebibytes(last);
            writeln!(f, "  room: {last} were enough for the last memory image")?;
        }
        if cost.room_needed > 0 {
            writeln!(f, "  room: {} are free", mebibytes(cost.room_free))?;
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        Ok(())
    }
}

pub(super) fn mebibytes(bytes: u64) -> String {
    // The rounding of a display.
    #[allow(clippy::cast_precision_loss)]
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    format!("{mebibytes:.1} MiB")
}
