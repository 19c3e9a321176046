//! A sequence of writes over two disks, of which any instant can be told from the disks: each write has a number, is
//! flushed before the next, and goes to the other disk than the one before it, over an older one.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};

use crate::host::Lab;
use crate::ssh::quote;

/// The disks, in their order.
pub(super) const VDEVS: [&str; 2] = ["xvda", "xvdb"];

/// How many places there are on each disk. Fewer than a round writes, so that what is kept for a failover is written over.
const SLOTS: usize = 24;

/// The sector of the first place; the next one is a page further.
const FIRST: usize = 4096;

/// Sectors of a page: what a guest's kernel writes at once.
const PAGE: usize = 8;

/// How many writes a guest is asked for at once.
pub(super) const BATCH: u64 = 6;

/// What the places of both disks hold: the number of the last write there, 0 for none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places([[u64; SLOTS]; 2]);

impl Places {
    /// Nothing was ever written.
    pub(super) const fn empty() -> Self {
        Self([[0; SLOTS]; 2])
    }

    fn place(number: u64) -> (usize, usize) {
        let number = usize::try_from(number).unwrap_or(0);
        (number % 2, number / 2 % SLOTS)
    }

    /// After one more write.
    pub(super) fn write(&mut self, number: u64) {
        let (disk, slot) = Self::place(number);
        self.0[disk][slot] = number;
    }

    /// The highest number.
    fn newest(&self) -> u64 {
        self.0.iter().flatten().copied().max().unwrap_or(0)
    }

    /// The request that has a guest do the writes from `first` on, a batch of them.
    pub(super) fn request(first: u64) -> String {
        let mut text = String::new();
        for number in first..first + BATCH {
            let (disk, slot) = Self::place(number);
            let sector = FIRST + slot * PAGE;
            let between = if number == first { "" } else { " ; " };
            let _ = write!(text, "{between}sector {} {sector} ", VDEVS[disk]);
            for byte in format!("{slot} {number}\n").bytes() {
                let _ = write!(text, "\\{byte:03o}");
            }
        }
        text
    }

    /// Reads both disks' places from images in dom0.
    pub(super) fn read(lab: &Lab, images: &[String; 2]) -> Result<Self> {
        let mut found = Self::empty();
        for (disk, image) in images.iter().enumerate() {
            let text = lab.run(&format!(
                "raw=$(mktemp) && qemu-img dd -U -f qcow2 -O raw bs=512 skip={FIRST} count={} if={} of=$raw >/dev/null && \
                 tr -d '\\0' <$raw; status=$?; rm -f $raw; exit $status",
                // It counts what it skips too.
                FIRST + SLOTS * PAGE,
                quote(image)
            ))?;
            found.parse(disk, &text)?;
        }
        Ok(found)
    }

    fn parse(&mut self, disk: usize, text: &str) -> Result<()> {
        for line in text.lines() {
            let (slot, number) = line
                .split_once(' ')
                .and_then(|(slot, number)| {
                    Some((slot.parse::<usize>().ok()?, number.parse().ok()?))
                })
                .with_context(|| format!("no number of a write: {line:?}"))?;
            let place = self.0[disk].get_mut(slot).context("no such place")?;
            *place = number;
        }
        Ok(())
    }

    /// Which write was the last one at the instant at which the disks were as they are here, if before the numbers from
    /// `first` on they were as in `before`.
    ///
    /// # Errors
    /// When they never were so.
    pub(super) fn instant(&self, before: &Self, first: u64) -> Result<u64> {
        let newest = self.newest();
        let mut then = before.clone();
        (first..=newest).for_each(|number| then.write(number));
        ensure!(
            *self == then,
            "the disks were never like this: {self:?}, at write {newest} they were {then:?}"
        );
        Ok(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(before: &Places, numbers: impl IntoIterator<Item = u64>) -> Places {
        let mut places = before.clone();
        numbers.into_iter().for_each(|number| places.write(number));
        places
    }

    #[test]
    fn every_instant_is_told_and_nothing_else_is_taken_for_one() {
        // The numbers up to 130, of which those from 61 on went with a failover.
        let before = written(&Places::empty(), 1..=60);
        for last in [60, 131, 132, 133, 190, 300] {
            let places = written(&before, 131..=last);
            assert_eq!(places.instant(&before, 131).unwrap(), last);
            // One write of a later instant, on either disk.
            for further in [last + 2, last + 3] {
                let torn = written(&places, [further.max(133)]);
                assert!(torn.instant(&before, 131).is_err(), "{last}, {further}");
            }
            // One of before the failover.
            let stale = written(&places, [77]);
            assert!(stale.instant(&before, 131).is_err(), "{last}");
        }
    }

    #[test]
    fn what_a_guest_is_asked_to_write_is_what_is_read() {
        let request = Places::request(49);
        let mut found = Places::empty();
        let mut lines = [String::new(), String::new()];
        for one in request.split(" ; ") {
            let words: Vec<_> = one.split(' ').collect();
            let disk = VDEVS.iter().position(|vdev| *vdev == words[1]).unwrap();
            let bytes = words[3].split('\\').skip(1);
            let bytes = bytes.map(|octal| u8::from_str_radix(octal, 8).unwrap());
            lines[disk].push_str(&String::from_utf8(bytes.collect()).unwrap());
        }
        for (disk, text) in lines.iter().enumerate() {
            found.parse(disk, text).unwrap();
        }
        assert_eq!(found, written(&Places::empty(), 49..49 + BATCH));
        assert!(found.parse(0, "rubbish").is_err());
    }
}
