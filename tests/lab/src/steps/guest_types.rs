//! Snapshots of PVH and HVM guests. What is the same for every type is shown with PV guests, which start in a
//! tenth of the time.

use anyhow::{Context as _, Result, ensure};

use super::snapshot::{DISKS, State, reboot};
use crate::guest::{Guest, GuestSpec, Kind, Mark};
use crate::host::Lab;
use crate::product::Product;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-snapshot-pvh-create-revert-delete",
        run: pvh,
    },
    Step {
        name: "ts-snapshot-hvm-create-revert-delete",
        run: hvm,
    },
    Step {
        name: "ts-snapshot-hvm-paused-with-two-cpus",
        run: hvm_paused,
    },
];

/// Two CPUs; afterwards it reboots as its configuration says.
fn pvh(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("pvh")
        .kind(Kind::Pvh)
        .vcpus(2)
        .disks(&[32, 32])
        .line("on_reboot=\"restart\"");
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    let state = State::set(&guest, "before")?;
    create_goes_on(&guest, &product, &state)?;
    let info = product.run("snapshot-info {} first")?;
    ensure!(info.contains("PVH, running"), "{info}");

    State::change(&guest, "later")?;
    revert_to_one_instant(lab, &guest, &product, &state)?;
    reboot(&guest)?;
    assert_ne!(
        State::read(&guest).ok(),
        Some(state.clone()),
        "a reboot is a new life"
    );
    guest.destroy()?;
    product.run("snapshot-revert {} first")?;
    assert_eq!(State::read(&guest)?, state, "from off");
    paused_stays_paused(lab, &guest, &product)?;
    end(lab, &guest, &product)
}

/// With its device model, and a cdrom, which is not its to write.
fn hvm(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let image = "/run/lab-cdrom.iso";
    lab.run(&format!("truncate -s 4M {image}"))?;
    let spec = GuestSpec::pv("hvm")
        .kind(Kind::Hvm)
        .disks(&[32, 32])
        .another_disk(&format!(
            "format=raw,vdev=hdc,devtype=cdrom,access=ro,target={image}"
        ));
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    let state = State::set(&guest, "before")?;
    let said = create_goes_on(&guest, &product, &state)?;
    ensure!(said.contains("hdc is read-only and is left out"), "{said}");
    let info = product.run("snapshot-info {} first")?;
    ensure!(
        info.contains("HVM, running") && !info.contains("hdc"),
        "{info}"
    );

    State::change(&guest, "later")?;
    revert_to_one_instant(lab, &guest, &product, &state)?;
    // A second snapshot has the first one's device model behind it, which a restore started.
    product.run("snapshot-create -n second {}")?;
    State::change(&guest, "later still")?;
    product.run("snapshot-revert {} first")?;
    assert_eq!(State::read(&guest)?, state, "from running");
    guest.destroy()?;
    product.run("snapshot-revert {} second")?;
    assert_eq!(State::read(&guest)?, state, "from off");
    end(lab, &guest, &product)
}

/// Before its kernel runs, its QEMU has each image open twice.
fn hvm_paused(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("hvm2")
        .kind(Kind::Hvm)
        .vcpus(2)
        .disks(&[32, 32]);
    spec.prepare(lab)?;
    lab.run(&format!("xl create -p {}", spec.config_path()))?;
    let guest = Guest::attach(lab, "hvm2");
    let product = Product::of(lab, &guest);
    product.refuses(
        "snapshot-create -n early {}",
        &["open twice for xvda", "PV drivers", "are as they were"],
    )?;
    product.ensure_nothing_left(&guest, &DISKS)?;
    ensure!(is_paused(lab, &guest)?, "it runs after the refusal");
    lab.run(&format!("xl unpause {}", guest.name()))?;
    guest.wait_ready()?;
    paused_stays_paused(lab, &guest, &product)?;
    end(lab, &guest, &product)
}

/// Makes the snapshot `first` of a guest that does not notice; returns what was said.
fn create_goes_on(guest: &Guest<'_>, product: &Product<'_>, state: &State) -> Result<String> {
    let before = guest.counter()?;
    let output = product.try_run("snapshot-create -n first {}")?;
    ensure!(output.status == 0, "{}", output.stderr);
    guest.wait_counter_beyond(before)?;
    assert_eq!(
        &State::read(guest)?,
        state,
        "the snapshot disturbed the guest"
    );
    for vdev in DISKS {
        assert_eq!(product.internal_snapshots(&guest.disk_path(vdev))?.len(), 1);
    }
    guest.write("xvda", 6, 1, "goes-on")?;
    Ok(output.stderr)
}

/// Goes back to `first`: the disks have marks of one instant, and the memory fits them.
fn revert_to_one_instant(
    lab: &Lab,
    guest: &Guest<'_>,
    product: &Product<'_>,
    state: &State,
) -> Result<()> {
    let life = guest.life_id()?;
    product.run("snapshot-revert --paused {} first")?;
    ensure!(is_paused(lab, guest)?, "it runs in spite of --paused");
    for vdev in DISKS {
        let held = product.internal_snapshots(&guest.disk_path(vdev))?;
        assert_eq!(held.len(), 1, "{vdev} holds {held:?}");
    }
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
    lab.run(&format!("xl unpause {}", guest.domid()?))?;
    let counter = guest.counter()?;
    ensure!(
        counter >= second.tick,
        "memory counts {counter}, the disks were marked at {} and {}",
        first.tick,
        second.tick
    );
    assert_eq!(&State::read(guest)?, state);
    guest.wait_counter_beyond(counter)?;
    Ok(())
}

/// A snapshot of a paused guest, and both ways back to it.
fn paused_stays_paused(lab: &Lab, guest: &Guest<'_>, product: &Product<'_>) -> Result<()> {
    let state = State::set(guest, "still")?;
    lab.run(&format!("xl pause {}", guest.name()))?;
    product.run("snapshot-create -n still {}")?;
    ensure!(is_paused(lab, guest)?, "it runs after the snapshot");
    lab.run(&format!("xl unpause {}", guest.name()))?;
    State::change(guest, "later")?;
    product.run("snapshot-revert {} still")?;
    ensure!(
        is_paused(lab, guest)?,
        "it runs though it was paused in the snapshot"
    );
    // From a domain that was restored and has not run.
    product.run("snapshot-revert --running {} still")?;
    assert_eq!(State::read(guest)?, state);
    guest.wait_counter_beyond(guest.counter()?)?;
    Ok(())
}

fn is_paused(lab: &Lab, guest: &Guest<'_>) -> Result<bool> {
    let line = lab.run(&format!("xl list {} | tail -n 1", guest.name()))?;
    let flags = line.split_ascii_whitespace().nth(4).unwrap_or_default();
    Ok(flags.contains('p'))
}

/// Deletes every snapshot of a guest that goes on, and then ends by itself; its images are whole.
fn end(lab: &Lab, guest: &Guest<'_>, product: &Product<'_>) -> Result<()> {
    for name in product.names()? {
        product.run(&format!("snapshot-delete {{}} {name}"))?;
    }
    product.ensure_nothing_left(guest, &DISKS)?;
    guest.write("xvdb", 8, 1, "goes-on")?;
    guest.wait_counter_beyond(guest.counter()?)?;
    // xl's monitor has to notice.
    guest.poweroff()?;
    for vdev in DISKS {
        lab.run(&format!(
            "qemu-img check -f qcow2 {}",
            guest.disk_path(vdev)
        ))?;
    }
    Ok(())
}
