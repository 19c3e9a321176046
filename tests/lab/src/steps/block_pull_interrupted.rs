//! Disks that are pulled when their domain goes away in the middle: nothing is lost, and the next pull goes on.

use anyhow::{Context as _, Result, ensure};
use std::time::{Duration, Instant};

use super::block_pull::{LIMIT, info, state};
use super::snapshot::reboot;
use super::template_disk::Pulled;
use crate::guest::{Guest, GuestSpec, Kind};
use crate::host::Lab;
use crate::product::Product;
use crate::random::Random;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-block-pull-goes-on-when-the-domain-went-away",
        run: went_away,
        cells: &[],
    },
    Step {
        name: "ts-block-pull-goes-on-when-the-guest-crashed-or-rebooted",
        run: crashed,
        cells: &[],
    },
    Step {
        name: "ts-block-pull-pvh-goes-on-after-a-migration",
        run: migrated,
        cells: &[],
    },
];

/// A guest whose only disk is pulled.
struct Interrupted<'a> {
    lab: &'a Lab,
    guest: Guest<'a>,
    product: Product<'a>,
    disk: Pulled<'a>,
    random: Random,
    config: String,
    /// How far the pull was when it was last seen at work.
    seen: u64,
}

impl<'a> Interrupted<'a> {
    fn new(lab: &'a Lab, spec: GuestSpec, seed: u64) -> Result<Self> {
        let disk = Pulled::make(lab, &spec.dir(), "xvda", 48)?;
        let spec = spec.another_disk(&disk.entry());
        let guest = Guest::create(lab, &spec)?;
        Ok(Self {
            lab,
            product: Product::of(lab, &guest),
            guest,
            disk,
            random: Random::new(seed),
            config: spec.config_path(),
            seen: 0,
        })
    }

    /// Begins it, or goes on with it, and has the guest write meanwhile.
    fn begin(&mut self) -> Result<()> {
        self.product.run("block-pull --bandwidth 128K {} xvda")?;
        self.write()?;
        let end = Instant::now() + LIMIT;
        let before = self.seen;
        loop {
            let info = info(&self.product, "xvda")?;
            assert_eq!(info["state"], "running", "{info}");
            self.seen = info["cur"].as_u64().context("no cur")?;
            if self.seen > before {
                return Ok(());
            }
            ensure!(Instant::now() < end, "it does not go on: {info}");
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn write(&mut self) -> Result<()> {
        self.disk.write(&self.guest, &mut self.random)
    }

    /// What the guest wrote and what was pulled is there, and it is told how far that went though nobody had asked when it
    /// ended.
    fn ensure_interrupted(&self) -> Result<()> {
        let info = info(&self.product, "xvda")?;
        assert_eq!(info["state"], "interrupted", "{info}");
        let cur = info["cur"].as_u64().context("no cur")?;
        ensure!(cur >= self.seen, "it was at {}: {info}", self.seen);
        self.disk.ensure_on_template()
    }

    fn create(&self) -> Result<()> {
        self.lab.run(&format!("xl create {}", self.config))?;
        self.guest.wait_ready()
    }

    /// The rest, while the guest goes on.
    fn complete(mut self) -> Result<()> {
        self.begin()?;
        self.product.run("block-pull-set-speed {} xvda 0")?;
        self.write()?;
        self.product.run("block-pull-info --watch {} xvda")?;
        assert_eq!(state(&self.product, "xvda")?, "completed");
        self.guest.mark_disks(false)?;
        self.disk.ensure_alone()?;
        // Nothing reads it any more, now or after the next boot.
        self.lab.run(&format!("rm {}", self.disk.template()))?;
        reboot(&self.guest)?;
        self.write()?;
        self.guest.mark_disks(false)?;
        self.disk.ensure_alone()
    }
}

/// It is destroyed, saved by stock xl, saved by us, and off, each in the middle.
fn went_away(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    let lab = context.lab();
    let mut it = Interrupted::new(lab, GuestSpec::pv("pull-away"), 99)?;
    it.begin()?;
    it.guest.mark_disks(false)?;
    it.guest.destroy()?;
    it.ensure_interrupted()?;
    it.create()?;

    it.begin()?;
    let file = format!("{}/saved", it.guest.dir());
    lab.run_within(&format!("xl save {} {file}", it.guest.name()), LIMIT)?;
    it.ensure_interrupted()?;
    lab.run_within(&format!("xl restore {file} && rm {file}"), LIMIT)?;
    it.guest.wait_ready()?;

    it.begin()?;
    it.product.run("managed-save {}")?;
    refused_once_free(&it.product, "was saved")?;
    it.ensure_interrupted()?;
    it.product.run("start {}")?;
    it.guest.wait_ready()?;
    it.write()?;

    // By increments, over the death of the one and the other.
    it.product.run("block-pull --step 16M {} xvda")?;
    it.guest.mark_disks(false)?;
    it.guest.poweroff()?;
    assert_eq!(state(&it.product, "xvda")?, "interrupted");
    it.product.run("block-pull --step 16M {} xvda")?;
    let at = info(&it.product, "xvda")?["cur"]
        .as_u64()
        .context("no cur")?;
    ensure!((32 << 20..48 << 20).contains(&at), "at {at}");
    it.disk.ensure_on_template()?;
    it.product.run("block-pull {} xvda")?;
    assert_eq!(state(&it.product, "xvda")?, "completed");
    it.disk.ensure_alone()?;
    lab.run(&format!("rm {}", it.disk.template()))?;
    it.create()?;
    it.write()?;
    it.guest.mark_disks(false)?;
    it.disk.ensure_alone()
}

/// A pull is refused, once the process that the last one left behind has had its last look.
fn refused_once_free(product: &Product<'_>, why: &str) -> Result<()> {
    let end = Instant::now() + LIMIT;
    loop {
        let said = product.try_run("block-pull {} xvda")?;
        if said.stderr.contains("is in progress") && Instant::now() < end {
            std::thread::sleep(Duration::from_secs(1));
            continue;
        }
        ensure!(
            said.status != 0 && said.stderr.contains(why),
            "{}",
            said.stderr
        );
        return Ok(());
    }
}

/// Its kernel panics, where that is its end and where it is started anew; and it reboots.
fn crashed(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("pull-crash")
        .line("on_crash=\"destroy\"")
        .line("on_reboot=\"restart\"");
    let mut it = Interrupted::new(lab, spec, 41)?;
    it.begin()?;
    it.guest.ask("crash")?;
    it.guest.wait_gone()?;
    it.ensure_interrupted()?;
    lab.run(&format!(
        "sed -i 's/on_crash=\"destroy\"/on_crash=\"restart\"/' {0} && grep -q 'on_crash=\"restart\"' {0}",
        it.config
    ))?;
    it.create()?;

    it.begin()?;
    let domid = it.guest.domid()?;
    it.guest.ask("crash")?;
    let end = Instant::now() + LIMIT;
    while it.guest.domid().ok().is_none_or(|now| now == domid) {
        ensure!(Instant::now() < end, "it does not come back");
        std::thread::sleep(Duration::from_millis(500));
    }
    it.guest.wait_ready()?;
    it.ensure_interrupted()?;

    it.begin()?;
    reboot(&it.guest)?;
    it.ensure_interrupted()?;

    // Its QEMU alone is killed, with what it had not written yet of where the copied parts are.
    it.begin()?;
    it.guest.mark_disks(false)?;
    lab.run(&format!(
        "kill -9 $(pgrep -f 'xen-[d]omid {} ')",
        it.guest.domid()?
    ))?;
    it.product.refuses("block-pull {} xvda", &["QEMU"])?;
    assert_eq!(state(&it.product, "xvda")?, "running", "nobody can know");
    it.guest.destroy()?;
    assert_eq!(state(&it.product, "xvda")?, "interrupted");
    it.disk.ensure_on_template()?;
    it.create()?;
    it.complete()
}

/// To another domain of the same host: one QEMU has the image after the other.
fn migrated(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("pull-move")
        .kind(Kind::Pvh)
        .line("on_reboot=\"restart\"");
    let mut it = Interrupted::new(lab, spec, 17)?;
    let life = it.guest.life_id()?;
    for _ in 0..2 {
        it.begin()?;
        let counter = it.guest.counter()?;
        // To this host, without ssh in between: xl runs the "host" as a command then.
        let migrate = format!(
            "xl migrate -s '' {} 'exec xl migrate-receive'",
            it.guest.name()
        );
        lab.run_within(&migrate, LIMIT)?;
        it.guest.wait_ready()?;
        it.ensure_interrupted()?;
        it.guest.wait_counter_beyond(counter)?;
        assert_eq!(it.guest.life_id()?, life);
        it.write()?;
        it.ensure_interrupted()?;
    }
    it.complete()
}
