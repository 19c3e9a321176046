//! Snapshots that are refused: with a reason, exit status 1, and nothing changed.

use anyhow::{Result, ensure};
use std::time::Duration;

use crate::coverage::{Cells, Disks, Feature};
use crate::guest::{Guest, GuestSpec};
use crate::product::Product;
use crate::step::{Context, Step};

const INTERNAL: &[Disks] = &[Disks::Internal];

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-snapshot-refuses-a-taken-name",
        run: taken_name,
        cells: &[],
    },
    Step {
        name: "ts-snapshot-refuses-what-is-no-domain",
        run: no_domain,
        cells: &[],
    },
    Step {
        name: "ts-snapshot-refuses-a-dying-domain",
        run: dying_domain,
        cells: &[],
    },
    Step {
        name: "ts-snapshot-refuses-a-raw-disk-internally",
        run: raw_disk,
        cells: &[],
    },
    Step {
        name: "ts-snapshot-leaves-out-a-cdrom",
        run: cdrom,
        cells: &[Cells::pv(&[Feature::Cdrom], INTERNAL)],
    },
    Step {
        name: "ts-snapshot-refuses-damaged-memory",
        run: damaged_memory,
        cells: &[Cells::pv(&[Feature::Verify], INTERNAL)],
    },
];

fn taken_name(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("taken").disks(&[16]))?;
    let product = Product::of(lab, &guest);
    product.run("snapshot-create -n one {}")?;
    product.refuses(
        "snapshot-create -n one {}",
        &["already has a snapshot 'one'", "-n"],
    )?;
    assert_eq!(product.names()?, ["one"]);
    product.refuses(
        "snapshot-revert {} two",
        &["has no snapshot 'two'", "'one'"],
    )?;
    product.refuses("snapshot-delete {} two", &["has no snapshot 'two'"])?;
    // Debian's hypervisor is built without shadow paging.
    if !lab.run("xl info | grep virt_caps")?.contains("shadow") {
        product.refuses(
            "snapshot-create -n three --live {}",
            &["is of type PV", "shadow"],
        )?;
    }
    let usage = product.try_run("snapshot-create -n ../x {}")?;
    assert_eq!(usage.status, 2, "{}", usage.stderr);
    guest.wait_counter_beyond(guest.counter()?)?;
    Ok(())
}

fn no_domain(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let limit = Duration::from_secs(60);
    for (domain, words) in [
        ("nobody", "no domain 'nobody'"),
        ("4711", "no domain '4711'"),
        ("0", "domain 0 is the host"),
        ("Domain-0", "domain 0 is the host"),
    ] {
        for command in ["snapshot-create", "snapshot-list"] {
            let output = lab.try_run(&format!("xl-ext {command} {domain}"), limit)?;
            assert_eq!(output.status, 1, "{command} {domain}: {}", output.stderr);
            ensure!(output.stderr.contains(words), "{}", output.stderr);
        }
    }
    let left = lab.run("find /var/lib/xen/libxl-ext 2>/dev/null || true")?;
    ensure!(left.trim().is_empty(), "a refusal left {left}");
    Ok(())
}

/// A domain whose QEMU holds on to its memory after the end cannot be freed: it stays, dying.
fn dying_domain(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("dying").disks(&[16]))?;
    let product = Product::of(lab, &guest);
    let domid = guest.domid()?;
    let limit = Duration::from_secs(120);
    lab.run(&format!(
        "pgrep -f -- '[-]xen-domid {domid} ' > {}/pid && kill -STOP $(cat {0}/pid)",
        guest.dir()
    ))?;
    lab.try_run(&format!("timeout 60 xl destroy {domid}"), limit)?;
    let state = lab.run("xl list")?;
    let refused = product.refuses(
        &format!("snapshot-create -n x {domid}"),
        &["is dying", "wait until"],
    );
    lab.run(&format!("kill -CONT $(cat {}/pid)", guest.dir()))?;
    guest.wait_gone()?;
    refused.map_err(|error| error.context(format!("xl list showed\n{state}")))
}

fn raw_disk(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("rawdisk").disks(&[16]))?;
    let product = Product::of(lab, &guest);
    let raw = format!("{}/disk.raw", guest.dir());
    lab.run(&format!(
        "truncate -s 16M {raw} && xl block-attach {} format=raw,vdev=xvdb,access=rw,backendtype=qdisk,target={raw}",
        guest.name()
    ))?;
    product.refuses(
        "snapshot-create -n x --disk xvdb,snapshot=internal {}",
        &["xvdb", &raw, "is raw", "externally"],
    )?;
    product.refuses(
        "snapshot-create -n x --disk xvdz {}",
        &["has no disk xvdz", "xvda"],
    )?;
    let (disk, stranger) = (guest.disk_path("xvda"), format!("{}/mine", guest.dir()));
    lab.run(&format!("echo mine > {stranger}"))?;
    for (taken, words) in [(&disk, "is there already"), (&stranger, "are as they were")] {
        product.refuses(
            &format!("snapshot-create -n x --disk xvdb,file={taken} {{}}"),
            &["is there already", words],
        )?;
        lab.run(&format!("test -s {taken}"))?;
    }
    product.ensure_nothing_left(&guest, &["xvda"])?;
    guest.wait_counter_beyond(guest.counter()?)?;
    Ok(())
}

/// A CD-ROM drive: QEMU 7.2 does not attach other read-only qdisks to a PV guest at all ("Block node is
/// read-only" in its log, and the guest's kernel fails over it).
fn cdrom(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let image = "/run/lab-cdrom.iso";
    let spec = GuestSpec::pv("readonly")
        .disks(&[16])
        .another_disk(&format!(
            "format=raw,vdev=xvdb,devtype=cdrom,backendtype=qdisk,target={image}"
        ));
    lab.run(&format!("truncate -s 4M {image}"))?;
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    let output = product.try_run("snapshot-create -n x {}")?;
    assert_eq!(output.status, 0, "{}", output.stderr);
    ensure!(
        output.stderr.contains("xvdb is read-only and is left out"),
        "{}",
        output.stderr
    );
    let life = guest.life_id()?;
    product.run("snapshot-revert {} x")?;
    assert_eq!(guest.life_id()?, life);
    Ok(())
}

fn damaged_memory(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("damaged").disks(&[16]))?;
    let product = Product::of(lab, &guest);
    product.run("snapshot-create -n s {}")?;
    let (life, domid) = (guest.life_id()?, guest.domid()?);
    let flip = format!(
        "f=$(find {} -path '*/packs/*'); printf damage | dd of=$f bs=1 seek=100000 conv=notrunc status=none",
        product.store_dir()
    );
    product.run("snapshot-verify {}")?;
    lab.run(&flip)?;
    let found = product.try_run("snapshot-verify {}")?;
    assert_eq!(found.status, 1);
    ensure!(
        found.stdout.contains("checksum does not match"),
        "{}",
        found.stdout
    );
    product.refuses("snapshot-revert {} s", &["checksum", "are as they were"])?;
    assert_eq!((guest.life_id()?, guest.domid()?), (life, domid));
    guest.wait_counter_beyond(guest.counter()?)?;
    lab.run(&format!(
        "truncate -s 100 $(find {} -name memory)",
        product.store_dir()
    ))?;
    product.refuses("snapshot-revert {} s", &["100 bytes instead of"])?;
    product.run("snapshot-delete {} s")?;
    product.ensure_nothing_left(&guest, &["xvda"])
}
