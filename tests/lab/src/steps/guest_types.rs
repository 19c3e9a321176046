//! Snapshots of PVH and HVM guests. What is the same for every type is shown with PV guests, which start in a
//! tenth of the time.

use anyhow::{Result, ensure};

use super::snapshot::{DISKS, State};
use super::snapshot_life::{self, back_to_one_instant, is_paused};
use crate::coverage::{Cells, Disks, Feature};
use crate::guest::{Guest, GuestSpec, Kind};
use crate::host::Lab;
use crate::product::Product;
use crate::step::{Context, Step};

const INTERNAL: &[Disks] = &[Disks::Internal];

/// What both types are shown to do in a like way.
const BOTH: &[Feature] = &[
    Feature::Create,
    Feature::OneInstant,
    Feature::Revert,
    Feature::RevertOff,
    Feature::Tree,
    Feature::Delete,
    Feature::DeletePaused,
    Feature::DeleteOff,
    Feature::Verify,
];

/// What [`paused_stays_paused`] shows, and two CPUs.
const PAUSED: &[Feature] = &[
    Feature::CreatePaused,
    Feature::RevertPaused,
    Feature::RevertTo,
    Feature::TwoCpus,
];

/// What the guest and stock `xl` do afterwards.
const STOCK: &[Feature] = &[Feature::Reboot, Feature::SaveRestore, Feature::Migrate];

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-snapshot-pvh-create-revert-delete",
        run: pvh,
        cells: &[
            Cells::pvh(BOTH, INTERNAL),
            Cells::pvh(PAUSED, INTERNAL),
            Cells::pvh(STOCK, INTERNAL),
            Cells::pvh(&[Feature::CreateLive], INTERNAL),
        ],
    },
    Step {
        name: "ts-external-and-mixed-pvh-live-from-every-state",
        run: |context| layers(context, snapshot_life::back_from_every_state, Kind::Pvh),
        cells: &[
            Cells::pvh(snapshot_life::BACK, snapshot_life::HELD),
            Cells::pvh(&[Feature::CreateLive], snapshot_life::HELD),
        ],
    },
    Step {
        name: "ts-external-and-mixed-pvh-migrated-and-deleted",
        run: |context| layers(context, snapshot_life::used_and_deleted, Kind::Pvh),
        cells: &[
            Cells::pvh(snapshot_life::DELETED, snapshot_life::HELD),
            Cells::pvh(&[Feature::Migrate], snapshot_life::HELD),
        ],
    },
    Step {
        name: "ts-snapshot-hvm-create-revert-delete",
        run: hvm,
        cells: &[
            Cells::hvm(BOTH, INTERNAL),
            Cells::hvm(&[Feature::Cdrom], INTERNAL),
        ],
    },
    Step {
        name: "ts-snapshot-hvm-paused-with-two-cpus",
        run: hvm_paused,
        cells: &[Cells::hvm(PAUSED, INTERNAL), Cells::hvm(STOCK, INTERNAL)],
    },
    Step {
        name: "ts-external-and-mixed-hvm-from-every-state",
        run: |context| layers(context, snapshot_life::back_from_every_state, Kind::Hvm),
        cells: &[Cells::hvm(snapshot_life::BACK, snapshot_life::HELD)],
    },
    Step {
        name: "ts-external-and-mixed-hvm-migrated-and-deleted",
        run: |context| layers(context, snapshot_life::used_and_deleted, Kind::Hvm),
        cells: &[
            Cells::hvm(snapshot_life::DELETED, snapshot_life::HELD),
            Cells::hvm(&[Feature::Migrate], snapshot_life::HELD),
        ],
    },
];

/// Runs a part of [`snapshot_life`] with a guest of a type.
fn layers(
    context: &mut Context,
    part: fn(&Lab, &str, Kind) -> Result<()>,
    kind: Kind,
) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    part(context.lab(), "layers", kind)
}

/// Two CPUs; in between it reboots as its configuration says, is saved and migrates.
fn pvh(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
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
    let second = State::set(&guest, "second")?;
    snapshot_life::create_live(lab, &guest, &product, "second", "")?;
    assert_eq!(State::read(&guest)?, second, "--live disturbed the guest");
    product.run("snapshot-verify {}")?;

    State::change(&guest, "later")?;
    back_to_one_instant(lab, &guest, &product, "first", &state)?;
    snapshot_life::used_by_stock_xl(lab, &guest, Kind::Pvh)?;
    // A branch beside the second one.
    paused_stays_paused(lab, &guest, &product)?;
    guest.destroy()?;
    product.run("snapshot-revert {} second")?;
    assert_eq!(State::read(&guest)?, second, "from off");
    end(lab, &guest, &product)
}

/// With its device model, and a cdrom, which is not its to write.
fn hvm(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
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
    back_to_one_instant(lab, &guest, &product, "first", &state)?;
    // A second snapshot has the first one's device model behind it, which a restore started.
    let second = State::set(&guest, "second")?;
    product.run("snapshot-create -n second {}")?;
    State::change(&guest, "later still")?;
    product.run("snapshot-revert {} first")?;
    assert_eq!(State::read(&guest)?, state, "from running");
    product.refuses("snapshot-create --live -n x {}", &["device model"])?;
    // A branch beside the second one.
    product.run("snapshot-create -n branch {}")?;
    guest.destroy()?;
    product.run("snapshot-revert {} second")?;
    assert_eq!(State::read(&guest)?, second, "from off");
    product.run("snapshot-verify {}")?;
    end(lab, &guest, &product)
}

/// Before its kernel runs, its QEMU has each image open twice. After a revert it reboots, is saved and migrates.
fn hvm_paused(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("hvm2")
        .kind(Kind::Hvm)
        .vcpus(2)
        .disks(&[32, 32])
        .line("on_reboot=\"restart\"");
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
    snapshot_life::used_by_stock_xl(lab, &guest, Kind::Hvm)?;
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

/// Deletes one snapshot while the guest is paused, others while it runs, and a last one when it has ended by itself;
/// its images are whole.
fn end(lab: &Lab, guest: &Guest<'_>, product: &Product<'_>) -> Result<()> {
    let names = product.names()?;
    product.run("snapshot-create -n last {}")?;
    lab.run(&format!("xl pause {}", guest.name()))?;
    product.run(&format!("snapshot-delete {{}} {}", names[0]))?;
    lab.run(&format!("xl unpause {}", guest.name()))?;
    for name in &names[1..] {
        product.run(&format!("snapshot-delete {{}} {name}"))?;
    }
    guest.write("xvdb", 8, 1, "goes-on")?;
    guest.wait_counter_beyond(guest.counter()?)?;
    // xl's monitor has to notice.
    guest.poweroff()?;
    product.run("snapshot-delete {} last")?;
    product.ensure_nothing_left(guest, &DISKS)?;
    for vdev in DISKS {
        lab.run(&format!(
            "qemu-img check -f qcow2 {}",
            guest.disk_path(vdev)
        ))?;
    }
    Ok(())
}
