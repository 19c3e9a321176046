//! What a snapshot needs breaks: the domain's QEMU dies, an image is away. What the guest has flushed is not lost, and
//! once the cause is removed everything works.

use anyhow::Result;
use std::time::Duration;

use super::snapshot::{DISKS, State};
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
        name: "ts-snapshot-while-xenstored-is-replaced",
        run: xenstored_is_replaced,
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
            "{} & pid=$!; while ! {}; do kill -0 $pid || exit 3; done; kill -9 $({qemu}); wait $pid",
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
    assert_eq!(guest.sum("xvda", 2, 1)?, pattern_sum("flushed", 1));
    product.run("snapshot-create -n x {}")?;
    assert_eq!(product.names()?, ["x"]);
    Ok(())
}

/// By its live update, the only way in which it can be started anew: one that is killed has forgotten all domains.
fn xenstored_is_replaced(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("restarted").disks(&[16, 16]))?;
    let product = Product::of(lab, &guest);
    let state = State::set(&guest, "kept")?;
    let gone = format!("! xl domname {} >/dev/null 2>&1", guest.domid()?);
    for (number, command, when) in [
        (1, "snapshot-create -n x {}", product.memory_beyond(20)),
        (2, "snapshot-revert {} x", gone),
    ] {
        let program = format!("/run/oxenstored-{number}");
        lab.run(&format!(
            "cp $(readlink -f /proc/$(cat /run/xenstore.pid)/exe) {program}"
        ))?;
        let output = lab.try_run(
            &format!(
                "{} & pid=$!; while ! {{ {when}; }}; do kill -0 $pid || exit 3; done; \
                 xenstore-control live-update -t 60 {program} || exit 4; kill -0 $pid || exit 5; wait $pid",
                product.command(command)
            ),
            Duration::from_secs(300),
        )?;
        assert_eq!(output.status, 0, "{}{}", output.stdout, output.stderr);
        let now = lab.run("readlink /proc/$(cat /run/xenstore.pid)/exe")?;
        assert_eq!(now, program, "xenstored was not replaced");
        assert_eq!(State::read(&guest)?, state, "after {command}");
        State::change(&guest, "later")?;
    }
    product.run("snapshot-delete {} x")?;
    product.ensure_nothing_left(&guest, &DISKS)
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
    assert_eq!(guest.sum("xvda", 2, 1)?, pattern_sum("kept", 1));
    product.run("snapshot-delete {} x")?;
    product.ensure_nothing_left(&guest, &["xvda"])
}
