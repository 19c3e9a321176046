//! Snapshots of a running PV guest: create, list, revert, delete.

use anyhow::{Context as _, Result, ensure};
use std::time::{Duration, Instant};

use crate::coverage::{Cells, Disks, Feature};
use crate::guest::{Guest, GuestSpec, LIVED, Mark, lived_on, pattern_sum};
use crate::host::Lab;
use crate::product::Product;
use crate::step::{Context, Step};

const INTERNAL: &[Disks] = &[Disks::Internal];

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-snapshot-create-revert-delete",
        run: create_revert_delete,
        cells: &[Cells::pv(
            &[Feature::Create, Feature::Revert, Feature::Delete],
            INTERNAL,
        )],
    },
    Step {
        name: "ts-snapshot-three-in-any-order",
        run: three_in_any_order,
        cells: &[Cells::pv(&[Feature::Tree], INTERNAL)],
    },
    Step {
        name: "ts-snapshot-disks-and-memory-at-one-instant",
        run: one_instant,
        cells: &[Cells::pv(
            &[Feature::OneInstant, Feature::RevertTo],
            INTERNAL,
        )],
    },
    Step {
        name: "ts-snapshot-of-a-paused-guest",
        run: paused_guest,
        cells: &[Cells::pv(
            &[
                Feature::CreatePaused,
                Feature::RevertPaused,
                Feature::RevertTo,
                Feature::DeletePaused,
            ],
            INTERNAL,
        )],
    },
    Step {
        name: "ts-snapshot-revert-without-domain",
        run: revert_without_domain,
        cells: &[Cells::pv(
            &[Feature::RevertOff, Feature::DeleteOff],
            INTERNAL,
        )],
    },
    Step {
        name: "ts-snapshot-guest-reboots-as-configured-afterwards",
        run: guest_reboots_afterwards,
        cells: &[Cells::pv(
            &[Feature::Reboot, Feature::SaveRestore, Feature::TwoCpus],
            INTERNAL,
        )],
    },
    Step {
        name: "ts-snapshot-export-is-for-stock-xl",
        run: export_for_stock_xl,
        cells: &[],
    },
];

pub(super) const DISKS: [&str; 2] = ["xvda", "xvdb"];

/// What a guest holds in memory and on its disks, as a test can compare it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    life: String,
    word: String,
    sums: [String; 2],
}

impl State {
    /// Gives the guest a state that is told apart by `word`.
    pub(super) fn set(guest: &Guest<'_>, word: &str) -> Result<Self> {
        Self::change(guest, word)?;
        Self::read(guest)
    }

    /// The same for a state that is not compared later.
    pub(super) fn change(guest: &Guest<'_>, word: &str) -> Result<()> {
        guest.ask(&lived_on(word, &DISKS).join(" ; ")).map(drop)
    }

    /// The sums of the disks, in the order of [`DISKS`].
    pub(super) fn sums(&self) -> &[String; 2] {
        &self.sums
    }

    pub(super) fn read(guest: &Guest<'_>) -> Result<Self> {
        let (offset, mib) = LIVED;
        let [a, b] = DISKS.map(|vdev| format!("sum {vdev} {offset} {mib}"));
        let [life, word, a, b] = guest.ask_all(["id", "mem get word", &a, &b])?;
        let sums = [a, b];
        Ok(Self { life, word, sums })
    }
}

/// What the guest reads of the disks where [`State`] writes, in the order of [`DISKS`].
pub(super) fn sums(guest: &Guest<'_>) -> Result<[String; 2]> {
    guest.sums(DISKS, LIVED.0, LIVED.1)
}

pub(super) fn two_disks<'lab>(lab: &'lab Lab, name: &str) -> Result<(Guest<'lab>, Product<'lab>)> {
    let guest = Guest::create(lab, &GuestSpec::pv(name).disks(&[32, 32]))?;
    let product = Product::of(lab, &guest);
    Ok((guest, product))
}

fn create_revert_delete(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let (guest, product) = two_disks(lab, "main")?;
    let state = State::set(&guest, "before")?;
    let before = guest.counter()?;

    let plan = product.run("snapshot-create --plan -n first {}")?;
    ensure!(plan.contains("in one transaction"), "{plan}");
    product.ensure_nothing_left(&guest, &DISKS)?;
    let output = product.try_run("snapshot-create -n first --description 'two words' --json {}")?;
    assert_eq!(
        (output.status, output.stderr.as_str()),
        (0, ""),
        "quiet in a pipe"
    );
    let done: serde_json::Value = serde_json::from_str(&output.stdout)?;
    assert_eq!(done["now"]["current"], "first");
    let after = guest.wait_counter_beyond(before)?;
    assert_eq!(
        State::read(&guest)?,
        state,
        "the snapshot disturbed the guest"
    );
    for vdev in DISKS {
        assert_eq!(product.internal_snapshots(&guest.disk_path(vdev))?.len(), 1);
    }
    let domid = guest.domid()?;
    let posted = lab.run(&format!(
        "xenstore-read /libxl/{domid}/ext/current-snapshot"
    ))?;
    assert_eq!(posted.trim(), "first");
    let jobs = lab.run(&format!("xenstore-ls /libxl/{domid}/ext"))?;
    ensure!(!jobs.contains("job"), "a job is still posted: {jobs}");

    State::change(&guest, "later")?;
    guest.wait_counter_beyond(after + 10)?;
    product.run("snapshot-revert {} first")?;
    let counter = guest.counter()?;
    assert_eq!(State::read(&guest)?, state);
    assert_ne!(guest.domid()?, domid);
    ensure!(
        counter >= before,
        "the count is {counter}, and was {before} before the snapshot"
    );
    guest.wait_counter_beyond(counter)?;
    assert_eq!(guest.sum("xvda", 2, 1)?, pattern_sum("before-xvda", 1));

    let info = product.run("snapshot-info {} first")?;
    ensure!(
        info.contains("two words") && info.contains("xvdb"),
        "{info}"
    );
    ensure!(product.run("snapshot-list {}")?.contains("current"));
    product.run("snapshot-rename {} first -- -first")?;
    product.run("snapshot-describe {} --  -first 'other words'")?;
    let info = product.run("snapshot-info {} -- -first")?;
    ensure!(info.contains("other words"), "{info}");
    let posted = lab.run(&format!(
        "xenstore-read /libxl/{}/ext/current-snapshot",
        guest.domid()?
    ))?;
    assert_eq!(posted.trim(), "-first");
    product.run("snapshot-delete {} -- -first")?;
    product.ensure_nothing_left(&guest, &DISKS)?;
    guest.wait_counter_beyond(counter)?;
    Ok(())
}

fn three_in_any_order(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    let (guest, product) = two_disks(context.lab(), "three")?;
    let mut states = Vec::new();
    for name in ["one", "two", "three"] {
        states.push((name, State::set(&guest, name)?));
        product.run(&format!("snapshot-create -n {name} {{}}"))?;
    }
    // Each time away from another state than the one that is gone to.
    for at in [1, 2, 0] {
        let (name, state) = &states[at];
        product.run(&format!("snapshot-revert {{}} {name}"))?;
        assert_eq!(&State::read(&guest)?, state, "after the revert to {name}");
    }
    // The last revert was to `one`, so a new snapshot is a branch there, and has the default name.
    product.run("snapshot-create {}")?;
    let names = product.names()?;
    let branch = names.last().context("no snapshot")?;
    ensure!(
        branch.parse::<u64>().is_ok_and(|time| time > 1_600_000_000),
        "the default name is {branch}"
    );
    let tree = product.run("snapshot-list --tree {}")?;
    assert_eq!(
        tree,
        format!("one\n  two\n    three\n  {branch}  (current)\n")
    );
    product.run("snapshot-delete {} two")?;
    let tree = product.run("snapshot-list --tree {}")?;
    assert_eq!(tree, format!("one\n  three\n  {branch}  (current)\n"));
    product.run("snapshot-revert {} three")?;
    assert_eq!(
        State::read(&guest)?,
        states[2].1,
        "a child of a deleted one"
    );
    Ok(())
}

/// The guest marks its disks one after the other, all the time: no mix of instants can hide.
fn one_instant(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let (guest, product) = two_disks(lab, "instant")?;
    let life = guest.life_id()?;
    for round in 0..2 {
        guest.wait_counter_beyond(guest.counter()? + 3)?;
        product.run(&format!("snapshot-create -n s{round} {{}}"))?;
    }
    for round in [0, 1] {
        product.run(&format!("snapshot-revert --paused {{}} s{round}"))?;
        let mark = |vdev: &str| {
            Mark::read(lab, &guest.disk_path(vdev))?.with_context(|| format!("{vdev} has no mark"))
        };
        let (first, second) = (mark("xvda")?, mark("xvdb")?);
        ensure!(
            first.seq == second.seq || first.seq == second.seq + 1,
            "xvda has mark {} and xvdb {}",
            first.seq,
            second.seq
        );
        assert_eq!((&first.life, &second.life), (&life, &life));
        let domid = guest.domid()?;
        lab.run(&format!("xl unpause {domid}"))?;
        let counter = guest.counter()?;
        // The memory is from the instant of the marks, and the console may take a while to answer.
        ensure!(
            counter >= second.tick,
            "memory counts {counter}, the disks were marked at {} and {}",
            first.tick,
            second.tick
        );
    }
    Ok(())
}

fn paused_guest(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    let lab = context.lab();
    let (guest, product) = two_disks(lab, "paused")?;
    guest.set_memory("word", "before")?;
    let is_paused = || -> Result<bool> {
        let line = lab.run(&format!("xl list {} | tail -n 1", guest.name()))?;
        let flags = line.split_ascii_whitespace().nth(4).unwrap_or_default();
        Ok(flags.contains('p'))
    };
    lab.run(&format!("xl pause {}", guest.name()))?;
    product.run("snapshot-create -n still {}")?;
    ensure!(is_paused()?, "it runs after the snapshot");
    lab.run(&format!("xl unpause {}", guest.name()))?;
    guest.set_memory("word", "later")?;

    product.run("snapshot-revert {} still")?;
    ensure!(is_paused()?, "it runs though it was paused in the snapshot");
    product.run("snapshot-revert --running {} still")?;
    ensure!(!is_paused()?, "it is paused in spite of --running");
    assert_eq!(guest.get_memory("word")?, "before");
    lab.run(&format!("xl pause {}", guest.name()))?;
    product.run("snapshot-delete {} still")?;
    ensure!(is_paused()?, "it runs after the deletion");
    lab.run(&format!("xl unpause {}", guest.name()))?;
    guest.write("xvda", 2, 1, "goes-on")?;
    product.ensure_nothing_left(&guest, &DISKS)
}

fn revert_without_domain(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let (guest, product) = two_disks(context.lab(), "absent")?;
    let state = State::set(&guest, "before")?;
    product.run("snapshot-create -n kept {}")?;
    State::change(&guest, "later")?;
    guest.destroy()?;
    assert_eq!(
        product.names()?,
        ["kept"],
        "listed while the domain is gone"
    );
    product.run("snapshot-revert {} kept")?;
    assert_eq!(State::read(&guest)?, state);
    guest.destroy()?;
    product.run("snapshot-delete {} kept")?;
    product.ensure_nothing_left(&guest, &DISKS)
}

/// xl's monitor takes a suspend for the end, so a snapshot must not let it see one.
fn guest_reboots_afterwards(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("reboots")
        .vcpus(2)
        .disks(&[16])
        .line("on_reboot=\"restart\"");
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    let life = guest.life_id()?;
    product.run("snapshot-create -n s {}")?;
    reboot(&guest)?;
    assert_ne!(guest.life_id()?, life, "a reboot is a new life");
    let file = format!("{}/saved", guest.dir());
    let life_now = guest.life_id()?;
    lab.run(&format!(
        "xl save {} {file} && xl restore {file}",
        guest.name()
    ))?;
    assert_eq!(guest.life_id()?, life_now, "stock xl saved and restored it");
    // The restarted domain is still the one of the snapshots.
    product.run("snapshot-revert {} s")?;
    assert_eq!(guest.life_id()?, life);
    reboot(&guest)?;
    guest.poweroff()
}

/// Lets the guest reboot, and waits until xl has started it again.
pub(super) fn reboot(guest: &Guest<'_>) -> Result<()> {
    let domid = guest.domid()?;
    guest.ask("reboot")?;
    let end = Instant::now() + Duration::from_secs(90);
    while guest.domid().ok().is_none_or(|now| now == domid) {
        ensure!(Instant::now() < end, "it did not come back");
        std::thread::sleep(Duration::from_millis(500));
    }
    guest.wait_ready()
}

fn export_for_stock_xl(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let (guest, product) = two_disks(lab, "export")?;
    let state = State::set(&guest, "before")?;
    product.run("snapshot-create -n s {}")?;
    let tag = product.internal_snapshots(&guest.disk_path("xvda"))?;
    State::change(&guest, "later")?;
    let file = format!("{}/exported", guest.dir());
    product.run(&format!("snapshot-export-memory {{}} s {file}"))?;
    assert_eq!(lab.run(&format!("stat -c %a {file}"))?.trim(), "600");
    product.refuses(
        &format!("snapshot-export-memory {{}} s {file}"),
        &["File exists"],
    )?;
    guest.destroy()?;
    for vdev in DISKS {
        lab.run(&format!(
            "qemu-img snapshot -a {} {}",
            tag[0],
            guest.disk_path(vdev)
        ))?;
    }
    lab.run(&format!("xl restore {file}"))?;
    assert_eq!(State::read(&guest)?, state);
    Ok(())
}
