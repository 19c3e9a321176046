//! Snapshots that go wrong in the middle: the guest goes on, and nothing half is left.

use anyhow::{Result, ensure};
use std::time::Duration;

use super::small_store::SmallStore;
use crate::coverage::{Cells, Disks, Feature};
use crate::guest::{Guest, GuestSpec};
use crate::product::Product;
use crate::step::{Context, Step};

const INTERNAL: &[Disks] = &[Disks::Internal];

/// Enough for what 256 MiB of memory may take, in MiB.
const ROOM: u32 = 290;

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-snapshot-survives-a-full-disk",
        run: full_disk,
        cells: &[Cells::pv(&[Feature::FullDisk], INTERNAL)],
    },
    Step {
        name: "ts-snapshot-create-killed-in-mid-save",
        run: create_killed,
        cells: &[Cells::pv(&[Feature::Killed], INTERNAL)],
    },
    Step {
        name: "ts-snapshot-create-interrupted",
        run: create_interrupted,
        cells: &[],
    },
    Step {
        name: "ts-snapshot-revert-killed-without-domain",
        run: revert_killed,
        cells: &[Cells::pv(&[Feature::Killed], INTERNAL)],
    },
    Step {
        name: "ts-snapshot-revert-that-cannot-restore",
        run: revert_cannot_restore,
        cells: &[Cells::pv(&[Feature::RestoreFails], INTERNAL)],
    },
    Step {
        name: "ts-snapshot-interrupted-revert-leaves-a-new-domain-alone",
        run: usurped,
        cells: &[],
    },
    Step {
        name: "ts-snapshot-images-in-use-are-not-written",
        run: images_in_use,
        cells: &[],
    },
    Step {
        name: "ts-snapshot-two-at-once",
        run: two_at_once,
        cells: &[],
    },
];

/// Room for the memory at the start, and gone while it is written.
fn full_disk(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("full").memory(256).disks(&[16]))?;
    // What is neither zero nor made smaller: the room is taken away long before all of it is written.
    guest.ask_within("fill 60", 300)?;
    let small_store = SmallStore::of(lab, ROOM)?;
    let product = Product::of(lab, &guest).store(&small_store.dir());
    let (life, domid) = (guest.life_id()?, guest.domid()?);
    // Once a part is written, the rest of the room is taken away.
    product.shrink_beyond(5, 1, small_store.mount)?;
    product.refuses(
        "snapshot-create -n x {}",
        &["No space left on device", "are as they were"],
    )?;
    lab.run(&format!("rm {}.shrunk", small_store.mount))?;
    assert_eq!((guest.life_id()?, guest.domid()?), (life, domid));
    guest.wait_counter_beyond(guest.counter()?)?;
    product.ensure_nothing_left(&guest, &["xvda"])?;
    // Too little from the start: refused before anything is done.
    product.refuses(
        "snapshot-create -n x {}",
        &["needs up to", "free some room"],
    )?;
    small_store.resize(ROOM)?;
    product.run("snapshot-create -n x {}")?;
    assert_eq!(product.names()?, ["x"]);
    Ok(())
}

fn create_killed(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("killed").disks(&[16, 16]))?;
    let product = Product::of(lab, &guest);
    let (life, domid) = (guest.life_id()?, guest.domid()?);
    let mut counter = guest.counter()?;
    for mib in [1, 40, 80] {
        product.kill_when("snapshot-create -n x {}", &product.memory_beyond(mib))?;
        product.ensure_taken_back()?;
        counter = guest.wait_counter_beyond(counter)?;
        assert_eq!((guest.life_id()?, guest.domid()?), (life.clone(), domid));
        product.wait_for_helpers()?;
        product.ensure_nothing_left(&guest, &["xvda", "xvdb"])?;
    }
    product.run("snapshot-create -n x {}")?;
    assert_eq!(product.names()?, ["x"]);
    Ok(())
}

/// ^C is a wish: the command ends by itself and leaves everything as it was. A terminal sends it to the
/// whole group of processes.
fn create_interrupted(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("stopped").disks(&[16]))?;
    let product = Product::of(lab, &guest);
    let counter = guest.counter()?;
    let output = lab.try_run(
        &format!(
            "{} & pid=$!; while ! {}; do :; done; kill -INT -- -$pid; wait $pid",
            product
                .command("snapshot-create -n x {}")
                .replacen("xl-ext", "setsid xl-ext", 1),
            product.memory_beyond(10)
        ),
        Duration::from_secs(120),
    )?;
    assert_eq!(output.status, 1, "{}", output.stderr);
    ensure!(
        output.stderr.contains("are as they were"),
        "{}",
        output.stderr
    );
    guest.wait_counter_beyond(counter)?;
    product.ensure_nothing_left(&guest, &["xvda"])
}

/// Killed while there is no domain at all: the next command brings the guest back as it was.
fn revert_killed(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("midway").disks(&[16]))?;
    let product = Product::of(lab, &guest);
    guest.set_memory("word", "snapshot")?;
    guest.write("xvda", 2, 1, "snapshot")?;
    product.run("snapshot-create -n s {}")?;
    guest.set_memory("word", "present")?;
    guest.write("xvda", 2, 1, "present")?;
    let (life, domid, sum) = (guest.life_id()?, guest.domid()?, guest.sum("xvda", 2, 1)?);
    let gone = format!("! xl domname {domid} >/dev/null 2>&1");
    product.kill_when("snapshot-revert {} s", &gone)?;
    product.ensure_taken_back()?;
    assert_eq!(guest.life_id()?, life);
    assert_eq!(guest.get_memory("word")?, "present");
    assert_eq!(guest.sum("xvda", 2, 1)?, sum);
    assert_eq!(
        product.internal_snapshots(&guest.disk_path("xvda"))?.len(),
        1
    );
    product.run("snapshot-revert {} s")?;
    assert_eq!(guest.get_memory("word")?, "snapshot");
    Ok(())
}

/// The domain is destroyed and the snapshot turns out not to start: the guest is brought back.
fn revert_cannot_restore(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("fallback").disks(&[16]))?;
    let product = Product::of(lab, &guest);
    product.run("snapshot-create -n s {}")?;
    guest.set_memory("word", "present")?;
    guest.write("xvda", 2, 1, "present")?;
    let (life, sum) = (guest.life_id()?, guest.sum("xvda", 2, 1)?);
    let output = product.try_run_failing_to_restore(&guest, "snapshot-revert {} s")?;
    assert_eq!(output.status, 1, "{}", output.stderr);
    for words in ["says the test", "are as they were"] {
        ensure!(output.stderr.contains(words), "{}", output.stderr);
    }
    assert_eq!(guest.life_id()?, life);
    assert_eq!(guest.get_memory("word")?, "present");
    assert_eq!(guest.sum("xvda", 2, 1)?, sum);
    guest.wait_counter_beyond(guest.counter()?)?;
    assert_eq!(
        product.internal_snapshots(&guest.disk_path("xvda"))?.len(),
        1
    );
    product.run("snapshot-delete {} s")?;
    product.ensure_nothing_left(&guest, &["xvda"])
}

/// The revert was killed, and somebody started the guest from its configuration: that one is not ended.
fn usurped(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("usurped").disks(&[16]);
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    product.run("snapshot-create -n s {}")?;
    let domid = guest.domid()?;
    let gone = format!("! xl domname {domid} >/dev/null 2>&1");
    product.kill_when("snapshot-revert {} s", &gone)?;
    guest.wait_gone()?;
    lab.run(&format!("xl create {}", spec.config_path()))?;
    guest.wait_ready()?;
    let (life, domid) = (guest.life_id()?, guest.domid()?);
    product.refuses(
        "snapshot-list {}",
        &["was started in the place of", "to keep the disks"],
    )?;
    assert_eq!((guest.life_id()?, guest.domid()?), (life, domid));
    guest.write("xvda", 2, 1, "unharmed")?;
    lab.run(&format!("rm {}/*/journal", product.store_dir()))?;
    assert_eq!(product.names()?, ["s"]);
    Ok(())
}

/// The qdisk backend opens images without QEMU's locks: who writes to one has to look.
fn images_in_use(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("inuse").disks(&[16]))?;
    let product = Product::of(lab, &guest);
    product.run("snapshot-create -n s {}")?;
    lab.run(&format!("xl rename {} elsewhere", guest.name()))?;
    product.refuses(
        "snapshot-revert {} s",
        &["is not called 'inuse'", "xl rename"],
    )?;
    product.refuses(
        "snapshot-delete {} s",
        &["is in use by", "whatever its name"],
    )?;
    lab.run(&format!("xl rename elsewhere {}", guest.name()))?;
    guest.write("xvda", 2, 1, "unharmed")?;
    // What was begun is finished where it can be.
    product.run("snapshot-delete {} s")?;
    product.ensure_nothing_left(&guest, &["xvda"])?;
    guest.poweroff()?;
    lab.run(&format!(
        "qemu-img check -q -f qcow2 {}",
        guest.disk_path("xvda")
    ))?;
    Ok(())
}

fn two_at_once(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("both").disks(&[16]))?;
    let product = Product::of(lab, &guest);
    let output = lab.try_run(
        &format!(
            "{} & pid=$!; while ! {}; do :; done; {}; second=$?; wait $pid; echo $? $second",
            product.command("snapshot-create -n a {}"),
            product.memory_beyond(5),
            product.command("snapshot-create -n b {}")
        ),
        Duration::from_secs(120),
    )?;
    ensure!(output.stdout.ends_with("0 1\n"), "{}", output.stdout);
    ensure!(
        output.stderr.contains("is in progress"),
        "{}",
        output.stderr
    );
    assert_eq!(product.names()?, ["a"]);
    Ok(())
}
