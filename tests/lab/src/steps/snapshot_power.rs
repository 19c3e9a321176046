//! Snapshots and the loss of power. Each of these costs a boot, so they come last.

use anyhow::{Context as _, Result};

use crate::coverage::{Cells, Disks, Feature};
use crate::guest::{Guest, GuestSpec};
use crate::host::Lab;
use crate::power_cuts;
use crate::product::Product;
use crate::step::{Context, Step};

const INTERNAL: &[Disks] = &[Disks::Internal];

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-snapshot-create-survives-a-power-cut",
        run: create_power_cut,
        cells: &[Cells::pv(&[Feature::PowerCut], INTERNAL)],
    },
    Step {
        name: "ts-snapshot-revert-survives-a-power-cut",
        run: revert_power_cut,
        cells: &[Cells::pv(&[Feature::PowerCut], INTERNAL)],
    },
    Step {
        name: "ts-snapshot-five-random-power-cuts",
        run: random_cuts,
        cells: &[Cells::pv(
            &[Feature::PowerCut],
            &[Disks::Internal, Disks::External],
        )],
    },
];

const NAME: &str = "power";

/// How many random cuts each run of the steps has; `make powercut N=50` has more.
const CUTS: u32 = 5;

/// `LAB_SEED` gives the seed that an earlier run printed.
fn random_cuts(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let seed = match std::env::var("LAB_SEED") {
        Ok(seed) => seed.parse().context("LAB_SEED is no number")?,
        Err(_) => power_cuts::any_seed(),
    };
    let report = power_cuts::run(context.lab_mut(), CUTS, seed)?;
    println!("{report}");
    Ok(())
}

/// A guest that lived on after its snapshot `kept`, all of it on the disk.
fn prepare(lab: &Lab) -> Result<()> {
    let guest = Guest::create(lab, &GuestSpec::pv(NAME).disks(&[16]))?;
    let product = Product::of(lab, &guest);
    guest.set_memory("word", "kept")?;
    guest.write("xvda", 2, 1, "kept")?;
    product.run("snapshot-create -n kept {}")?;
    guest.set_memory("word", "present")?;
    guest.write("xvda", 2, 1, "present")?;
    lab.run("sync").map(drop)
}

/// Begins a command and cuts the power as soon as the shell condition `when` holds.
fn cut_when(lab: &mut Lab, command: &str, when: &str) -> Result<()> {
    lab.run(&format!(
        "nohup sh -c '{command}' >/dev/null 2>&1 & pid=$!; \
         while ! {{ {when}; }}; do kill -0 $pid || exit 3; done"
    ))?;
    lab.power_cut()?;
    lab.start()
}

fn create_power_cut(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    prepare(context.lab())?;
    let guest = Guest::attach(context.lab(), NAME);
    let product = Product::of(context.lab(), &guest);
    let (command, when) = (
        product.command("snapshot-create -n half power"),
        product.memory_beyond(30),
    );
    cut_when(context.lab_mut(), &command, &when)?;

    let guest = Guest::attach(context.lab(), NAME);
    let product = Product::of(context.lab(), &guest);
    assert_eq!(product.names()?, ["kept"]);
    assert_eq!(
        product.internal_snapshots(&guest.disk_path("xvda"))?.len(),
        1
    );
    product.run("snapshot-revert {} kept")?;
    assert_eq!(guest.get_memory("word")?, "kept");
    product.run("snapshot-delete {} kept")?;
    product.ensure_nothing_left(&guest, &["xvda"])
}

/// Cut while there is no domain: the guest comes back as it was before the revert, memory and disk.
fn revert_power_cut(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    prepare(context.lab())?;
    let guest = Guest::attach(context.lab(), NAME);
    let (life, sum) = (guest.life_id()?, guest.sum("xvda", 2, 1)?);
    let gone = format!("! xl domname {} >/dev/null 2>&1", guest.domid()?);
    let command = Product::of(context.lab(), &guest).command("snapshot-revert power kept");
    cut_when(context.lab_mut(), &command, &gone)?;

    let guest = Guest::attach(context.lab(), NAME);
    let product = Product::of(context.lab(), &guest);
    product.ensure_taken_back()?;
    assert_eq!(guest.life_id()?, life);
    assert_eq!(guest.get_memory("word")?, "present");
    assert_eq!(guest.sum("xvda", 2, 1)?, sum);
    product.run("snapshot-revert {} kept")?;
    assert_eq!(guest.get_memory("word")?, "kept");
    Ok(())
}
