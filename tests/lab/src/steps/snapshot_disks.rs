//! Snapshots of many disks.

use anyhow::Result;

use super::snapshot::State;
use super::snapshot_external::active;
use super::snapshot_life::{back_to_one_instant, ensure_held};
use crate::coverage::{Cells, Disks, Feature};
use crate::guest::{Guest, GuestSpec, pattern_sum};
use crate::product::Product;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[Step {
    name: "ts-snapshot-of-eight-disks",
    run: eight,
    cells: &[Cells::pv(&[Feature::EightDisks], Disks::ALL)],
}];

const EIGHT: [&str; 8] = [
    "xvda", "xvdb", "xvdc", "xvdd", "xvde", "xvdf", "xvdg", "xvdh",
];

/// All of them qcow2, internally; then half of them raw, externally and in both ways.
fn eight(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    eight_in(context, "eight", 8, &[("internal", "")])?;
    // Before a raw disk has a layer, which is qcow2.
    let layered = [("mixed", ""), ("external", "--external")];
    eight_in(context, "half-raw", 4, &layered)
}

fn eight_in(context: &Context, name: &str, qcow2: usize, hows: &[(&str, &str)]) -> Result<()> {
    let lab = context.lab();
    let mut spec = GuestSpec::pv(name).disks(&vec![16; qcow2]);
    for vdev in &EIGHT[qcow2..] {
        let raw = format!("{}/{vdev}.raw", spec.dir());
        lab.run(&format!("mkdir -p {} && truncate -s 16M {raw}", spec.dir()))?;
        spec = spec.another_disk(&format!(
            "format=raw,vdev={vdev},access=rw,backendtype=qdisk,target={raw}"
        ));
    }
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    let bases = active(lab, &guest)?;
    assert_eq!(bases.len(), EIGHT.len());
    let mut states = Vec::new();
    for (how, options) in hows {
        write_all(&guest, how)?;
        states.push(State::set(&guest, how)?);
        product.run(&format!("snapshot-create -n {how} {options} {{}}"))?;
        ensure_held(&product, how, how)?;
    }
    write_all(&guest, "later")?;
    for ((how, _), state) in hows.iter().zip(&states) {
        back_to_one_instant(lab, &guest, &product, how, state)?;
        assert_eq!(guest.sums(EIGHT, 4, 1)?, written(how), "in {how}");
    }
    write_all(&guest, "end")?;
    // With the domain off, since a running one has images below layers open read-only: LIMITS.md.
    guest.poweroff()?;
    for (how, _) in hows {
        product.run(&format!("snapshot-delete {{}} {how}"))?;
    }
    product.ensure_nothing_left(&guest, &EIGHT[..qcow2])?;
    lab.run(&format!("xl create {}", spec.config_path()))?;
    guest.wait_ready()?;
    assert_eq!(active(lab, &guest)?, bases);
    assert_eq!(guest.sums(EIGHT, 4, 1)?, written("end"), "at the end");
    Ok(())
}

fn write_all(guest: &Guest<'_>, word: &str) -> Result<()> {
    let requests = EIGHT.map(|vdev| format!("write {vdev} 4 1 {word}-{vdev}"));
    let requests = requests.each_ref().map(String::as_str);
    guest.ask_all(requests).map(drop)
}

/// The sums of what [`write_all`] writes.
fn written(word: &str) -> [String; 8] {
    EIGHT.map(|vdev| pattern_sum(&format!("{word}-{vdev}"), 1))
}
