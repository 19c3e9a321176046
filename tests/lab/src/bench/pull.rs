//! Pulls by the product and by the same `block-stream` given to QEMU by hand, in turns, of disks on chains of several
//! depths; and what the guest's own writes come to meanwhile.
//!
//! What is compared is the job itself, from when it runs to when all is copied, by QEMU's own clock; and all of it, from the
//! command to the last act.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stream::{self, By, Timed};
use crate::guest::{Guest, GuestSpec};
use crate::host::Lab;
use crate::product::Product;
use crate::ssh::quote;

/// How many images there are from the disk to the bottom, if it is not said.
pub const DEPTHS: [u32; 3] = [1, 8, 32];

/// The length of the disk that the guest writes to meanwhile, which is not pulled until it has, in MiB.
const LONG: u32 = 640;

/// How much it writes each time, in MiB.
const WRITES: u32 = 16;

/// The limit for the writes beside a slow pull, in MiB per second.
const SLOW: u32 = 4;

/// Long enough for any command on a loaded machine.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs so many rounds of each depth, of a disk of so many MiB, all of which is in some image below it, and prints medians
/// and ratios.
pub(super) fn run(lab: &Lab, rounds: u32, depths: &[u32], mib: u32) -> Result<()> {
    let guest = Guest::create(lab, &GuestSpec::pv("pull-bench").disks(&[16]))?;
    // Nobody else writes.
    guest.mark_disks(false)?;
    let product = Product::of(lab, &guest);
    for &depth in depths {
        let bottom = chain(lab, &guest.dir(), depth, mib)?;
        let bench = Bench {
            lab,
            guest: &guest,
            product: &product,
            bottom,
        };
        let mut found = Vec::new();
        for round in 0..=rounds {
            // Who is first changes. The first round is not counted: it warms the caches.
            let is_ours_first = round.is_multiple_of(2);
            let first = bench.pull(is_ours_first)?;
            let second = bench.pull(!is_ours_first)?;
            let (ours, theirs) = if is_ours_first {
                (first, second)
            } else {
                (second, first)
            };
            println!(
                "depth {depth}, round {round}: block-pull {}; by hand {}",
                told(ours, mib),
                told(theirs, mib)
            );
            if round > 0 {
                found.push((ours, theirs));
            }
        }
        let of = |what: &dyn Fn(&Timed) -> f64| {
            let ours = median(found.iter().map(|(ours, _)| what(ours)).collect());
            let theirs = median(found.iter().map(|(_, theirs)| what(theirs)).collect());
            (ours, theirs)
        };
        let (own, by_hand) = of(&|timed| f64::from(mib) / timed.copying);
        let (copying, copying_by_hand) = of(&|timed| timed.copying);
        let (own_whole, by_hand_whole) = of(&|timed| timed.whole);
        let (start, _) = of(&|timed| timed.start);
        println!(
            "depth {depth}, medians of {rounds}: block-pull {own:.1} MiB/s, by hand {by_hand:.1} MiB/s, ratio {:.3}, {:.2} s more of \
             {copying_by_hand:.2} s; from the command to the last act {own_whole:.2} s ({start:.2} s until the job ran), by hand {by_hand_whole:.2} s",
            own / by_hand,
            copying - copying_by_hand
        );
    }
    writes(lab, &guest, &product, rounds)?;
    guest.destroy()
}

fn told(timed: Timed, mib: u32) -> String {
    format!(
        "{:.1} MiB/s, {:.2} s in all",
        f64::from(mib) / timed.copying,
        timed.whole
    )
}

/// Makes images of so many MiB on top of each other, with a part of the content in each; returns the uppermost.
fn chain(lab: &Lab, dir: &str, depth: u32, mib: u32) -> Result<(String, &'static str)> {
    let base = format!("{dir}/bottom.raw");
    lab.run_within(
        &format!("rm -f {dir}/*.raw {dir}/link.*; head -c {mib}M /dev/urandom > {base}"),
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
        self.guest.wait_disk("xvdc")
    }

    fn detach(&self) -> Result<()> {
        let detach = format!("xl block-detach {} xvdc", self.guest.name());
        self.lab.run_within(&detach, LIMIT)?;
        self.guest.wait_no_disk("xvdc")
    }

    fn pull(&self, by_us: bool) -> Result<Timed> {
        self.attach()?;
        let command = self.product.command("block-pull {} xvdc");
        let by = if by_us {
            By::Command(&command)
        } else {
            By::Hand("xvdc-qcow2")
        };
        let timed = stream::run(self.lab, self.guest.domid()?, &self.guest.dir(), by)?;
        if by_us {
            self.product.run("block-pull-info --watch {} xvdc")?;
        }
        self.detach()?;
        Ok(timed)
    }

    /// MiB per second that the guest writes to the disk, from so many MiB on, by dom0's clock.
    fn write(&self, at: u32) -> Result<f64> {
        let request = format!("write xvdc {at} {WRITES} beside");
        let took = self.lab.run_within(
            &format!(
                "b=$(date +%s%N); guest-ask {} 300 {} >/dev/null || exit 1; e=$(date +%s%N); echo $((e - b))",
                quote(self.guest.name()),
                quote(&request)
            ),
            LIMIT,
        )?;
        Ok(f64::from(WRITES) * 1e9 / took.parse::<f64>()?)
    }
}

/// What the guest writes to a disk while it is not pulled, while it is slowly, and while it is as fast as can be.
fn writes(lab: &Lab, guest: &Guest<'_>, product: &Product<'_>, rounds: u32) -> Result<()> {
    let bottom = chain(lab, &guest.dir(), 1, LONG)?;
    let bench = Bench {
        lab,
        guest,
        product,
        bottom,
    };
    let mut rates = [const { Vec::new() }; 3];
    for round in 0..=rounds {
        bench.attach()?;
        // From the end, where the pull comes last.
        let places = (1..).map(|number| LONG - number * WRITES);
        let mut seen = Vec::new();
        for (place, command) in places.zip([
            None,
            Some(format!("block-pull --bandwidth {SLOW}M {{}} xvdc")),
            Some("block-pull-set-speed {} xvdc 0".to_owned()),
        ]) {
            if let Some(command) = command {
                product.run(&command)?;
            }
            seen.push(bench.write(place)?);
        }
        let now = product.run("block-pull-info {} xvdc")?;
        ensure!(
            now.contains("running"),
            "the pull was over before the guest had written: {now}"
        );
        product.run("block-pull-info --watch {} xvdc")?;
        bench.detach()?;
        println!("the guest's writes, round {round}: {seen:.2?} MiB/s");
        if round > 0 {
            let all = rates.iter_mut().zip(seen);
            all.for_each(|(rates, rate)| rates.push(rate));
        }
    }
    let [alone, slow, fast] = rates.map(median);
    println!(
        "medians of {rounds}: the guest writes {WRITES} MiB at {alone:.2} MiB/s alone, {slow:.2} beside a pull of {SLOW} MiB/s, \
         {fast:.2} beside one without a limit"
    );
    Ok(())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
