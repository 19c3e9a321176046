//! Pulls by the product and by the same `block-stream` given to QEMU by hand, in turns, of disks on chains of several
//! depths; and what the guest's own writes come to meanwhile.
//!
//! What is compared is the work itself: bytes of the disk per second between two looks at the same job of QEMU's, by the
//! same command for both. The start of a command is told beside it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::guest::{Guest, GuestSpec};
use crate::host::Lab;
use crate::product::Product;

/// How many images there are from the disk to the bottom.
const DEPTHS: [u32; 3] = [1, 8, 32];

/// The length of the disk, in MiB, all of which is in some image below it.
const LENGTH: u32 = 160;

/// The limit for the writes beside a slow pull, in MiB per second.
const SLOW: u32 = 4;

/// Long enough for any command on a loaded machine.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs so many rounds of each depth, and prints medians and ratios.
pub(super) fn run(lab: &Lab, rounds: u32) -> Result<()> {
    let guest = Guest::create(lab, &GuestSpec::pv("pull-bench").disks(&[16]))?;
    let product = Product::of(lab, &guest);
    for depth in DEPTHS {
        let bottom = chain(lab, &guest.dir(), depth)?;
        let bench = Bench {
            lab,
            guest: &guest,
            product: &product,
            bottom,
        };
        let (mut own, mut by_hand, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=rounds {
            // Who is first changes.
            let first = bench.pull(round.is_multiple_of(2))?;
            let second = bench.pull(!round.is_multiple_of(2))?;
            let (ours, theirs) = if round.is_multiple_of(2) {
                (first, second)
            } else {
                (second, first)
            };
            println!(
                "depth {depth}, round {round}: block-pull {:.1} MiB/s, by hand {:.1} MiB/s",
                ours.rate, theirs.rate
            );
            if round > 0 {
                own.push(ours.rate);
                by_hand.push(theirs.rate);
                starts.push(ours.start);
            }
        }
        let (own, by_hand) = (median(own), median(by_hand));
        println!(
            "depth {depth}, medians of {rounds}: block-pull {own:.1} MiB/s (begun after {:.2} s), by hand {by_hand:.1} MiB/s, \
             ratio {:.3}",
            median(starts),
            own / by_hand
        );
        if depth == 1 {
            bench.writes()?;
        }
    }
    guest.destroy()
}

/// Makes images on top of each other, with a part of the content in each; returns the uppermost.
fn chain(lab: &Lab, dir: &str, depth: u32) -> Result<(String, &'static str)> {
    let base = format!("{dir}/bottom.raw");
    lab.run_within(
        &format!("rm -f {dir}/*.raw {dir}/link.*; head -c {LENGTH}M /dev/urandom > {base}"),
        LIMIT,
    )?;
    let (mut below, mut format) = (base, "raw");
    for number in 1..depth {
        let image = format!("{dir}/link.{number}.qcow2");
        let at = number * 4;
        lab.run_within(
            &format!(
                "qemu-img create -q -f qcow2 -b {below} -F {format} {image} && \
                 qemu-io -f qcow2 -c 'write -q -P {number} {at}M 4M' {image}"
            ),
            LIMIT,
        )?;
        (below, format) = (image, "qcow2");
    }
    Ok((below, format))
}

/// How fast one pull was.
struct Pulled {
    /// MiB of the disk per second.
    rate: f64,
    /// Seconds until the command had begun it.
    start: f64,
}

struct Bench<'a> {
    lab: &'a Lab,
    guest: &'a Guest<'a>,
    product: &'a Product<'a>,
    bottom: (String, &'static str),
}

impl Bench<'_> {
    /// A new disk on the chain.
    fn attach(&self) -> Result<()> {
        let (below, format) = &self.bottom;
        let image = format!("{}/top.qcow2", self.guest.dir());
        self.lab.run(&format!(
            "rm -f {image} && qemu-img create -q -f qcow2 -b {below} -F {format} {image} && sync && \
             xl block-attach {} format=qcow2,vdev=xvdc,access=rw,backendtype=qdisk,target={image}",
            self.guest.name()
        ))?;
        // Until the backend has opened it.
        let end = Instant::now() + LIMIT;
        while !self.hmp("info block")?.contains(&image) {
            ensure!(Instant::now() < end, "QEMU does not open the disk");
        }
        Ok(())
    }

    fn detach(&self) -> Result<()> {
        let detach = format!("xl block-detach {} xvdc", self.guest.name());
        self.lab.run_within(&detach, LIMIT)?;
        self.guest.wait_no_disk("xvdc")
    }

    fn hmp(&self, command: &str) -> Result<String> {
        let name = self.guest.name();
        self.lab
            .run(&format!("xl qemu-monitor-command {name} '{command}'"))
    }

    fn pull(&self, by_us: bool) -> Result<Pulled> {
        self.attach()?;
        let begin = if by_us {
            self.product.command("block-pull {} xvdc")
        } else {
            format!(
                "xl qemu-monitor-command {} 'block_stream xvdc-qcow2'",
                self.guest.name()
            )
        };
        // Time and position at each look, in dom0; the job is gone, or waits for its last act, at the end.
        let looks = self.lab.run_within(
            &format!(
                "b=$(date +%s%N); {begin} >/dev/null 2>&1 || exit 1; e=$(date +%s%N); echo start $((e - b)); \
                 while :; do j=$(xl qemu-monitor-command {} 'info block-jobs' 2>/dev/null); \
                 p=$(echo \"$j\" | sed -n 's/.*Completed \\([0-9]*\\) of.*/\\1/p'); t=$(date +%s%N); \
                 [ -n \"$p\" ] || break; echo look $t $p; [ $p -lt {} ] || break; done",
                self.guest.name(),
                u64::from(LENGTH) << 20
            ),
            LIMIT,
        )?;
        if by_us {
            self.product.run("block-pull-info --watch {} xvdc")?;
        }
        self.detach()?;
        read(&looks)
    }

    /// What the guest writes to the disk while it is not pulled, while it is, and while it is slowly.
    fn writes(&self) -> Result<()> {
        let rate = |at: u32| -> Result<f64> {
            let begin = Instant::now();
            self.guest.write("xvdc", at, 8, "beside")?;
            Ok(8.0 / begin.elapsed().as_secs_f64())
        };
        self.attach()?;
        self.guest.wait_disk("xvdc")?;
        rate(1)?;
        let alone = rate(LENGTH - 10)?;
        self.product
            .run(&format!("block-pull --bandwidth {SLOW}M {{}} xvdc"))?;
        let slow = rate(LENGTH - 20)?;
        self.product.run("block-pull-set-speed {} xvdc 0")?;
        let fast = rate(LENGTH - 30)?;
        let infos = self.product.run("block-pull-info {} xvdc")?;
        println!(
            "the guest writes 8 MiB at {alone:.2} MiB/s alone, {slow:.2} beside a pull of {SLOW} MiB/s, {fast:.2} beside one \
             without a limit ({})",
            infos.trim()
        );
        self.product.run("block-pull-info --watch {} xvdc")?;
        self.detach()
    }
}

fn read(looks: &str) -> Result<Pulled> {
    let mut start = None;
    let mut seen: Vec<(f64, f64)> = Vec::new();
    for line in looks.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["start", took] => start = Some(took.parse::<f64>()? / 1e9),
            ["look", at, bytes] => seen.push((at.parse::<f64>()? / 1e9, bytes.parse()?)),
            _ => {}
        }
    }
    let all = f64::from(LENGTH) * f64::from(1 << 20);
    let mut under_way = seen
        .iter()
        .filter(|(_, bytes)| *bytes > 0.0 && *bytes < all);
    let first = under_way.next().context("it was over at the first look")?;
    let last = under_way
        .next_back()
        .context("it was over at the second look")?;
    Ok(Pulled {
        rate: (last.1 - first.1) / (last.0 - first.0) / f64::from(1 << 20),
        start: start.context("it did not begin")?,
    })
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
