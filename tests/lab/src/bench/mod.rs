//! `lab bench`: stock xl and the product side by side, in one lab, in turns: how long a save and a restore take, how long
//! the guest stands still, how many bytes are stored.
//!
//! All times are those of dom0's clock around one command in dom0. The first round is not counted: it warms the caches.

mod figures;
mod pull;
mod stream;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::guest::{Guest, GuestSpec};
use crate::host::Lab;
use crate::product::Product;
use figures::{Figure, Figures, Round};

pub use pull::DEPTHS;

/// What is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// Everything.
    #[default]
    All,
    /// Saves, restores and snapshots.
    Saves,
    /// Pulls.
    Pulls,
}

/// How much of it a busy guest writes to between two saves, in MiB.
const BUSY: u32 = 64;

/// Long enough for any command on a loaded machine.
const LIMIT: Duration = Duration::from_secs(600);

/// Between two snapshots of an idle guest.
const BETWEEN: Duration = Duration::from_secs(10);

/// How fast pulls are: so many rounds of each depth, of a disk of so many MiB. The lab is up, has the product and no
/// guest.
///
/// # Errors
/// When a command fails.
pub fn pulls(lab: &Lab, rounds: u32, depths: &[u32], mib: u32) -> Result<()> {
    println!("{}", machine(lab)?);
    pull::run(lab, rounds, depths, mib)
}

/// Saves, restores and snapshots: so many rounds, with a guest of so many MiB, medians and ratios. The lab is up, has the
/// product and no guest.
///
/// # Errors
/// When a command fails.
pub fn saves(lab: &Lab, rounds: u32, memory: u32) -> Result<()> {
    println!("{}", machine(lab)?);
    for (name, is_busy) in [("idle", false), ("busy", true)] {
        let spec = GuestSpec::pv(name).memory(memory).disks(&[16]);
        let bench = Bench {
            lab,
            guest: Guest::create(lab, &spec)?,
            is_busy,
        };
        let mut figures = Figures::default();
        for round in 0..=rounds {
            let now = bench.round(round)?;
            println!("{name}, round {round}: {}", Round(&now));
            if round > 0 {
                figures.add(now);
            }
        }
        bench.guest.destroy()?;
        let what = if is_busy {
            format!("writes {BUSY} MiB of random bytes to its memory before each save")
        } else {
            "idle".to_owned()
        };
        println!("\nPV guest of {memory} MiB, {what}; medians of {rounds} rounds\n\n{figures}");
    }
    Ok(())
}

/// What the figures were taken on.
fn machine(lab: &Lab) -> Result<String> {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("?", |model| model.trim_start_matches([':', ' ', '\t']));
    let dom0 = lab.run(
        "echo \"$(nproc) CPUs, $(free -m | awk '/^Mem/ { print $2 }') MiB, Xen $(cat /sys/hypervisor/version/major \
         /sys/hypervisor/version/minor | paste -sd.), Linux $(uname -r)\"",
    )?;
    Ok(format!(
        "outer machine: {cpus} CPUs ({model}), load {load}; dom0 under TCG: {}",
        dom0.trim()
    ))
}

struct Bench<'lab> {
    lab: &'lab Lab,
    guest: Guest<'lab>,
    is_busy: bool,
}

impl Bench<'_> {
    /// Everything once; who is first changes from round to round.
    fn round(&self, number: u32) -> Result<Vec<(&'static str, Figure)>> {
        let mut found = Vec::new();
        for what in [figures::STOCK_NOTHING, figures::NOTHING] {
            // What each command costs that does nothing.
            found.push((what, Figure::new(self.time(what)?)));
        }
        found.push((figures::FLUSH, Figure::new(self.flush()?)));
        if number.is_multiple_of(2) {
            self.stock(&mut found)?;
            self.managed(&mut found)?;
            self.snapshots(&mut found)?;
        } else {
            self.snapshots(&mut found)?;
            self.managed(&mut found)?;
            self.stock(&mut found)?;
        }
        Ok(found)
    }

    /// What a guest does before each save.
    fn live(&self) -> Result<()> {
        if self.is_busy {
            self.guest.ask_within(&format!("fill {BUSY}"), 300)?;
        }
        // What dom0 still has to write is not counted as part of what comes next.
        self.lab.run("sync").map(drop)
    }

    /// What no program that writes a journal can do without.
    fn flush(&self) -> Result<f64> {
        let file = format!("{}/flushed", self.guest.dir());
        let write = format!("dd if=/dev/zero of={file} bs=512 count=100 oflag=dsync status=none");
        let seconds = self.time(&write)?;
        self.lab.run(&format!("rm {file}"))?;
        Ok(seconds)
    }

    fn stock(&self, found: &mut Vec<(&'static str, Figure)>) -> Result<()> {
        let (name, file) = (self.guest.name(), format!("{}/stock", self.guest.dir()));
        self.live()?;
        let seconds = self.time(&format!("xl save {name} {file}"))?;
        let bytes = self.bytes(&format!("stat -c %s {file}"))?;
        found.push((figures::STOCK_SAVE, Figure::new(seconds).bytes(bytes)));
        self.guest.wait_gone()?;
        let seconds = self.time(&format!("xl restore {file}"))?;
        found.push((figures::STOCK_RESTORE, Figure::new(seconds)));
        self.guest.wait_ready()?;
        // With -c the guest stands still from about the beginning of the command to its end.
        self.live()?;
        let checkpoint = format!("rm {file}; xl save -c {name} {file}");
        let seconds = self.time(&checkpoint)?;
        found.push((
            figures::STOCK_CHECKPOINT,
            Figure::new(seconds).bytes(bytes).pause(seconds),
        ));
        self.lab.run(&format!("rm {file}"))?;
        self.guest.wait_ready()
    }

    fn managed(&self, found: &mut Vec<(&'static str, Figure)>) -> Result<()> {
        let product = Product::of(self.lab, &self.guest);
        self.live()?;
        let seconds = self.time(&product.command("managed-save {}"))?;
        let all: Value = serde_json::from_str(&product.run("managed-save-list --json")?)?;
        let stored = all[0]["room"]["stored"].as_u64().context("no room")?;
        found.push((figures::SAVE, Figure::new(seconds).bytes(stored)));
        let seconds = self.time(&product.command("start {}"))?;
        found.push((figures::RESTORE, Figure::new(seconds)));
        self.guest.wait_ready()
    }

    fn snapshots(&self, found: &mut Vec<(&'static str, Figure)>) -> Result<()> {
        let product = Product::of(self.lab, &self.guest);
        for (which, name) in [(figures::FIRST, "first"), (figures::SECOND, "second")] {
            self.live()?;
            let create = format!("snapshot-create -n {name} --json {{}}");
            let file = format!("{}/created", self.guest.dir());
            let seconds = self.time(&format!("{} >{file}", product.command(&create)))?;
            let created: Value = serde_json::from_str(&self.lab.run(&format!("cat {file}"))?)?;
            let pause = created["pause_ms"].as_f64().context("no pause")? / 1e3;
            let info = product.run(&format!("snapshot-info --json {{}} {name}"))?;
            let info: Value = serde_json::from_str(&info)?;
            let packed = &info["memory_image"]["packed"];
            let stored = |key: &str| packed[key].as_u64().context("it is not packed");
            let bytes = stored("image_bytes")? + stored("pack_bytes")?;
            found.push((which, Figure::new(seconds).bytes(bytes).pause(pause)));
            std::thread::sleep(BETWEEN);
        }
        product.run("snapshot-delete {} first")?;
        product.run("snapshot-delete {} second").map(drop)
    }

    /// Seconds that a command takes.
    fn time(&self, command: &str) -> Result<f64> {
        let script = format!(
            "b=$(date +%s%N); {{ {command}; }} </dev/null >&2 || exit 1; e=$(date +%s%N); echo $(((e - b) / 1000))"
        );
        let output = self.lab.try_run(&script, LIMIT)?;
        ensure!(
            output.status == 0,
            "{command} ended with {}: {}",
            output.status,
            output.stderr
        );
        let micros: f64 = output.stdout.trim().parse().context("no time")?;
        Ok(micros / 1e6)
    }

    fn bytes(&self, command: &str) -> Result<u64> {
        let text = self.lab.run(command)?;
        text.trim().parse().context("no number of bytes")
    }
}
