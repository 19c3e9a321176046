//! What was measured, and what it comes to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

pub(super) const COPY: &str = "replication-start, 20 MiB";
pub(super) const PAUSE: &str = "pause of a checkpoint";
pub(super) const CHECKPOINT: &str = "replication-checkpoint";
pub(super) const FAILOVER: &str = "replication-failover";
pub(super) const ANSWERS: &str = "failover, until the guest answers";
pub(super) const ROUND: &str = "round";
pub(super) const HELD_UP: &str = "write beside a silent secondary";

/// In seconds, by what was measured.
#[derive(Default)]
pub(super) struct Figures(BTreeMap<&'static str, Vec<f64>>);

impl Figures {
    pub(super) fn add(&mut self, what: &'static str, took: Duration) {
        self.0.entry(what).or_default().push(took.as_secs_f64());
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<34} {:>5} {:>8} {:>8} {:>8}",
            "seconds", "times", "least", "median", "most"
        )?;
        for (what, all) in &self.0 {
            let mut all = all.clone();
            all.sort_by(f64::total_cmp);
            let (least, most) = (all.first(), all.last());
            let median = all.get(all.len() / 2);
            let [least, median, most] =
                [least, median, most].map(|it| it.copied().unwrap_or_default());
            writeln!(
                f,
                "{what:<34} {:>5} {least:>8.2} {median:>8.2} {most:>8.2}",
                all.len()
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        let mut figures = Figures::default();
        for seconds in [9, 1, 4] {
            figures.add(ROUND, Duration::from_secs(seconds));
        }
        let text = figures.to_string();
        let words: Vec<_> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(words, ["round", "3", "1.00", "4.00", "9.00"]);
    }
}
