//! Deletions of a part of the tree of snapshots.

use anyhow::{Result, ensure};

use crate::coverage::{Cells, Disks, Feature};
use crate::guest::{Guest, GuestSpec};
use crate::product::Product;
use crate::step::{Context, Step};

const INTERNAL: &[Disks] = &[Disks::Internal];

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-snapshot-delete-children",
        run: delete_children,
        cells: &[Cells::pv(&[Feature::DeleteSubtree], INTERNAL)],
    },
    Step {
        name: "ts-snapshot-delete-children-finished-by-the-next",
        run: finished_by_the_next,
        cells: &[],
    },
];

/// `root` with the branches `a`, below which is `b`, and `c`, which is current.
fn branched<'lab>(context: &'lab Context, name: &str) -> Result<(Guest<'lab>, Product<'lab>)> {
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv(name).disks(&[16, 16]))?;
    let product = Product::of(lab, &guest);
    for name in ["root", "a", "b"] {
        guest.set_memory("word", name)?;
        guest.write("xvda", 2, 1, name)?;
        product.run(&format!("snapshot-create -n {name} {{}}"))?;
    }
    product.run("snapshot-revert {} root")?;
    product.run("snapshot-create -n c {}")?;
    let tree = product.run("snapshot-list --tree {}")?;
    assert_eq!(tree, "root\n  a\n    b\n  c  (current)\n");
    Ok((guest, product))
}

fn delete_children(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let (guest, product) = branched(context, "branches")?;
    let plan = product.run("snapshot-delete --plan --children {} root")?;
    ensure!(
        plan.contains("its 3 descendants 'a', 'b', 'c' are deleted too"),
        "{plan}"
    );
    let usage = product.try_run("snapshot-delete --children --children-only {} root")?;
    assert_eq!(usage.status, 2, "{}", usage.stderr);
    assert_eq!(product.names()?, ["root", "a", "b", "c"]);

    let output = product.run("snapshot-delete --children-only {} a")?;
    ensure!(
        output.contains("1 descendant of snapshot 'a' deleted"),
        "{output}"
    );
    let output = product.run("snapshot-delete --children-only {} a")?;
    ensure!(output.contains("'a' has no children"), "{output}");
    assert_eq!(product.names()?, ["root", "a", "c"]);
    // What is kept is whole, in spite of the clusters that it shared.
    product.run("snapshot-revert {} a")?;
    assert_eq!(guest.get_memory("word")?, "a");
    let sum = guest.sum("xvda", 2, 1)?;

    // The branch of the present state goes; it comes from `root` then.
    let output = product.run("snapshot-delete --children {} a")?;
    ensure!(output.contains("snapshot 'a' deleted"), "{output}");
    let tree = product.run("snapshot-list --tree {}")?;
    assert_eq!(tree, "root  (current)\n  c\n");
    let posted = lab.run(&format!(
        "xenstore-read /libxl/{}/ext/current-snapshot",
        guest.domid()?
    ))?;
    assert_eq!(posted.trim(), "root");
    let output = product.run("snapshot-delete --children {} root")?;
    ensure!(
        output.contains("snapshot 'root' and its 1 descendant deleted"),
        "{output}"
    );
    product.ensure_nothing_left(&guest, &["xvda", "xvdb"])?;
    assert_eq!(guest.sum("xvda", 2, 1)?, sum, "the present is its own");
    guest.wait_counter_beyond(guest.counter()?)?;
    guest.poweroff()?;
    for vdev in ["xvda", "xvdb"] {
        lab.run(&format!(
            "qemu-img check -q -f qcow2 {}",
            guest.disk_path(vdev)
        ))?;
    }
    Ok(())
}

/// It fails in the middle, over a file that is not ours; a snapshot that is taken then is not deleted by
/// the command that finishes it. Without a domain it is the same, by `qemu-img`.
fn finished_by_the_next(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    let lab = context.lab();
    let (guest, product) = branched(context, "middle")?;
    let info: serde_json::Value = serde_json::from_str(&product.run("snapshot-info --json {} a")?)?;
    let foreign = format!(
        "$(dirname {}/*/domain)/{}/foreign",
        product.store_dir(),
        info["id"].as_str().unwrap_or_default()
    );
    lab.run(&format!("touch {foreign}"))?;
    product.refuses(
        "snapshot-delete --children {} root",
        &["is done only in part", "give the command again"],
    )?;
    let tree = product.run("snapshot-list --tree {}")?;
    assert_eq!(
        tree,
        "root  (deletion unfinished)\n  a  (deletion unfinished)\n    \
         b  (deletion unfinished)\n  c  (deletion unfinished)\n"
    );
    product.refuses("snapshot-revert {} c", &["its deletion has begun"])?;
    product.run("snapshot-create -n new {}")?;
    guest.destroy()?;
    lab.run(&format!("rm {foreign}"))?;
    let output = product.run("snapshot-delete --children {} root")?;
    ensure!(output.contains("and its 3 descendants deleted"), "{output}");
    assert_eq!(product.names()?, ["new"]);
    for vdev in ["xvda", "xvdb"] {
        assert_eq!(product.internal_snapshots(&guest.disk_path(vdev))?.len(), 1);
    }
    product.run("snapshot-revert {} new")?;
    assert_eq!(guest.get_memory("word")?, "root");
    product.run("snapshot-delete {} new")?;
    product.ensure_nothing_left(&guest, &["xvda", "xvdb"])
}
