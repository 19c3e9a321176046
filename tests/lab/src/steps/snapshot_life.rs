//! The whole life of snapshots that need layers, for a guest of any type with a qcow2 disk, xvda, and a raw one, xvdb:
//! taken, gone back to and deleted while it runs, is paused and is off, and all that stock `xl` does with it. Each guest
//! goes through much of it, since a boot costs most under emulation.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::snapshot::{State, reboot, sums};
use super::snapshot_external::active;
use crate::coverage::{Cells, Disks, Feature};
use crate::guest::{Guest, GuestSpec, Kind, LIVED, Mark, image_sum};
use crate::host::Lab;
use crate::product::Product;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-external-and-mixed-from-every-state",
        run: pv_back,
        cells: &[Cells::pv(BACK, HELD)],
    },
    Step {
        name: "ts-external-and-mixed-used-and-deleted",
        run: pv_deleted,
        cells: &[Cells::pv(DELETED, HELD)],
    },
];

/// How the disks are held in the snapshots of these guests.
pub(super) const HELD: &[Disks] = &[Disks::External, Disks::Raw, Disks::Mixed];

/// What [`back_from_every_state`] shows of every type of guest.
pub(super) const BACK: &[Feature] = &[
    Feature::Create,
    Feature::CreatePaused,
    Feature::OneInstant,
    Feature::Revert,
    Feature::RevertPaused,
    Feature::RevertOff,
    Feature::RevertTo,
    Feature::Tree,
    Feature::Verify,
    Feature::TwoCpus,
];

/// What [`used_and_deleted`] shows of every type of guest.
pub(super) const DELETED: &[Feature] = &[
    Feature::Reboot,
    Feature::SaveRestore,
    Feature::Delete,
    Feature::DeletePaused,
    Feature::DeleteOff,
];

/// The options that make a snapshot in which both disks are external, and one in which xvda is internal. A layer on the
/// raw disk is qcow2, and would be held internally too if nothing were said of it.
pub(super) const KINDS: [(&str, &str); 2] = [
    ("external", "--external"),
    ("mixed", "--disk xvdb,snapshot=external"),
];

/// Makes sure that a snapshot is of the kind that it is to show something of.
pub(super) fn ensure_held(product: &Product<'_>, name: &str, how: &str) -> Result<()> {
    let text = product.run(&format!("snapshot-info --json {{}} {name}"))?;
    let info: serde_json::Value = serde_json::from_str(&text)?;
    let disks = info["domain_snapshot"]["disks"]
        .as_array()
        .context("no disks in snapshot-info")?;
    let external = disks.iter().filter(|disk| disk["external"] == true).count();
    let fits = match how {
        "external" => external == disks.len(),
        "mixed" => 0 < external && external < disks.len(),
        _ => external == 0,
    };
    ensure!(
        fits,
        "{external} of {} disks are external in {name}",
        disks.len()
    );
    Ok(())
}

/// For what stock xl does with a guest of 256 MiB on a loaded machine.
const LIMIT: Duration = Duration::from_secs(300);

fn pv_back(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    back_from_every_state(context.lab(), "back", Kind::Pv)
}

fn pv_deleted(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    used_and_deleted(context.lab(), "used", Kind::Pv)
}

/// The spec of a guest with the two disks, whose raw one is made.
pub(super) fn with_raw_disk(lab: &Lab, name: &str, kind: Kind) -> Result<GuestSpec> {
    let spec = GuestSpec::pv(name).kind(kind);
    let raw = raw_path(&spec.dir());
    lab.run(&format!("mkdir -p {} && truncate -s 32M {raw}", spec.dir()))?;
    Ok(spec
        .disks(&[32])
        .another_disk(&format!(
            "format=raw,vdev=xvdb,access=rw,backendtype=qdisk,target={raw}"
        ))
        .line("on_reboot=\"restart\""))
}

fn raw_path(dir: &str) -> String {
    format!("{dir}/xvdb.raw")
}

/// Snapshots of a running and of a paused guest with two CPUs, live ones of a PVH guest; and the ways back to them while
/// it runs, is paused and is off, in another order.
pub(super) fn back_from_every_state(lab: &Lab, name: &str, kind: Kind) -> Result<()> {
    let guest = Guest::create(lab, &with_raw_disk(lab, name, kind)?.vcpus(2))?;
    let product = Product::of(lab, &guest);
    let bases = active(lab, &guest)?;
    let running = taken_while_running(lab, &guest, &product, kind)?;
    let paused = taken_while_paused(lab, &guest, &product)?;
    let layers = active(lab, &guest)?;
    ensure!(
        layers.iter().all(|layer| !bases.contains(layer)),
        "the guest goes on in {layers:?}"
    );

    State::change(&guest, "later")?;
    for (name, state) in &running {
        back_to_one_instant(lab, &guest, &product, name, state)?;
        State::change(&guest, "between")?;
    }
    for (name, state) in &paused {
        lab.run(&format!("xl pause {}", guest.name()))?;
        product.run(&format!("snapshot-revert --running {{}} {name}"))?;
        assert_eq!(&State::read(&guest)?, state, "{name} from paused");
        State::change(&guest, "between")?;
    }
    product.run("snapshot-verify {}")?;
    let (external, mixed) = (&paused[0], &running[1]);
    guest.destroy()?;
    product.run(&format!("snapshot-revert {{}} {}", external.0))?;
    ensure!(
        is_paused(lab, &guest)?,
        "it runs though it was paused in {}",
        external.0
    );
    lab.run(&format!("xl unpause {}", guest.name()))?;
    assert_eq!(State::read(&guest)?, external.1, "external, from off");
    guest.destroy()?;
    product.run(&format!("snapshot-revert {{}} {}", mixed.0))?;
    assert_eq!(State::read(&guest)?, mixed.1, "mixed, from off");
    guest.wait_counter_beyond(guest.counter()?)?;
    Ok(())
}

/// Snapshots of a guest that lives on its layers with all that stock `xl` does; and their deletion while it runs, is
/// paused and is off, until its disks are its own again.
pub(super) fn used_and_deleted(lab: &Lab, name: &str, kind: Kind) -> Result<()> {
    let guest = Guest::create(lab, &with_raw_disk(lab, name, kind)?)?;
    let product = Product::of(lab, &guest);
    for when in ["running", "paused", "off"] {
        for (how, options) in KINDS {
            let name = format!("{when}-{how}");
            State::change(&guest, &name)?;
            product.run(&format!("snapshot-create -n {name} {options} {{}}"))?;
            ensure_held(&product, &name, how)?;
        }
    }
    used_by_stock_xl(lab, &guest, kind)?;
    let present = State::set(&guest, "present")?;
    for (how, _) in KINDS {
        product.run(&format!("snapshot-delete {{}} running-{how}"))?;
        assert_eq!(State::read(&guest)?, present, "without running-{how}");
        active(lab, &guest)?;
    }
    lab.run(&format!("xl pause {}", guest.name()))?;
    for (how, _) in KINDS {
        product.run(&format!("snapshot-delete {{}} paused-{how}"))?;
        ensure!(is_paused(lab, &guest)?, "it runs after a deletion");
    }
    lab.run(&format!("xl unpause {}", guest.name()))?;
    assert_eq!(
        State::read(&guest)?,
        present,
        "after deletions while paused"
    );
    active(lab, &guest)?;
    let end = State::set(&guest, "end")?;
    guest.destroy()?;
    for (how, _) in KINDS {
        product.run(&format!("snapshot-delete {{}} off-{how}"))?;
    }
    ensure_own_again(lab, &guest, &product, &end)
}

/// A snapshot of each kind of a guest that does not notice.
fn taken_while_running(
    lab: &Lab,
    guest: &Guest<'_>,
    product: &Product<'_>,
    kind: Kind,
) -> Result<Vec<(String, State)>> {
    let mut taken = Vec::new();
    for (how, options) in KINDS {
        let name = format!("running-{how}");
        let state = State::set(guest, &name)?;
        let before = guest.counter()?;
        if kind == Kind::Pvh {
            create_live(lab, guest, product, &name, options)?;
        } else {
            product.run(&format!("snapshot-create -n {name} {options} {{}}"))?;
        }
        guest.wait_counter_beyond(before)?;
        ensure_held(product, &name, how)?;
        assert_eq!(State::read(guest)?, state, "{name} disturbed the guest");
        taken.push((name, state));
    }
    Ok(taken)
}

/// With most of its memory written, the guest has not been suspended.
pub(super) fn create_live(
    lab: &Lab,
    guest: &Guest<'_>,
    product: &Product<'_>,
    name: &str,
    options: &str,
) -> Result<()> {
    // The letter s in its state is that of a domain that shut down, which a suspended one did.
    let seen = lab.run_within(
        &format!(
            "{} & pid=$!; while ! {}; do kill -0 $pid || exit 3; done; \
             xl list {} | tail -n 1; wait $pid",
            product.command(&format!("snapshot-create -n {name} --live {options} {{}}")),
            product.memory_beyond(150),
            guest.name()
        ),
        LIMIT,
    )?;
    println!("      {name}: {}", seen.replace('\n', "; "));
    let line = seen
        .lines()
        .find(|line| line.starts_with(guest.name()))
        .context("xl list did not show the guest")?;
    let flags = line.split_ascii_whitespace().nth(4).unwrap_or_default();
    ensure!(!flags.contains('s'), "it was suspended: {line}");
    ensure!(seen.contains("the guest stood still for"), "{seen}");
    Ok(())
}

/// A snapshot of each kind of the paused guest, which does not run on in between.
fn taken_while_paused(
    lab: &Lab,
    guest: &Guest<'_>,
    product: &Product<'_>,
) -> Result<Vec<(String, State)>> {
    let state = State::set(guest, "paused")?;
    lab.run(&format!("xl pause {}", guest.name()))?;
    let mut taken = Vec::new();
    for (how, options) in KINDS {
        let name = format!("paused-{how}");
        product.run(&format!("snapshot-create -n {name} {options} {{}}"))?;
        ensure!(is_paused(lab, guest)?, "it runs after {name}");
        taken.push((name, state.clone()));
    }
    lab.run(&format!("xl unpause {}", guest.name()))?;
    Ok(taken)
}

/// Goes back to a snapshot: the disks have marks of one instant, and the memory fits them.
pub(super) fn back_to_one_instant(
    lab: &Lab,
    guest: &Guest<'_>,
    product: &Product<'_>,
    name: &str,
    state: &State,
) -> Result<()> {
    let life = guest.life_id()?;
    product.run(&format!("snapshot-revert --paused {{}} {name}"))?;
    ensure!(is_paused(lab, guest)?, "it runs in spite of --paused");
    let marks = active(lab, guest)?
        .iter()
        .map(|image| Mark::read(lab, image)?.with_context(|| format!("{image} has no mark")))
        .collect::<Result<Vec<_>>>()?;
    let (first, last) = (&marks[0], &marks[marks.len() - 1]);
    // The guest marks them in their order, so at no instant one is ahead of an earlier one.
    let mut pairs = marks.windows(2);
    ensure!(
        pairs.all(|pair| pair[0].seq >= pair[1].seq) && first.seq <= last.seq + 1,
        "in {name} the disks' marks are {marks:?}"
    );
    ensure!(marks.iter().all(|mark| mark.life == life), "{marks:?}");
    lab.run(&format!("xl unpause {}", guest.domid()?))?;
    let counter = guest.counter()?;
    ensure!(
        counter >= last.tick,
        "memory counts {counter}, the disks were marked at {} and {}",
        first.tick,
        last.tick
    );
    assert_eq!(&State::read(guest)?, state, "after the revert to {name}");
    guest.wait_counter_beyond(counter)?;
    Ok(())
}

/// Reboot, save and restore, and where Xen can a migration, leave the guest on its layers.
pub(super) fn used_by_stock_xl(lab: &Lab, guest: &Guest<'_>, kind: Kind) -> Result<()> {
    let layers = active(lab, guest)?;
    let state = State::set(guest, "stock")?;
    reboot(guest)?;
    assert_eq!(active(lab, guest)?, layers, "after a reboot");
    assert_eq!(sums(guest)?, *state.sums(), "after a reboot");
    let state = State::set(guest, "saved")?;
    let file = format!("{}/saved", guest.dir());
    let (save, migrate) = (
        format!("xl save {} {file} && xl restore {file}", guest.name()),
        // To this host, without ssh in between: xl runs the "host" as a command then.
        format!(
            "xl migrate -s '' {} 'exec xl migrate-receive'",
            guest.name()
        ),
    );
    let mut commands = vec![save];
    if kind != Kind::Pv {
        commands.push(migrate);
    }
    for command in commands {
        lab.run_within(&command, LIMIT)?;
        assert_eq!(State::read(guest)?, state, "after `{command}`");
        assert_eq!(active(lab, guest)?, layers, "after `{command}`");
    }
    lab.run(&format!("rm {file}")).map(drop)
}

/// The guest, which is off, has its state on the disks that its configuration names, and nothing else is there.
pub(super) fn ensure_own_again(
    lab: &Lab,
    guest: &Guest<'_>,
    product: &Product<'_>,
    state: &State,
) -> Result<()> {
    let raw = raw_path(&guest.dir());
    let (offset, mib) = LIVED;
    let sums = [
        image_sum(lab, &guest.disk_path("xvda"), offset, mib)?,
        lab.run(&format!(
            "dd if={raw} bs=1M skip={offset} count={mib} status=none | md5sum | cut -d' ' -f1"
        ))?,
    ];
    assert_eq!(sums, *state.sums(), "the disks of the configuration file");
    lab.run(&format!(
        "qemu-img check -q -f qcow2 {}",
        guest.disk_path("xvda")
    ))?;
    let left = lab.run(&format!("ls {}", guest.dir()))?;
    ensure!(!left.contains("xl-ext-"), "layers are left: {left}");
    product.ensure_nothing_left(guest, &["xvda"])
}

pub(super) fn is_paused(lab: &Lab, guest: &Guest<'_>) -> Result<bool> {
    let line = lab.run(&format!("xl list {} | tail -n 1", guest.name()))?;
    let flags = line.split_ascii_whitespace().nth(4).unwrap_or_default();
    Ok(flags.contains('p'))
}
