//! Snapshots that need layers, where something goes wrong or by force: the guest and its layers are as before.

use anyhow::{Result, ensure};

use super::small_store::SmallStore;
use super::snapshot::State;
use super::snapshot_external::{active, started_as_xl};
use super::snapshot_life::{HELD, KINDS, ensure_held, ensure_own_again, with_raw_disk};
use crate::coverage::{Cells, Disks, Feature};
use crate::guest::{Guest, Kind};
use crate::product::Product;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[Step {
    name: "ts-external-and-mixed-faults-lead-back",
    run: faults,
    cells: &[
        Cells::pv(
            &[
                Feature::RevertForce,
                Feature::DeleteSubtree,
                Feature::Cdrom,
                Feature::RestoreFails,
                Feature::Killed,
                Feature::FullDisk,
            ],
            HELD,
        ),
        Cells::pv(&[Feature::CreateAsXl], &[Disks::Mixed]),
    ],
}];

/// A memory image of the guest may take 102 MiB, and takes a tenth of that.
fn faults(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    let lab = context.lab();
    let image = "/run/lab-cdrom.iso";
    lab.run(&format!("truncate -s 4M {image}"))?;
    let small_store = SmallStore::of(lab, 220)?;
    let spec = with_raw_disk(lab, "astray", Kind::Pv)?.another_disk(&format!(
        "format=raw,vdev=xvdc,devtype=cdrom,backendtype=qdisk,target={image}"
    ));
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest).store(&small_store.dir());
    let mut taken = Vec::new();
    for (how, options) in KINDS.iter().rev() {
        let state = State::set(&guest, how)?;
        let output = product.try_run(&format!("snapshot-create -n {how} {options} {{}}"))?;
        ensure!(output.status == 0, "{}", output.stderr);
        ensure_held(&product, how, how)?;
        ensure!(
            output.stderr.contains("xvdc is read-only and is left out"),
            "{}",
            output.stderr
        );
        taken.push((*how, state));
        if taken.len() == 1 {
            started_as_xl(lab, &guest, &product)?;
        }
    }
    State::change(&guest, "given up")?;
    small_store.resize(100)?;
    for (how, state) in taken.iter().rev() {
        product.refuses(
            &format!("snapshot-revert {{}} {how}"),
            &["needs up to", "by --force"],
        )?;
        product.run(&format!("snapshot-revert --force {{}} {how}"))?;
        assert_eq!(&State::read(&guest)?, state, "{how} by force");
        active(lab, &guest)?;
    }

    small_store.resize(400)?;
    let present = Present::of(context, &guest)?;
    for (how, options) in KINDS {
        let revert = format!("snapshot-revert {{}} {how}");
        let output = product.try_run_failing_to_restore(&guest, &revert)?;
        assert_eq!(output.status, 1, "{}", output.stderr);
        for words in ["says the test", "are as they were"] {
            ensure!(output.stderr.contains(words), "{}", output.stderr);
        }
        present.ensure(context, &guest, &format!("{how}, not restored"))?;

        let domid = guest.domid()?;
        let gone = format!("! xl domname {domid} >/dev/null 2>&1");
        product.kill_when(&revert, &gone)?;
        product.ensure_taken_back()?;
        present.ensure(context, &guest, &format!("{how}, killed without a domain"))?;

        let create = format!("snapshot-create -n x {options} {{}}");
        product.kill_when(&create, &product.memory_beyond(40))?;
        product.ensure_taken_back()?;
        product.wait_for_helpers()?;
        present.ensure(context, &guest, &format!("{how}, killed in mid-save"))?;

        // There is room at the start, and none once a part of the memory is written; all of it, since hardly a page is new.
        product.shrink_beyond(5, 16, small_store.mount)?;
        product.refuses(
            &format!("snapshot-create -n x --format stock {options} {{}}"),
            &["No space left on device", "are as they were"],
        )?;
        small_store.resize(400)?;
        present.ensure(context, &guest, &format!("{how}, with a full disk"))?;
    }

    // All but the lowest, and that: both delete snapshots of both kinds.
    small_store.resize(500)?;
    for (how, options) in KINDS {
        product.run(&format!("snapshot-create -n more-{how} {options} {{}}"))?;
    }
    let end = State::set(&guest, "end")?;
    let lowest = taken[0].0;
    product.run(&format!("snapshot-delete --children-only {{}} {lowest}"))?;
    assert_eq!(product.names()?, [lowest]);
    assert_eq!(State::read(&guest)?, end, "after --children-only");
    active(lab, &guest)?;
    product.run("snapshot-create -n top --external {}")?;
    // With the domain off, since a running one has images below layers open read-only: LIMITS.md.
    guest.destroy()?;
    product.run(&format!("snapshot-delete --children {{}} {lowest}"))?;
    ensure_own_again(lab, &guest, &product, &end)
}

/// What has to be as it was.
struct Present {
    state: State,
    images: Vec<String>,
    files: String,
}

impl Present {
    fn of(context: &Context, guest: &Guest<'_>) -> Result<Self> {
        let lab = context.lab();
        Ok(Self {
            state: State::set(guest, "present")?,
            images: active(lab, guest)?,
            files: lab.run(&format!("ls {}", guest.dir()))?,
        })
    }

    fn ensure(&self, context: &Context, guest: &Guest<'_>, after: &str) -> Result<()> {
        let lab = context.lab();
        guest.wait_counter_beyond(guest.counter()?)?;
        assert_eq!(State::read(guest)?, self.state, "{after}");
        assert_eq!(active(lab, guest)?, self.images, "{after}");
        let files = lab.run(&format!("ls {}", guest.dir()))?;
        assert_eq!(files, self.files, "{after}");
        Ok(())
    }
}
