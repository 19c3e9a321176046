//! Care of the store: what is damaged is found and mended, a tree goes elsewhere and comes back, two snapshots are
//! compared.

use anyhow::{Result, ensure};

use super::snapshot::{DISKS, State, two_disks};
use crate::guest::Guest;
use crate::host::Lab;
use crate::product::Product;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-care-a-damaged-store-is-found-and-mended",
        run: mended,
        cells: &[],
    },
    Step {
        name: "ts-care-a-tree-goes-elsewhere",
        run: elsewhere,
        cells: &[],
    },
    Step {
        name: "ts-care-two-snapshots-are-compared",
        run: compared,
        cells: &[],
    },
];

/// With the record torn, a directory that nothing names and half a memory image, the tree is made anew, and a guest
/// goes back to a state of it.
fn mended(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let (guest, product) = two_disks(lab, "mended")?;
    let before = State::set(&guest, "before")?;
    product.run("snapshot-create -n first {}")?;
    State::change(&guest, "between")?;
    product.run("snapshot-create -n second --disk xvdb,snapshot=external {}")?;
    State::change(&guest, "later")?;
    let list = product.run("snapshot-list --json {}")?;
    let said = product.run("snapshot-check {}")?;
    ensure!(said.contains("The store says what is there"), "{said}");

    let store = format!("{}/mended", product.store_dir());
    let orphan = format!("{store}/00000000-0000-4000-8000-000000000001");
    let stranger = format!(
        "{}/xvda.qcow2.xl-ext-00000000-0000-4000-8000-000000000002.qcow2",
        guest.dir()
    );
    lab.run(&format!(
        "truncate -s -9 {store}/domain; mkdir {orphan}; echo half > {orphan}/memory.partial; echo x > {stranger}"
    ))?;
    product.refuses(
        "snapshot-list {}",
        &["is damaged", "snapshot-check --repair"],
    )?;
    let found = product.try_run("snapshot-check {}")?;
    for word in [
        "domain is damaged",
        "no record names",
        "no record of this store explains",
    ] {
        ensure!(found.stdout.contains(word), "{word}: {}", found.stdout);
    }
    assert_eq!(found.status, 1);
    // The image is nobody's but the user's, so something is left.
    let repaired = product.try_run("snapshot-check --repair {}")?;
    ensure!(
        repaired.status == 1
            && repaired
                .stdout
                .contains("repair: write a record of 2 snapshots"),
        "{}{}",
        repaired.stdout,
        repaired.stderr
    );
    lab.run(&format!(
        "test ! -e {orphan} && test -e {stranger} && ls {store}/domain.damaged-* && rm {stranger}"
    ))?;
    assert_eq!(
        product.run("snapshot-list --json {}")?,
        list,
        "the tree is as it was"
    );
    product.run("snapshot-check --repair {}")?;
    product.run("snapshot-verify {}")?;
    product.run("snapshot-revert {} first")?;
    assert_eq!(State::read(&guest)?, before, "after the revert");
    Ok(())
}

/// Exported while the guest is off, imported under another name into another store, with its own images gone.
fn elsewhere(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let (guest, product) = two_disks(lab, "mover")?;
    let before = State::set(&guest, "before")?;
    product.run("snapshot-create -n inside {}")?;
    State::change(&guest, "between")?;
    product.run("snapshot-create -n outside --external {}")?;
    State::change(&guest, "later")?;
    let bundle = format!("{}/bundle", guest.dir());
    product.refuses(&format!("snapshot-export {{}} {bundle}"), &["is there"])?;
    guest.destroy()?;
    product.run(&format!("snapshot-export {{}} {bundle}"))?;
    assert_eq!(lab.run(&format!("stat -c %a {bundle}"))?.trim(), "600");

    // What the bundle does not hold is not needed.
    lab.run(&format!(
        "mkdir {dir}/away && mv {dir}/xvd* {dir}/away/ && mv {} {dir}/away/store",
        product.store_dir(),
        dir = guest.dir()
    ))?;
    let cut = format!("{bundle}.cut");
    lab.run(&format!("head -c 5000000 {bundle} > {cut}"))?;
    product.refuses(
        &format!("snapshot-import --keep-paths {cut}"),
        &["no whole bundle"],
    )?;
    product.refuses(&format!("snapshot-import {bundle}"), &["--keep-paths"])?;
    product.run(&format!("snapshot-import --keep-paths {bundle}"))?;
    product.run("snapshot-check {}")?;
    product.run("snapshot-verify {}")?;
    product.run("snapshot-revert {} inside")?;
    assert_eq!(
        State::read(&guest)?,
        before,
        "from images that were imported"
    );
    State::change(&guest, "again")?;
    product.run("snapshot-revert {} outside")?;
    assert_eq!(guest.get_memory("word")?, "between");
    Ok(())
}

/// What was written between two snapshots is what differs, and nothing differs from itself.
fn compared(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let (guest, product) = two_disks(lab, "compared")?;
    State::change(&guest, "one")?;
    guest.mark_disks(false)?;
    product.run("snapshot-create -n one {}")?;
    guest.write(DISKS[0], 8, 1, "first-only")?;
    product.run("snapshot-create -n two --disk xvdb,snapshot=external {}")?;
    let diff = |from: &str, to: &str| -> Result<serde_json::Value> {
        let text = product.run(&format!("snapshot-diff --json {{}} {from} {to}"))?;
        Ok(serde_json::from_str(&text)?)
    };
    let same = diff("one", "one")?;
    let found = diff("one", "two")?;
    println!("      {found}");
    for disk in 0..2 {
        assert_eq!(same["disks"][disk]["changed_bytes"], 0);
    }
    assert_eq!(same["memory"]["changed"], 0);
    assert_eq!(same["configuration"], serde_json::json!([]));
    // A MiB was written to the one disk, and nothing to the other.
    assert_eq!(found["disks"][0]["changed_bytes"], 1 << 20);
    assert_eq!(found["disks"][0]["ranges"], 1);
    assert_eq!(found["disks"][1]["changed_bytes"], 0);
    let number = |what: &str| found["memory"][what].as_u64().unwrap_or_default();
    ensure!(
        number("changed") > 0,
        "a guest that runs changes its memory"
    );
    ensure!(number("changed") < number("from_pages") / 2, "{found}");
    product.refuses("snapshot-diff {} one none", &["no snapshot 'none'"])?;
    rot_is_found(lab, &guest, &product)
}

/// Once the checksums of the disks are recorded, a byte that changes without any time of a file that says so is found.
fn rot_is_found(lab: &Lab, guest: &Guest<'_>, product: &Product<'_>) -> Result<()> {
    product.run("snapshot-verify --checksum {}")?;
    // What both snapshots have of xvdb, in the image that the guest does not write to any more.
    let base = guest.disk_path(DISKS[1]);
    lab.run(&format!(
        "at=$(grep -obUa -m1 one {base} | head -n 1 | cut -d: -f1) && touch -r {base} {base}.time && \
         printf O | dd of={base} bs=1 seek=$at conv=notrunc status=none && touch -r {base}.time {base} && rm {base}.time"
    ))?;
    let found = product.try_run("snapshot-verify {}")?;
    assert_eq!(found.status, 1, "{}", found.stdout);
    ensure!(
        found.stdout.contains("xvdb") && found.stdout.contains("its checksum does not match"),
        "{}",
        found.stdout
    );
    Ok(())
}
