//! What may happen to the secondary while the primary lives.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::figures::{Figures, HELD_UP};
use super::hosts::{HEARTBEAT_MS, Hosts, Side, images};
use super::sequence::VDEVS;
use crate::guest::{Guest, GuestSpec, image_sum};
use crate::product::Product;
use crate::steps::small_store::SmallStore;

/// Sizes of the disks, in MiB.
pub(super) const SIZES: [u32; 2] = [24, 16];

/// The sums of both disks of a guest, which does not mark them any more.
pub(super) fn sums(guest: &Guest<'_>) -> Result<[String; 2]> {
    guest.mark_disks(false)?;
    Ok([
        guest.sum(VDEVS[0], 0, SIZES[0])?,
        guest.sum(VDEVS[1], 0, SIZES[1])?,
    ])
}

/// The images at the secondary have these sums.
pub(super) fn require_sums(hosts: &Hosts, there: &Product<'_>, sums: &[String; 2]) -> Result<()> {
    let (images, number) = images(there)?;
    for ((image, length), sum) in images.iter().zip(SIZES).zip(sums) {
        let found = image_sum(hosts.lab(Side::B), image, 0, length)?;
        ensure!(
            found == *sum,
            "{image} is not as at checkpoint {number}: {found}, not {sum}"
        );
    }
    Ok(())
}

/// Replication goes on, and there is a checkpoint of what is written then.
fn resume(hosts: &Hosts, name: &str, word: &str) -> Result<()> {
    let here = hosts.product(Side::A, name);
    here.run("replication-resume {}")?;
    let info = hosts.info(Side::A, name)?;
    ensure!(info["state"] == "running", "{info}");
    hosts.guest(Side::A, name).write("xvda", 4, 1, word)?;
    here.run("replication-checkpoint {}").map(drop)
}

/// A secondary that is silent does not hold up the guest for longer than the heartbeat has it, nor does one whose power is
/// cut. Each time replication goes on, and in the end the secondary's disks are those of the last checkpoint.
pub(super) fn silent_or_cut_off(hosts: &mut Hosts, figures: &mut Figures) -> Result<()> {
    const NAME: &str = "silent";
    let spec = GuestSpec::pv(NAME).disks(&SIZES);
    Guest::create(hosts.lab(Side::A), &spec)?;
    let options = format!("--heartbeat {HEARTBEAT_MS}");
    hosts.start(Side::A, NAME, &spec.config_path(), &options)?;

    let guest = hosts.guest(Side::A, NAME);
    hosts.lab(Side::B).freeze()?;
    let begun = Instant::now();
    guest.ask_within("write xvda 6 1 silent", 240)?;
    figures.add(HELD_UP, begun.elapsed());
    guest.write("xvdb", 6, 1, "silent")?;
    // The other host still says nothing.
    let info = hosts.wait_for(Side::A, NAME, "broken")?;
    let why = info["why"].as_str().unwrap_or_default();
    ensure!(why.contains("silent"), "{info}");
    hosts.lab(Side::B).thaw()?;
    resume(hosts, NAME, "after-silence")?;

    hosts.lab_mut(Side::B).power_cut()?;
    let guest = hosts.guest(Side::A, NAME);
    guest.ask_within("write xvda 8 1 alone", 240)?;
    guest.write("xvdb", 8, 1, "alone")?;
    hosts.wait_for(Side::A, NAME, "broken")?;
    let here = hosts.product(Side::A, NAME);
    here.refuses("replication-resume {}", &["10.77.0.2"])?;
    hosts.lab_mut(Side::B).start()?;
    hosts.wait_listening(Side::B)?;
    let there = hosts.product(Side::B, NAME);
    there.refuses(
        "replication-failover --no-start {}",
        &["is gone", "replication-resume"],
    )?;
    resume(hosts, NAME, "after-the-power-cut")?;

    let guest = hosts.guest(Side::A, NAME);
    let kept = sums(&guest)?;
    let here = hosts.product(Side::A, NAME);
    here.run("replication-checkpoint {}")?;
    guest.write("xvda", 4, 4, "not-there")?;
    here.run("replication-stop {}")?;
    require_sums(hosts, &there, &kept)
}

/// A secondary without room for what it has to keep: the guest goes on, and the last checkpoint is still what a failover leads
/// to, of which the primary hears.
pub(super) fn full(hosts: &mut Hosts, _: &mut Figures) -> Result<()> {
    const NAME: &str = "full";
    let small = SmallStore::of(hosts.lab(Side::B), 256)?;
    hosts.serve_from(Side::B, Some(&small.dir()))?;
    let spec = GuestSpec::pv(NAME).disks(&SIZES);
    let guest = Guest::create(hosts.lab(Side::A), &spec)?;
    guest.write("xvda", 4, 16, "kept")?;
    guest.write("xvdb", 4, 8, "kept")?;
    let options = format!("--heartbeat {HEARTBEAT_MS}");
    hosts.start(Side::A, NAME, &spec.config_path(), &options)?;
    let kept = sums(&guest)?;
    let here = hosts.product(Side::A, NAME);
    here.run("replication-checkpoint {}")?;

    small.resize(small.used()? + 3)?;
    guest.write("xvda", 4, 16, "over")?;
    guest.write("xvdb", 4, 8, "over")?;
    let info = hosts.wait_for(Side::A, NAME, "broken")?;
    println!("      {}", info["why"].as_str().context("no reason")?);
    here.refuses(
        "replication-checkpoint {}",
        &["is broken", "replication-resume"],
    )?;

    small.resize(256)?;
    let there = hosts.product(Side::B, NAME).store(&small.dir());
    there.run("replication-failover --no-start {}")?;
    require_sums(hosts, &there, &kept)?;
    hosts.wait_for(Side::A, NAME, "lost")?;
    hosts.serve_from(Side::B, None)
}
