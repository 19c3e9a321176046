//! What a snapshot needs breaks: the domain's QEMU dies, an image is away. What the guest has flushed is not lost, and
//! once the cause is removed everything works.

use anyhow::Result;
use std::time::Duration;

use crate::guest::{Guest, GuestSpec, pattern_sum};
use crate::product::Product;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-snapshot-create-while-qemu-dies",
        run: qemu_dies,
        cells: &[],
    },
    Step {
        name: "ts-snapshot-base-is-away",
        run: base_is_away,
        cells: &[],
    },
];

/// Without its QEMU the domain has no disks any more, so it has to be started again, whatever becomes of the snapshot.
fn qemu_dies(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("noqemu").disks(&[16]);
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    guest.write("xvda", 2, 1, "flushed")?;
    let qemu = format!("pgrep -f '[x]en-domid {} '", guest.domid()?);
    let output = lab.try_run(
        &format!(
            "{} & pid=$!; while ! {{ {}; }}; do kill -0 $pid || exit 3; done; kill -9 $({qemu}); wait $pid",
            product.command("snapshot-create -n x {}"),
            product.memory_beyond(40)
        ),
        Duration::from_secs(300),
    )?;
    println!("      {}", output.stderr.trim().replace('\n', "\n      "));
    assert_eq!(output.status, 1, "{}", output.stderr);
    lab.run(&format!("xl destroy {}", guest.name()))?;
    guest.wait_gone()?;
    lab.run(&format!("xl create {}", spec.config_path()))?;
    guest.wait_ready()?;
    product.ensure_nothing_left(&guest, &["xvda"])?;
    assert_eq!(guest.sum("xvda", 2, 1)?, pattern_sum(lab, "flushed", 1)?);
    product.run("snapshot-create -n x {}")?;
    assert_eq!(product.names()?, ["x"]);
    Ok(())
}

fn base_is_away(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("nobase").disks(&[16]))?;
    let product = Product::of(lab, &guest);
    guest.set_memory("word", "kept")?;
    guest.write("xvda", 2, 1, "kept")?;
    product.run("snapshot-create -n x --external {}")?;
    guest.write("xvda", 2, 1, "later")?;
    guest.poweroff()?;
    let base = guest.disk_path("xvda");
    lab.run(&format!("mv {base} {base}.away"))?;
    let seen = || lab.run(&format!("find {} -type f | sort", guest.dir()));
    let files = seen()?;
    product.refuses("snapshot-revert {} x", &["xvda.qcow2", "is missing"])?;
    assert_eq!(product.try_run("snapshot-verify {}")?.status, 1);
    assert_eq!(seen()?, files, "files were made or removed");
    lab.run(&format!("mv {base}.away {base}"))?;
    product.run("snapshot-verify {}")?;
    product.run("snapshot-revert {} x")?;
    assert_eq!(guest.get_memory("word")?, "kept");
    assert_eq!(guest.sum("xvda", 2, 1)?, pattern_sum(lab, "kept", 1)?);
    product.run("snapshot-delete {} x")?;
    product.ensure_nothing_left(&guest, &["xvda"])
}
