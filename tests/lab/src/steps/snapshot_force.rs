//! Reverts by force: over another domain of the name, and where the present state cannot be saved.

use anyhow::{Result, ensure};

use super::small_store::SmallStore;
use crate::coverage::{Cells, Disks, Feature};
use crate::guest::{Guest, GuestSpec, image_sum, pattern_sum};
use crate::product::Product;
use crate::step::{Context, Step};

const INTERNAL: &[Disks] = &[Disks::Internal];

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-snapshot-revert-force-over-another-domain",
        run: over_another_domain,
        cells: &[Cells::pv(
            &[Feature::RevertForce, Feature::RestoreFails],
            INTERNAL,
        )],
    },
    Step {
        name: "ts-snapshot-revert-force-without-room",
        run: without_room,
        cells: &[Cells::pv(&[Feature::RevertForce], INTERNAL)],
    },
];

/// A domain of the name that was made anew, on a disk of its own.
fn over_another_domain(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("replaced").disks(&[16]))?;
    let product = Product::of(lab, &guest);
    guest.set_memory("word", "before")?;
    guest.write("xvda", 2, 1, "before")?;
    product.run("snapshot-create -n s {}")?;
    guest.write("xvda", 2, 1, "later")?;
    guest.destroy()?;
    let disk = guest.disk_path("xvda");
    let image = format!("{}/other.qcow2", guest.dir());
    lab.run(&format!("qemu-img create -q -f qcow2 {image} 16M"))?;
    let guest = Guest::create(
        lab,
        &GuestSpec::pv("replaced").another_disk(&format!(
            "format=qcow2,vdev=xvda,access=rw,backendtype=qdisk,target={image}"
        )),
    )?;
    guest.set_memory("word", "other")?;
    guest.write("xvda", 2, 1, "other")?;
    let life = guest.life_id()?;

    product.refuses(
        "snapshot-revert {} s",
        &["has another UUID than snapshot 's'", "--force"],
    )?;
    let plan = product.run("snapshot-revert --plan --force {} s")?;
    ensure!(plan.contains("it is replaced"), "{plan}");
    // A failure leads back to the other domain.
    let output = product.try_run_failing_to_restore(&guest, "snapshot-revert --force {} s")?;
    assert_eq!(output.status, 1, "{}", output.stderr);
    ensure!(
        output.stderr.contains("as they were, under a new domid"),
        "{}",
        output.stderr
    );
    assert_eq!(guest.life_id()?, life);
    assert_eq!(guest.get_memory("word")?, "other");
    guest.wait_counter_beyond(guest.counter()?)?;
    assert_eq!(image_sum(lab, &disk, 2, 1)?, pattern_sum("later", 1));

    product.run("snapshot-revert --force {} s")?;
    assert_eq!(guest.get_memory("word")?, "before");
    assert_eq!(guest.sum("xvda", 2, 1)?, pattern_sum("before", 1));
    assert_eq!(image_sum(lab, &image, 2, 1)?, pattern_sum("other", 1));
    ensure!(product.internal_snapshots(&image)?.is_empty());
    guest.wait_counter_beyond(guest.counter()?)?;
    assert_eq!(product.internal_snapshots(&disk)?.len(), 1);
    product.run("snapshot-delete {} s")?;
    product.ensure_nothing_left(&guest, &["xvda"])
}

/// A store that has room for one memory image, which is the snapshot's.
fn without_room(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("noroom").disks(&[16]);
    let guest = Guest::create(lab, &spec)?;
    let small_store = SmallStore::of(lab, 120)?;
    let product = Product::of(lab, &guest).store(&small_store.dir());
    guest.set_memory("word", "before")?;
    guest.write("xvda", 2, 1, "before")?;
    // The file of xl's, so that there is no room for another one.
    product.run("snapshot-create -n s --format stock {}")?;
    guest.write("xvda", 2, 1, "later")?;
    let life = guest.life_id()?;
    product.refuses("snapshot-revert {} s", &["needs up to", "by --force"])?;
    let plan = product.run("snapshot-revert --plan --force {} s")?;
    for words in ["so its memory is not saved", "whose memory is not kept"] {
        ensure!(plan.contains(words), "{plan}");
    }
    assert_eq!(guest.life_id()?, life, "a plan does nothing");

    // A failure gives the disks back, and says that the domain is gone.
    let output = product.try_run_failing_to_restore(&guest, "snapshot-revert --force {} s")?;
    assert_eq!(output.status, 1, "{}", output.stderr);
    for words in [
        "says the test",
        "but that the domain, whose memory was given up, is destroyed",
    ] {
        ensure!(output.stderr.contains(words), "{}", output.stderr);
    }
    guest.wait_gone()?;
    let disk = guest.disk_path("xvda");
    assert_eq!(image_sum(lab, &disk, 2, 1)?, pattern_sum("later", 1));
    assert_eq!(product.internal_snapshots(&disk)?.len(), 1);

    lab.run(&format!("xl create {}", spec.config_path()))?;
    guest.wait_ready()?;
    let output = product.try_run("snapshot-revert --force {} s")?;
    assert_eq!(output.status, 0, "{}", output.stderr);
    ensure!(
        output.stderr.contains("so its memory is not saved"),
        "{}",
        output.stderr
    );
    assert_eq!(guest.life_id()?, life);
    assert_eq!(guest.get_memory("word")?, "before");
    assert_eq!(guest.sum("xvda", 2, 1)?, pattern_sum("before", 1));
    guest.wait_counter_beyond(guest.counter()?)?;
    product.run("snapshot-delete {} s")?;
    product.ensure_nothing_left(&guest, &["xvda"])
}
