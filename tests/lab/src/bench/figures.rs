//! Figures of several rounds, and what they come to.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

pub(super) const STOCK_SAVE: &str = "xl save";
pub(super) const STOCK_RESTORE: &str = "xl restore";
pub(super) const STOCK_CHECKPOINT: &str = "xl save -c";
pub(super) const SAVE: &str = "managed-save";
pub(super) const RESTORE: &str = "start";
pub(super) const STOCK_NOTHING: &str = "xl help";
pub(super) const NOTHING: &str = "xl-ext --help";
/// Writes to a file, each on the disk before the next.
pub(super) const FLUSH: &str = "100 writes, each flushed";
pub(super) const FIRST: &str = "snapshot-create, the first";
pub(super) const SECOND: &str = "snapshot-create, the second";

/// The rows, each with the one that it is compared with.
const ROWS: [(&str, &str); 10] = [
    (STOCK_SAVE, STOCK_SAVE),
    (SAVE, STOCK_SAVE),
    (STOCK_RESTORE, STOCK_RESTORE),
    (RESTORE, STOCK_RESTORE),
    (STOCK_CHECKPOINT, STOCK_CHECKPOINT),
    (FIRST, STOCK_CHECKPOINT),
    (SECOND, STOCK_CHECKPOINT),
    (STOCK_NOTHING, STOCK_NOTHING),
    (NOTHING, STOCK_NOTHING),
    (FLUSH, FLUSH),
];

/// What was measured of one command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figure {
    seconds: f64,
    pause: Option<f64>,
    bytes: Option<u64>,
}

impl Figure {
    pub(super) fn new(seconds: f64) -> Self {
        Self {
            seconds,
            pause: None,
            bytes: None,
        }
    }

    /// So long the guest stood still, in seconds.
    pub(super) fn pause(mut self, seconds: f64) -> Self {
        self.pause = Some(seconds);
        self
    }

    /// So many bytes were stored.
    pub(super) fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }
}

/// One round's, to be printed.
pub(super) struct Round<'a>(pub(super) &'a [(&'static str, Figure)]);

impl fmt::Display for Round<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (what, figure)) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{what} {:.2} s", figure.seconds)?;
            if let Some(pause) = figure.pause {
                write!(f, " ({pause:.2} s still)")?;
            }
            if let Some(bytes) = figure.bytes {
                write!(f, " {:.1} MiB", mib(bytes))?;
            }
        }
        Ok(())
    }
}

/// Those of all rounds.
#[derive(Default)]
pub(super) struct Figures(BTreeMap<&'static str, Vec<Figure>>);

impl Figures {
    pub(super) fn add(&mut self, round: Vec<(&'static str, Figure)>) {
        for (what, figure) in round {
            self.0.entry(what).or_default().push(figure);
        }
    }

    fn median(&self, what: &str, of: impl Fn(&Figure) -> Option<f64>) -> Option<f64> {
        let mut values: Vec<f64> = self.0.get(what)?.iter().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        match values.len() {
            0 => None,
            count if count % 2 == 1 => Some(values[count / 2]),
            count => Some(f64::midpoint(values[count / 2 - 1], values[count / 2])),
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| command | time | guest stands still | stored | compared with |"
        )?;
        writeln!(f, "|---|---|---|---|---|")?;
        for (what, with) in ROWS {
            let seconds = |figure: &Figure| Some(figure.seconds);
            let bytes = |figure: &Figure| figure.bytes.map(mib);
            let pause = |figure: &Figure| figure.pause;
            let show = |value: Option<f64>, unit: &str| {
                value.map_or_else(String::new, |value| format!("{value:.2} {unit}"))
            };
            let ratio = |of: &dyn Fn(&Figure) -> Option<f64>| {
                Some(self.median(what, of)? / self.median(with, of)?)
            };
            let mut compared = String::new();
            if what != with {
                compared = format!(
                    "{with}: {:.2} of the time",
                    ratio(&seconds).unwrap_or(f64::NAN)
                );
                if let Some(ratio) = ratio(&bytes) {
                    // Writing to a String cannot fail.
                    let _ = write!(compared, ", {ratio:.4} of the room");
                }
            }
            writeln!(
                f,
                "| `{what}` | {} | {} | {} | {compared} |",
                show(self.median(what, seconds), "s"),
                show(self.median(what, pause), "s"),
                show(self.median(what, bytes), "MiB"),
            )?;
        }
        let second = self.median(SECOND, |figure| figure.bytes.map(mib));
        let first = self.median(FIRST, |figure| figure.bytes.map(mib));
        if let (Some(second), Some(first)) = (second, first) {
            writeln!(
                f,
                "\nthe second snapshot takes {:.4} of the first's room",
                second / first
            )?;
        }
        Ok(())
    }
}

// The rounding of a display.
#[allow(clippy::cast_precision_loss)]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios_are_those_of_the_rounds() {
        let mut figures = Figures::default();
        for (stock, ours) in [(4.0, 3.0), (100.0, 2.0), (2.0, 50.0)] {
            figures.add(vec![
                (STOCK_SAVE, Figure::new(stock).bytes(100 << 20)),
                (SAVE, Figure::new(ours).bytes(5 << 20)),
            ]);
        }
        let text = figures.to_string();
        let line = "| `managed-save` | 3.00 s |  | 5.00 MiB | xl save: 0.75 of the time, 0.0500 of the room |";
        assert!(text.contains(line), "{text}");
        figures.add(vec![(STOCK_SAVE, Figure::new(6.0))]);
        assert_eq!(figures.median(STOCK_SAVE, |it| Some(it.seconds)), Some(5.0));
        assert_eq!(figures.median("nothing", |it| Some(it.seconds)), None);
    }
}
