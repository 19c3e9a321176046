//! How often a pull is looked at that is waited for.

use std::time::{Duration, Instant};

/// A look takes no more than one part in so many of the time: where dom0 has one slow CPU, it is the one that copies.
const SHARE: u32 = 50;

/// The looks at one pull.
pub(super) struct Looks {
    /// Between two of them at least.
    least: Duration,
    /// And at most.
    most: Duration,
    /// When the last one ended, and at which byte the pull was then.
    last: Option<(Instant, u64)>,
}

impl Looks {
    pub(super) fn new(least: Duration, most: Duration) -> Self {
        Self {
            least,
            most,
            last: None,
        }
    }

    /// How long to wait for the next one, after one from `began` to `now` that found the pull at byte `done` of `total`.
    pub(super) fn pause(
        &mut self,
        (began, now): (Instant, Instant),
        done: u64,
        total: u64,
    ) -> Duration {
        // All that is left to do is ours.
        if done >= total {
            return self.least;
        }
        let took = now.saturating_duration_since(began);
        let mut pause = took * SHARE;
        if let Some((last, before)) = self.last.replace((now, done))
            && let advanced @ 1.. = done.saturating_sub(before)
        {
            // Whoever waits hears of the end soon.
            let between = now.saturating_duration_since(last).as_micros();
            let to_end = between * u128::from(total - done) / u128::from(advanced);
            pause = pause.min(Duration::from_micros(
                u64::try_from(to_end).unwrap_or(u64::MAX),
            ));
        }
        pause.clamp(self.least, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn looks_cost_little_and_the_end_is_seen_soon() {
        let begin = Instant::now();
        let look = |looks: &mut Looks, at: u32, took: u32, done| {
            let began = begin + MS * at;
            looks.pause((began, began + MS * took), done, 1000)
        };
        let mut looks = Looks::new(200 * MS, 3000 * MS);
        assert_eq!(look(&mut looks, 0, 1, 0), 200 * MS);
        assert_eq!(look(&mut looks, 200, 20, 1), 1000 * MS, "one in fifty");
        assert_eq!(look(&mut looks, 1000, 999, 2), 3000 * MS);
        // 400 in a second: the rest takes another one and a half.
        assert_eq!(look(&mut looks, 2899, 100, 402), 1495 * MS);
        assert_eq!(look(&mut looks, 3899, 100, 990), 200 * MS);
        assert_eq!(look(&mut looks, 4899, 100, 990), 3000 * MS, "it stands");
        assert_eq!(look(&mut looks, 5899, 100, 7), 3000 * MS, "it began anew");
        assert_eq!(look(&mut looks, 6899, 100, 1000), 200 * MS, "it is over");
    }
}
