//! How memory is kept: pages once, compressed, and xl's own file out of it whenever somebody wants that.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::time::Duration;

use crate::guest::{Guest, GuestSpec};
use crate::host::Lab;
use crate::product::Product;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-memory-is-kept-once",
        run: kept_once,
        cells: &[],
    },
    Step {
        name: "ts-memory-damage-is-told-of-whom-it-hurts",
        run: damage,
        cells: &[],
    },
];

/// An idle guest of the size of which the ratios are promised.
const MEMORY: u32 = 256;

/// What was stored for a snapshot when it was taken, in bytes, and its identity.
fn stored(product: &Product<'_>, name: &str) -> Result<(u64, String)> {
    let info: Value =
        serde_json::from_str(&product.run(&format!("snapshot-info --json {{}} {name}"))?)?;
    let bytes = |key: &str| {
        let value = &info["memory_image"]["packed"][key];
        value
            .as_u64()
            .with_context(|| format!("{name} has no {key}"))
    };
    let id = info["id"].as_str().context("it has no id")?;
    Ok((bytes("image_bytes")? + bytes("pack_bytes")?, id.to_owned()))
}

fn kept_once(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("packed").memory(MEMORY).disks(&[16]);
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    // The file that is restored below belongs to the disk as it is.
    guest.mark_disks(false)?;
    let (life, file) = (guest.life_id()?, format!("{}/stock", guest.dir()));
    lab.run(&format!(
        "xl save {0} {file} && xl restore {file}",
        guest.name()
    ))?;
    guest.wait_ready()?;
    let stock: u64 = lab.run(&format!("stat -c %s {file}"))?.trim().parse()?;
    lab.run(&format!("rm {file}"))?;

    product.run("snapshot-create -n first {}")?;
    std::thread::sleep(Duration::from_secs(10));
    guest.set_memory("word", "second")?;
    product.run("snapshot-create -n second {}")?;
    let (first, _) = stored(&product, "first")?;
    let (second, _) = stored(&product, "second")?;
    println!("      xl save: {stock} bytes; first snapshot: {first}; second: {second}");
    ensure!(first * 10 < stock, "the first takes {first} bytes");
    ensure!(second * 10 < first, "the second takes {second} bytes");
    let taken: u64 = lab
        .run(&format!(
            "find {} -type f \\( -path '*/packs/*' -o -name memory \\) -printf '%s\\n' | awk '{{ n += $1 }} END {{ print n }}'",
            product.store_dir()
        ))?
        .trim()
        .parse()?;
    assert_eq!(taken, first + second, "what is told is what is there");

    // Without the first, the second has all that it needs; and what comes out of it is for stock xl.
    product.run("snapshot-delete {} first")?;
    product.run("snapshot-verify {}")?;
    product.run(&format!("snapshot-export-memory {{}} second {file}"))?;
    let exported: u64 = lab.run(&format!("stat -c %s {file}"))?.trim().parse()?;
    ensure!(exported.abs_diff(stock) * 50 < stock, "{exported} bytes");
    guest.set_memory("word", "later")?;
    guest.destroy()?;
    lab.run(&format!("xl restore {file}"))?;
    guest.wait_ready()?;
    assert_eq!(guest.life_id()?, life);
    assert_eq!(guest.get_memory("word")?, "second");
    guest.wait_counter_beyond(guest.counter()?)?;
    guest.set_memory("word", "later")?;

    product.run("snapshot-revert {} second")?;
    assert_eq!(guest.life_id()?, life);
    assert_eq!(guest.get_memory("word")?, "second");
    product.run("snapshot-delete {} second")?;
    product.ensure_nothing_left(&guest, &["xvda"])
}

/// Changes a byte in the first block of the pack that came with a snapshot. Doing it again changes it back.
fn flip(lab: &Lab, product: &Product<'_>, guest: &Guest<'_>, id: &str) -> Result<()> {
    let pack = format!("{}/{}/packs/{id}", product.store_dir(), guest.name());
    lab.run(&format!(
        "b=$(od -An -tu1 -j 1000 -N 1 {pack}) && printf \"\\\\$(printf %03o $((b ^ 1)))\" | \
         dd of={pack} bs=1 seek=1000 conv=notrunc status=none"
    ))
    .map(drop)
}

fn damage(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("damaged").disks(&[16]))?;
    let product = Product::of(lab, &guest);
    for name in ["first", "second"] {
        guest.set_memory("word", name)?;
        product.run(&format!("snapshot-create -n {name} {{}}"))?;
    }
    guest.set_memory("word", "present")?;
    let found = |command: &str| -> Result<Vec<String>> {
        let output = product.try_run(&format!("{command} --json {{}}"))?;
        let found: Value = serde_json::from_str(&output.stdout)?;
        let findings = found.get("findings").unwrap_or(&found).as_array().cloned();
        let mut names: Vec<_> = findings
            .unwrap_or_default()
            .iter()
            .filter_map(|finding| finding["snapshot"].as_str().map(str::to_owned))
            .collect();
        names.dedup();
        Ok(names)
    };
    let (_, first) = stored(&product, "first")?;
    let (_, second) = stored(&product, "second")?;

    flip(lab, &product, &guest, &second)?;
    for command in ["snapshot-check", "snapshot-verify"] {
        assert_eq!(found(command)?, ["second"], "{command}");
    }
    product.refuses("snapshot-revert {} second", &["block 0", "checksum"])?;
    assert_eq!(guest.get_memory("word")?, "present");
    product.run("snapshot-revert {} first")?;
    assert_eq!(guest.get_memory("word")?, "first");

    flip(lab, &product, &guest, &second)?;
    product.run("snapshot-verify {}")?;
    product.run("snapshot-revert {} second")?;
    assert_eq!(guest.get_memory("word")?, "second");

    // The second has most of its pages from the first's.
    flip(lab, &product, &guest, &first)?;
    for command in ["snapshot-check", "snapshot-verify"] {
        assert_eq!(found(command)?, ["first", "second"], "{command}");
    }
    // What is damaged can be deleted, and what is taken now does not stand on it.
    product.run("snapshot-create -n third {}")?;
    product.run("snapshot-delete {} first")?;
    product.run("snapshot-delete {} second")?;
    product.run("snapshot-verify {}")?;
    product.run("snapshot-check {}")?;
    product.run("snapshot-revert {} third")?;
    assert_eq!(guest.get_memory("word")?, "second");
    product.run("snapshot-delete {} third")?;
    product.ensure_nothing_left(&guest, &["xvda"])
}
