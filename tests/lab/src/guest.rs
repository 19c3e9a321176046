//! Guests of a lab: made from a [`GuestSpec`], and asked questions over their consoles.
//!
//! What a guest understands is written in `assets/guest/answer`.

mod spec;

pub use spec::{GuestSpec, Kind};

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use md5::{Digest as _, Md5};

use crate::host::Lab;
use crate::ssh::quote;

/// Where guests' files are in dom0, each in a directory of its own.
pub const GUESTS_DIR: &str = "/var/lib/lab/guests";

/// A PV guest needs some seconds, an HVM guest on a loaded machine more than three minutes.
const READY_LIMIT: Duration = Duration::from_secs(600);

/// Long enough for an answer on a loaded machine; what takes longer has a limit of its own.
const ANSWER_SECONDS: u32 = 60;

/// A guest that was started. It is looked up by its name each time, so that it may be restored, and have another
/// domain number, at any time.
#[derive(Debug, Clone)]
pub struct Guest<'lab> {
    lab: &'lab Lab,
    name: String,
}

impl<'lab> Guest<'lab> {
    /// Prepares and starts a guest by `xl create`, and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn create(lab: &'lab Lab, spec: &GuestSpec) -> Result<Self> {
        spec.prepare(lab)?;
        lab.run(&format!("xl create {}", spec.config_path()))
            .with_context(|| format!("guest {} cannot be started", spec.name))?;
        let guest = Self::attach(lab, &spec.name);
        guest.wait_ready()?;
        Ok(guest)
    }

    /// The guest that is called `name`, whoever started it.
    pub fn attach(lab: &'lab Lab, name: &str) -> Self {
        Self {
            lab,
            name: name.to_owned(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory of its files in dom0; free for files of a step, and removed after it.
    pub fn dir(&self) -> String {
        dir_of(&self.name)
    }

    /// The file of a disk in dom0 as the guest was created with; `vdev` is `xvda`, `xvdb`, ...
    pub fn disk_path(&self, vdev: &str) -> String {
        disk_path(&self.name, vdev)
    }

    /// The number of its domain now.
    ///
    /// # Errors
    /// When there is no such domain.
    pub fn domid(&self) -> Result<u32> {
        let text = self.lab.run(&format!("xl domid {}", quote(&self.name)))?;
        text.trim()
            .parse()
            .with_context(|| format!("xl domid printed {text:?}"))
    }

    /// Whether a domain of this name is there.
    pub fn exists(&self) -> bool {
        self.domid().is_ok()
    }

    /// Waits until it answers.
    ///
    /// # Errors
    /// When it does not within ten minutes.
    pub fn wait_ready(&self) -> Result<()> {
        let end = Instant::now() + READY_LIMIT;
        loop {
            let script = format!("guest-ask {} 15 ping", quote(&self.name));
            let output = self.lab.try_run(&script, Duration::from_secs(60))?;
            match output.status {
                0 => return Ok(()),
                _ if Instant::now() < end => thread::sleep(Duration::from_millis(300)),
                _ => bail!(
                    "guest {} did not answer in {} s: {}",
                    self.name,
                    READY_LIMIT.as_secs(),
                    output.stderr.trim()
                ),
            }
        }
    }

    /// Sends a request and returns the answer.
    ///
    /// # Errors
    /// When the guest refuses it, or does not answer within a minute.
    pub fn ask(&self, request: &str) -> Result<String> {
        self.ask_within(request, ANSWER_SECONDS)
    }

    /// Sends several requests at once, which takes little longer than one, and returns their answers.
    ///
    /// # Errors
    /// As [`Guest::ask`]; those after one that was refused are not sent.
    pub fn ask_all<const N: usize>(&self, requests: [&str; N]) -> Result<[String; N]> {
        let answer = self.ask(&requests.join(" ; "))?;
        let answers: Vec<_> = answer.split(';').map(|it| it.trim().to_owned()).collect();
        answers
            .try_into()
            .map_err(|answers| anyhow!("{N} requests had the answers {answers:?}"))
    }

    /// As [`Guest::ask`], with a limit of its own.
    ///
    /// # Errors
    /// As [`Guest::ask`].
    pub fn ask_within(&self, request: &str, seconds: u32) -> Result<String> {
        let script = format!(
            "guest-ask {} {seconds} {}",
            quote(&self.name),
            quote(request)
        );
        let limit = Duration::from_secs(u64::from(seconds) + 30);
        let output = self.lab.try_run(&script, limit)?;
        let answer = output.stdout.trim_end_matches('\n');
        match output.status {
            0 => Ok(answer.to_owned()),
            1 => bail!("guest {} refused `{request}`: {answer}", self.name),
            _ => bail!(
                "guest {} was asked `{request}`: {}",
                self.name,
                output.stderr.trim()
            ),
        }
    }

    /// Its count now, which it holds in memory only; it grows by about two per second.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn counter(&self) -> Result<u64> {
        let answer = self.ask("counter")?;
        answer
            .parse()
            .with_context(|| format!("the counter is {answer:?}"))
    }

    /// Waits until it has counted on beyond `before`.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub fn wait_counter_beyond(&self, before: u64) -> Result<u64> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let now = self.counter()?;
            if now > before {
                return Ok(now);
            }
            if Instant::now() >= end {
                bail!(
                    "guest {} answers but does not count beyond {before}",
                    self.name
                );
            }
            thread::sleep(Duration::from_millis(300));
        }
    }

    /// What it drew when it booted: the same as long as its memory lives on.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn life_id(&self) -> Result<String> {
        self.ask("id")
    }

    /// Keeps `value` under `key` in its memory.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn set_memory(&self, key: &str, value: &str) -> Result<()> {
        self.ask(&format!("mem set {key} {value}")).map(drop)
    }

    /// The value that [`Guest::set_memory`] kept.
    ///
    /// # Errors
    /// When there is none.
    pub fn get_memory(&self, key: &str) -> Result<String> {
        self.ask(&format!("mem get {key}"))
    }

    /// Writes `mib` MiB of `pattern` lines to a disk at `offset` MiB, and flushes them. The first MiB is not free:
    /// the guest marks its disks there.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn write(&self, vdev: &str, offset: u32, mib: u32, pattern: &str) -> Result<()> {
        self.ask_within(&format!("write {vdev} {offset} {mib} {pattern}"), 60 + mib)
            .map(drop)
    }

    /// Writes `bytes`, up to 512 and filled up with zeroes, to a sector of a disk, and flushes them. Sector 1 is not
    /// free.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn write_sector(&self, vdev: &str, sector: u32, bytes: &[u8]) -> Result<()> {
        let octal = bytes.iter().fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\{byte:03o}");
            text
        });
        self.ask(&format!("sector {vdev} {sector} {octal}"))
            .map(drop)
    }

    /// The MD5 sum of a range of a disk, in MiB, as the guest reads it from the disk.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn sum(&self, vdev: &str, offset: u32, mib: u32) -> Result<String> {
        self.ask_within(&format!("sum {vdev} {offset} {mib}"), 60 + mib)
    }

    /// As [`Guest::sum`], of the same range of several disks.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn sums<const N: usize>(
        &self,
        vdevs: [&str; N],
        offset: u32,
        mib: u32,
    ) -> Result<[String; N]> {
        let requests = vdevs.map(|vdev| format!("sum {vdev} {offset} {mib}"));
        self.ask_all(requests.each_ref().map(String::as_str))
    }

    /// Waits until it has a disk that was attached: its driver connects some time after the backend.
    ///
    /// # Errors
    /// When it does not get it within a minute.
    pub fn wait_disk(&self, vdev: &str) -> Result<()> {
        self.wait_disk_is(vdev, true)
    }

    /// Waits until a disk that was detached is gone, so that another one of its name is not taken for it.
    ///
    /// # Errors
    /// When it still has it after a minute.
    pub fn wait_no_disk(&self, vdev: &str) -> Result<()> {
        self.wait_disk_is(vdev, false)
    }

    fn wait_disk_is(&self, vdev: &str, there: bool) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let disks = self.ask("disks")?;
            let mut names = disks.split(' ').filter_map(|disk| disk.split_once(':'));
            let is_there = names.any(|(name, _)| name == vdev);
            // Its node comes a moment after it.
            if is_there == there && (!there || self.ask(&format!("fsync {vdev}")).is_ok()) {
                return Ok(());
            }
            if Instant::now() >= end {
                let which = if there { "not" } else { "still" };
                bail!(
                    "guest {} has the disks {disks}, and {which} {vdev}",
                    self.name
                );
            }
            thread::sleep(Duration::from_millis(300));
        }
    }

    /// Stops or resumes the marking of the disks. When this returns, no mark is on its way any more.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn mark_disks(&self, on: bool) -> Result<()> {
        self.ask(if on { "ticks on" } else { "ticks off" })
            .map(drop)
    }

    /// Powers it off from within and waits until its domain is gone.
    ///
    /// # Errors
    /// When it stays.
    pub fn poweroff(&self) -> Result<()> {
        self.ask("poweroff")?;
        self.wait_gone()
    }

    /// Waits until there is no domain of this name, and no device model of it.
    ///
    /// # Errors
    /// When it stays for five minutes: an HVM guest takes long to switch off under emulation.
    pub fn wait_gone(&self) -> Result<()> {
        let name = quote(&self.name);
        // The brackets keep pgrep from finding this very script.
        // The device model still flushes and closes the images after the domain has left the list.
        let script = format!(
            "tries=0; while xl domid {name} >/dev/null 2>&1 || pgrep -f -- '-[n]ame {name}( |$)' >/dev/null; do \
             tries=$((tries + 1)); [ $tries -gt 600 ] && exit 1; sleep 0.5; done"
        );
        self.lab
            .run_within(&script, Duration::from_secs(330))
            .map(drop)
            .with_context(|| format!("guest {} does not go", self.name))
    }

    /// Destroys its domain; its files stay.
    ///
    /// # Errors
    /// When there is none, or it stays.
    pub fn destroy(&self) -> Result<()> {
        self.lab.run(&format!("xl destroy {}", quote(&self.name)))?;
        self.wait_gone()
    }
}

/// What the guest wrote last to sector 1 of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The number of the mark. The disks are marked in their order, each flushed before the next, so at any instant
    /// an earlier disk's number is equal to a later one's or one ahead.
    pub seq: u64,
    /// The guest's count when it wrote.
    pub tick: u64,
    /// The guest's life.
    pub life: String,
}

impl Mark {
    /// Reads the mark from the image `path` in dom0, of any depth of backing files; `None` when the disk was
    /// never marked.
    ///
    /// # Errors
    /// When the image cannot be read or the mark cannot be understood.
    pub fn read(lab: &Lab, path: &str) -> Result<Option<Self>> {
        let path = quote(path);
        let script = format!(
            "raw=$(mktemp) && qemu-img dd -U -f qcow2 -O raw bs=512 count=2 if={path} of=$raw >/dev/null && \
             tail -c 512 $raw | tr -d '\\0'; status=$?; rm -f $raw; exit $status"
        );
        Self::parse(&lab.run(&script)?)
    }

    fn parse(text: &str) -> Result<Option<Self>> {
        let words: Vec<_> = text.split_ascii_whitespace().collect();
        match words[..] {
            [] => Ok(None),
            ["mark", seq, "tick", tick, "life", life] => Ok(Some(Self {
                seq: seq.parse().with_context(|| format!("mark {seq:?}"))?,
                tick: tick.parse().with_context(|| format!("tick {tick:?}"))?,
                life: life.to_owned(),
            })),
            _ => bail!("sector 1 does not hold a mark: {text:?}"),
        }
    }
}

/// The MD5 sum of a range, in MiB, of the image `path` as dom0 reads it.
///
/// # Errors
/// When it cannot be read.
pub fn image_sum(lab: &Lab, path: &str, offset: u32, mib: u32) -> Result<String> {
    let path = quote(path);
    lab.run(&format!(
        "raw=$(mktemp) && qemu-img convert -U -f qcow2 -O raw {path} $raw && \
         dd if=$raw bs=1M skip={offset} count={mib} status=none | md5sum | cut -d' ' -f1; \
         status=$?; rm -f $raw; exit $status"
    ))
}

/// The MD5 sum of what [`Guest::write`] writes.
pub fn pattern_sum(pattern: &str, mib: u32) -> String {
    format!("{:x}", Md5::digest(pattern_of(pattern, mib)))
}

fn pattern_of(pattern: &str, mib: u32) -> Vec<u8> {
    let line = format!("{pattern}\n").into_bytes();
    let content = line.iter().copied().cycle();
    content.take((mib as usize) << 20).collect()
}

/// Which mebibytes of a disk hold something of [`lived_on`]: the first, and how many.
pub const LIVED: (u32, u32) = (2, 4);

/// Where a guest that lives on to a word writes, in mebibytes of each disk: the first of [`LIVED`], which changes each
/// time, and one that the word chooses, so that what is never written again stands in images below the disk's own.
pub fn places(word: &str) -> [u32; 2] {
    let chosen = word.bytes().fold(0, |sum: u32, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    });
    [LIVED.0, LIVED.0 + 1 + chosen % (LIVED.1 - 1)]
}

/// The requests that have a guest live on to a word: it is in its memory, and on its disks.
pub fn lived_on(word: &str, vdevs: &[&str]) -> Vec<String> {
    let writes = vdevs
        .iter()
        .flat_map(|vdev| places(word).map(|place| format!("write {vdev} {place} 1 {word}-{vdev}")));
    std::iter::once(format!("mem set word {word}"))
        .chain(writes)
        .collect()
}

/// The MD5 sum of mebibytes that were written one by one, each as by [`Guest::write`], or never.
pub fn mebibytes_sum<'a>(patterns: impl IntoIterator<Item = Option<&'a str>>) -> String {
    let mut sum = Md5::new();
    for pattern in patterns {
        sum.update(match pattern {
            Some(pattern) => pattern_of(pattern, 1),
            None => vec![0; 1 << 20],
        });
    }
    format!("{:x}", sum.finalize())
}

/// Destroys all guests of `lab` and removes their files.
///
/// # Errors
/// When one of them stays.
pub fn destroy_all(lab: &Lab) -> Result<()> {
    lab.run(&format!(
        "for id in $(xl list | awk 'NR > 1 && $2 > 0 {{ print $2 }}'); do xl destroy $id; done; \
         tries=0; while [ $(xl list | wc -l) -gt 2 ]; do \
         tries=$((tries + 1)); [ $tries -gt 60 ] && exit 1; sleep 0.5; done; \
         rm -rf {GUESTS_DIR}"
    ))
    .map(drop)
    .context("the guests cannot be cleaned up")
}

fn dir_of(name: &str) -> String {
    format!("{GUESTS_DIR}/{name}")
}

fn disk_path(name: &str, vdev: &str) -> String {
    format!("{}/{vdev}.qcow2", dir_of(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back() {
        let text = "mark 7 tick 12 life 0a-1b      \n";
        let mark = Mark {
            seq: 7,
            tick: 12,
            life: "0a-1b".to_owned(),
        };
        assert_eq!(Mark::parse(text).unwrap(), Some(mark));
        assert_eq!(Mark::parse("").unwrap(), None);
        assert!(Mark::parse("mark 7 tick").is_err());
    }

    #[test]
    fn the_sum_of_a_pattern_is_that_of_yes_and_head() {
        // yes kept | head -c 1M | md5sum
        assert_eq!(pattern_sum("kept", 1), "bed831e84cf3cefaeae8ff39a30333bf");
    }
}
