//! The main job, for people to watch: a snapshot of a guest that runs on real Xen, and the way back.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::guest::{Guest, GuestSpec};
use crate::host::{BootOptions, Lab};
use crate::image::Image;
use crate::product::Product;
use crate::qemu::Lifetime;
use crate::step::consumer;

const DISKS: [&str; 2] = ["xvda", "xvdb"];

/// Where on each disk the guest writes, in MiB, and how much.
const OFFSET: u32 = 4;
const LENGTH: u32 = 8;

/// Boots a lab, shows the main job in it, and ends it.
///
/// # Errors
/// When something is not as the demo says that it is.
pub fn run(stage: &Path) -> Result<()> {
    let mut phases = Phases::default();
    phases.time("get the image of the Xen host, built once", || {
        Image::get().map(drop)
    })?;
    let lab = phases.time("boot Xen and its dom0 in QEMU", || {
        let options = BootOptions {
            lifetime: Lifetime::Process,
            ..BootOptions::default()
        };
        Lab::boot(&format!("demo-{}", std::process::id()), options)
    })?;
    let shown = show(&lab, stage, &mut phases);
    lab.destroy()?;
    shown?;
    phases.print();
    Ok(())
}

fn show(lab: &Lab, stage: &Path, phases: &mut Phases) -> Result<()> {
    dom0(
        lab,
        "xl info | grep -E '^(release|xen_version|virt_caps|total_memory)'",
    )?;
    phases.time("install xl-ext in dom0", || lab.install(stage))?;
    let spec = GuestSpec::pv("guest").disks(&[64, 64]);
    let guest = phases.time("start a PV guest with two qcow2 disks", || {
        Guest::create(lab, &spec)
    })?;
    let product = Product::of(lab, &guest).store("/var/lib/xen/libxl-ext");
    dom0(lab, "xl list")?;

    phases.time("the guest writes to memory and both disks", || {
        write(&guest, "first")
    })?;
    let before = Seen::look(&guest)?;
    before.print("before the snapshot");

    phases.time("xl-ext snapshot-create", || {
        command(lab, &product, "snapshot-create -n before-upgrade {}")
    })?;
    let after = guest.wait_counter_beyond(before.counter)?;
    println!("   the guest went on, it counts {after}\n");
    command(lab, &product, "snapshot-list {}")?;

    phases.time("the guest writes other things", || write(&guest, "second"))?;
    guest.wait_counter_beyond(after + 10)?;
    let changed = Seen::look(&guest)?;
    changed.print("after it wrote on");
    ensure!(changed.sums != before.sums, "the disks did not change");

    phases.time("xl-ext snapshot-revert", || {
        command(lab, &product, "snapshot-revert {} before-upgrade")
    })?;
    let back = Seen::look(&guest)?;
    back.print("after the revert");
    ensure!(
        back.sums == before.sums,
        "the disks are not those of the snapshot"
    );
    ensure!(
        back.life == before.life && back.word == before.word,
        "the memory is not that of the snapshot"
    );
    ensure!(
        back.counter >= before.counter,
        "the count is {}, and was {} at the snapshot",
        back.counter,
        before.counter
    );
    let on = guest.wait_counter_beyond(back.counter)?;
    println!(
        "   memory and disks are those of the snapshot; the guest counts on from there: {on}\n"
    );

    phases.time("xl-ext snapshot-delete", || {
        command(lab, &product, "snapshot-delete {} before-upgrade")
    })?;
    for vdev in DISKS {
        let list = format!("qemu-img snapshot -U -l {}", guest.disk_path(vdev));
        let left = dom0(lab, &list)?;
        ensure!(left.is_empty(), "{vdev} still holds a snapshot");
        println!("   (empty)");
    }
    println!();
    from_c(lab, stage, &guest, phases)
}

/// The same by a daemon in C (`tests/abi`), which checks what it is told.
fn from_c(lab: &Lab, stage: &Path, guest: &Guest<'_>, phases: &mut Phases) -> Result<()> {
    const DAEMON: &str = "/run/daemon";
    lab.put(&consumer(stage, "daemon")?, DAEMON)?;
    write(guest, "third")?;
    let before = Seen::look(guest)?;
    phases.time(
        "a daemon in C makes three snapshots, asynchronously",
        || dom0(lab, &format!("{DAEMON} create guest")),
    )?;
    write(guest, "fourth")?;
    phases.time("the daemon reverts to the first", || {
        dom0(lab, &format!("{DAEMON} revert guest"))
    })?;
    let back = Seen::look(guest)?;
    back.print("after the daemon's revert");
    ensure!(
        (&back.sums, &back.life, &back.word) == (&before.sums, &before.life, &before.word),
        "memory and disks are not those of the snapshot"
    );
    phases.time("the daemon deletes one, then a tree", || {
        dom0(lab, &format!("{DAEMON} delete guest"))
    })?;
    Ok(())
}

/// What a person would compare.
struct Seen {
    life: String,
    word: String,
    counter: u64,
    sums: Vec<String>,
}

impl Seen {
    fn look(guest: &Guest<'_>) -> Result<Self> {
        Ok(Self {
            // First, since it runs on while the rest is asked.
            counter: guest.counter()?,
            life: guest.life_id()?,
            word: guest.get_memory("word")?,
            sums: DISKS
                .iter()
                .map(|vdev| guest.sum(vdev, OFFSET, LENGTH))
                .collect::<Result<_>>()?,
        })
    }

    fn print(&self, when: &str) {
        println!("   {when}, the guest says:");
        println!(
            "     memory  counter {}, a word \"{}\", booted as {}",
            self.counter, self.word, self.life
        );
        for (vdev, sum) in DISKS.iter().zip(&self.sums) {
            println!("     {vdev}    md5 {sum}");
        }
        println!();
    }
}

fn write(guest: &Guest<'_>, word: &str) -> Result<()> {
    guest.set_memory("word", word)?;
    DISKS
        .iter()
        .try_for_each(|vdev| guest.write(vdev, OFFSET, LENGTH, &format!("{word}-{vdev}")))
}

/// Shows a command of the product and what it prints.
fn command(lab: &Lab, product: &Product<'_>, arguments: &str) -> Result<()> {
    println!("dom0# xl-ext {}", arguments.replace("{}", "guest"));
    let output = lab
        .run(&format!("{} 2>&1", product.command(arguments)))
        .with_context(|| format!("xl-ext {arguments}"))?;
    println!("{output}\n");
    Ok(())
}

/// Shows a command of dom0 and what it prints.
fn dom0(lab: &Lab, script: &str) -> Result<String> {
    println!("dom0# {script}");
    let output = lab.run(script)?;
    println!("{output}");
    Ok(output)
}

/// How long each phase took.
#[derive(Default)]
struct Phases(Vec<(&'static str, Duration)>);

impl Phases {
    fn time<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("== {name}");
        let started = Instant::now();
        let result = work().with_context(|| name)?;
        self.0.push((name, started.elapsed()));
        Ok(result)
    }

    fn print(&self) {
        println!("== how long each phase took, on emulated CPUs");
        for (name, time) in &self.0 {
            println!("{:8.1} s  {name}", time.as_secs_f32());
        }
    }
}
