//! Disks that get what they lack from the images below them while their guest goes on.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};

use super::snapshot::sums;
use super::snapshot_external::active;
use super::template_disk::{Pulled, two_on_templates};
use crate::guest::{Guest, GuestSpec, Kind};
use crate::host::Lab;
use crate::product::Product;
use crate::random::Random;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-block-pull-two-disks-while-the-guest-writes",
        run: two_disks,
        cells: &[],
    },
    Step {
        name: "ts-block-pull-hvm-two-disks-while-the-guest-writes",
        run: two_disks_of_hvm,
        cells: &[],
    },
    Step {
        name: "ts-block-pull-by-increments",
        run: increments,
        cells: &[],
    },
    Step {
        name: "ts-block-pull-beside-snapshots",
        run: beside_snapshots,
        cells: &[],
    },
    Step {
        name: "ts-block-pull-refusals",
        run: refusals,
        cells: &[],
    },
    Step {
        name: "ts-block-pull-full-disk-and-damaged-base",
        run: troubles,
        cells: &[],
    },
    Step {
        name: "ts-block-pull-aborted-at-random",
        run: aborts,
        cells: &[],
    },
];

/// Long enough for a pull on a loaded machine.
pub(super) const LIMIT: Duration = Duration::from_secs(300);

/// The files that the domain's QEMU has open.
fn open_files(lab: &Lab, guest: &Guest<'_>) -> Result<String> {
    let domid = guest.domid()?;
    lab.run(&format!(
        "for p in $(pgrep -f 'xen-domid {domid} '); do readlink /proc/$p/fd/*; done; true"
    ))
}

pub(super) fn info(product: &Product<'_>, disk: &str) -> Result<Value> {
    let text = product.run(&format!("block-pull-info --json {{}} {disk}"))?;
    let infos: Value = serde_json::from_str(&text)?;
    Ok(infos[0].clone())
}

pub(super) fn state(product: &Product<'_>, disk: &str) -> Result<String> {
    let info = info(product, disk)?;
    Ok(info["state"].as_str().unwrap_or("none").to_owned())
}

fn two_disks(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    two_disks_of(context.lab(), GuestSpec::pv("pull-two"))
}

fn two_disks_of_hvm(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    context.is_expensive()?;
    two_disks_of(context.lab(), GuestSpec::pv("pull-hvm").kind(Kind::Hvm))
}

fn two_disks_of(lab: &Lab, spec: GuestSpec) -> Result<()> {
    let (spec, disks) = two_on_templates(lab, spec.line("on_reboot=\"restart\""), 48)?;
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    let counter = guest.counter()?;
    let mut random = Random::new(20_26);
    disks
        .iter()
        .try_for_each(|disk| disk.write(&guest, &mut random))?;
    let plan = product.run("block-pull --plan {} xvda")?;
    ensure!(
        plan.contains("what xvda") && plan.contains("template.raw stays"),
        "{plan}"
    );
    // So slowly that the guest, which is slow too, writes meanwhile; then as fast as can be.
    product.run("block-pull --bandwidth 128K {} xvda")?;
    product.run(&format!(
        "block-pull --bandwidth 128K --release-base --json {{}} {}",
        disks[1].image()
    ))?;
    let mut seen = Vec::new();
    for _ in 0..3 {
        for (disk, vdev) in disks.iter().zip(["xvda", "xvdb"]) {
            disk.write(&guest, &mut random)?;
            let info = info(&product, vdev)?;
            assert_eq!(info["state"], "running", "{info}");
            seen.push(info["cur"].as_u64().context("no cur")?);
        }
    }
    for vdev in ["xvda", "xvdb"] {
        product.run(&format!("block-pull-set-speed {{}} {vdev} 4M"))?;
    }
    for disk in &disks {
        disk.write(&guest, &mut random)?;
    }
    println!("positions while the guest wrote: {seen:?}");
    for (disk, vdev) in disks.iter().zip(["xvda", "xvdb"]) {
        product.run(&format!("block-pull-info --watch {{}} {vdev}"))?;
        let info = info(&product, vdev)?;
        assert_eq!(
            (&info["state"], &info["cur"]),
            (&"completed".into(), &info["end"])
        );
        let node = format!("/libxl/{}/ext/pull/{vdev}", guest.domid()?);
        let told = lab.run(&format!("xenstore-read {node}"))?;
        ensure!(told.trim().ends_with("completed"), "{told}");
        guest.mark_disks(false)?;
        disk.ensure_alone()?;
        guest.mark_disks(true)?;
        let open = open_files(lab, &guest)?;
        ensure!(open.contains(&disk.image()), "{open}");
        ensure!(!open.contains(&disk.template()), "it is open still: {open}");
        // Nobody reads it any more; the other one's was to be removed.
        let is_there = if vdev == "xvda" { "rm" } else { "test ! -e" };
        lab.run(&format!("{is_there} {}", disk.template()))?;
    }
    let again = product.try_run("block-pull {} xvda")?;
    ensure!(
        again.status == 0 && again.stderr.contains("nothing to pull"),
        "{}",
        again.stderr
    );
    guest.wait_counter_beyond(counter)?;
    super::snapshot::reboot(&guest)?;
    guest.mark_disks(false)?;
    disks.iter().try_for_each(Pulled::ensure_alone)
}

/// The position of each increment is where it should be, the guest goes on between them, and the last one leaves no image
/// below.
fn increments(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("pull-steps");
    let disk = Pulled::make(lab, &spec.dir(), "xvda", 40)?;
    let guest = Guest::create(lab, &spec.another_disk(&disk.entry()))?;
    let product = Product::of(lab, &guest);
    let mut random = Random::new(7);
    let mut positions = vec![0];
    let step = |product: &Product<'_>| -> Result<Value> {
        let text = product.run("block-pull --step 8M --json {} xvda")?;
        let said: Value = serde_json::from_str(&text)?;
        Ok(said["pull"].clone())
    };
    loop {
        let info = step(&product)?;
        positions.push(info["cur"].as_u64().context("no cur")?);
        if info["state"] == "completed" {
            break;
        }
        assert_eq!(info["state"], "paused");
        disk.write(&guest, &mut random)?;
        assert_eq!(state(&product, "xvda")?, "paused", "it stands still");
        let now = self::info(&product, "xvda")?["cur"].as_u64();
        assert_eq!(now.as_ref(), positions.last(), "it stands still");
        product.refuses("snapshot-create -n x {}", &["block-pull-abort"])?;
    }
    let steps: Vec<_> = positions.windows(2).map(|two| two[1] - two[0]).collect();
    println!("increments of 8 MiB: {steps:?}");
    ensure!(steps.len() >= 3, "{steps:?}");
    // Two chunks later at most, however slow the machine is, and by what the guest had written and need not be copied:
    // 1 MiB and a cluster each time.
    for (written, step) in (0_u64..).zip(&steps[..steps.len() - 1]) {
        let exact = 8 << 20..=(9 << 20) + written * (2 << 20);
        ensure!(exact.contains(step), "{steps:?}");
    }
    guest.mark_disks(false)?;
    disk.ensure_alone()?;
    let after = product.try_run("block-pull --step 8M {} xvda")?;
    ensure!(
        after.status == 0 && after.stderr.contains("nothing to pull"),
        "{}",
        after.stderr
    );
    Ok(())
}

/// Snapshots before, after and, in vain, in the middle; the ways back to them, and their end.
fn beside_snapshots(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("pull-snap").disks(&[32, 32]))?;
    let product = Product::of(lab, &guest);
    let write = |word: &str| -> Result<[String; 2]> {
        guest.write("xvda", 4, 8, word)?;
        guest.write("xvdb", 4, 8, word)?;
        sums(&guest)
    };
    // What no layer above holds: all else is written anew in each.
    for vdev in ["xvda", "xvdb"] {
        guest.write(vdev, 16, 8, "deep")?;
    }
    let before = write("before")?;
    product.run("snapshot-create -n before --external {}")?;
    let between = write("between")?;
    product.run("snapshot-create -n between --external {}")?;
    let last = write("last")?;
    let disks = active(lab, &guest)?;
    let base = product.run("block-pull --base before --plan {} xvda")?;
    ensure!(base.contains("snapshot 'between' needs it"), "{base}");
    product.run("block-pull --bandwidth 128K {} xvda")?;
    product.refuses("snapshot-create -n x {}", &["is being pulled"])?;
    product.refuses("snapshot-revert {} before", &["is being pulled"])?;
    product.refuses("snapshot-delete {} before", &["is being pulled"])?;
    product.run("block-pull-set-speed {} xvda 0")?;
    product.run("block-pull-info --watch {} xvda")?;
    assert_eq!(state(&product, "xvda")?, "completed");
    assert_eq!(sums(&guest)?, last);
    product.run("block-pull --base before --wait {} xvdb")?;
    let below = lab.run(&format!("qemu-img info -U -f qcow2 {}", disks[1]))?;
    ensure!(below.contains(&guest.disk_path("xvdb")), "{below}");
    product.run("snapshot-verify {}")?;
    product.run("snapshot-create -n after {}")?;
    let now = write("now")?;
    product.run("snapshot-revert {} before")?;
    assert_eq!(sums(&guest)?, before);
    product.run("snapshot-revert {} between")?;
    assert_eq!(sums(&guest)?, between);
    product.run("snapshot-revert {} after")?;
    assert_eq!(sums(&guest)?, last);
    ensure!(now != last, "the guest wrote");
    product.run("snapshot-verify {}")?;
    // A snapshot inside the image needs what is below it.
    product.run("snapshot-create -n inside {}")?;
    product.refuses("block-pull {} xvdb", &["'inside'", "delete them first"])?;
    product.run("snapshot-delete --children {} before")?;
    assert_eq!(product.names()?, Vec::<String>::new());
    assert_eq!(sums(&guest)?, last);
    product.run("snapshot-check {}")?;
    Ok(())
}

fn refusals(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("pull-not").disks(&[16]);
    let raw = format!("{}/raw", spec.dir());
    lab.run(&format!("mkdir -p {} && truncate -s 16M {raw}", spec.dir()))?;
    let spec = spec
        .another_disk(&format!(
            "format=raw,vdev=xvdb,access=rw,backendtype=qdisk,target={raw}"
        ))
        .another_disk(&format!(
            "format=raw,vdev=xvdc,access=ro,backendtype=qdisk,target={raw}.ro"
        ));
    lab.run(&format!("truncate -s 4M {raw}.ro"))?;
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    let nothing = product.try_run("block-pull {} xvda")?;
    ensure!(
        nothing.status == 0 && nothing.stderr.contains("stands on nothing"),
        "{}",
        nothing.stderr
    );
    product.refuses(
        "block-pull {} xvdz",
        &["has no disk xvdz", "it has xvda, xvdb, xvdc"],
    )?;
    product.refuses("block-pull {} xvdb", &["is raw"])?;
    product.refuses("block-pull {} xvdc", &["read-only"])?;
    product.refuses("block-pull --base /root/x {} xvda", &["does not stand on"])?;
    product.refuses("block-pull-abort {} xvda", &["nothing was pulled"])?;
    product.refuses("block-pull-set-speed {} xvda 1M", &["nobody pulls"])?;
    assert_eq!(product.run("block-pull-info {}")?, "no pull\n");
    product.refuses("block-pull-info nobody", &["no domain 'nobody'"])?;
    Ok(())
}

/// A file system that becomes full, with both choices; and an image below that cannot be read.
fn troubles(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    let lab = context.lab();
    let mount = "/run/lab-small-images";
    lab.run(&format!(
        "mkdir -p {mount} && mount -t tmpfs -o size=70m,mode=700 images {mount}"
    ))?;
    let result = troubles_in(lab, mount);
    lab.run(&format!(
        "xl destroy pull-trouble 2>/dev/null; umount -l {mount}"
    ))?;
    result
}

fn troubles_in(lab: &Lab, mount: &str) -> Result<()> {
    // 32 MiB for the template, as much for what is expected, and 6 for the image.
    let disk = Pulled::make(lab, mount, "xvda", 32)?;
    let spec = GuestSpec::pv("pull-trouble");
    let damaged = Pulled::make(lab, &spec.dir(), "xvdb", 32)?;
    let base = format!("{}/base.qcow2", spec.dir());
    lab.run(&format!(
        "qemu-img convert -f raw -O qcow2 {} {base} && qemu-img create -q -f qcow2 -b {base} -F qcow2 {}",
        damaged.template(),
        damaged.image()
    ))?;
    let entry = lab.run(&format!(
        "l1=$(od -An -tu8 --endian=big -j40 -N8 {base} | tr -d ' '); \
         l2=$(od -An -tx8 --endian=big -j$l1 -N8 {base} | tr -d ' '); \
         echo $((0x${{l2#8}} + 8 * 320))"
    ))?;
    let entry = entry.trim();
    // A compressed cluster of what cannot be decompressed: reading it fails, and nothing else does.
    lab.run(&format!(
        "dd if={base} of={base}.entry bs=1 skip={entry} count=8 status=none && \
         printf '\\100\\0\\0\\0\\0\\1\\0\\0' | dd of={base} bs=1 seek={entry} conv=notrunc status=none"
    ))?;
    let spec = spec
        .another_disk(&disk.entry())
        .another_disk(&damaged.entry());
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    product.refuses(
        "block-pull --wait {} xvda",
        &["failed", "No space left on device", "stays"],
    )?;
    let failed = info(&product, "xvda")?;
    assert_eq!(failed["state"], "failed", "{failed}");
    disk.ensure_on_template()?;
    product.refuses(
        "block-pull --wait --on-error pause {} xvda",
        &["stands still", "No space left on device"],
    )?;
    assert_eq!(state(&product, "xvda")?, "stalled");
    lab.run(&format!("mount -o remount,size=140m {mount}"))?;
    product.run("block-pull --wait --on-error pause {} xvda")?;
    assert_eq!(state(&product, "xvda")?, "completed");
    guest.mark_disks(false)?;
    disk.ensure_alone()?;
    // 20 MiB from its beginning there is a cluster of the base that nobody can read.
    product.refuses(
        "block-pull --wait {} xvdb",
        &["failed", "Input/output error"],
    )?;
    let failed = info(&product, "xvdb")?;
    ensure!(
        failed["reason"]
            .as_str()
            .is_some_and(|why| why.contains("Input/output")),
        "{failed}"
    );
    let counter = guest.counter()?;
    guest.wait_counter_beyond(counter)?;
    guest.destroy()?;
    lab.run(&format!(
        "dd if={base}.entry of={base} bs=1 seek={entry} conv=notrunc status=none && qemu-img check -q -f qcow2 {base}"
    ))?;
    lab.run(&format!("xl create {}", spec.config_path()))?;
    guest.wait_ready()?;
    product.run("block-pull --wait {} xvdb")?;
    guest.mark_disks(false)?;
    damaged.ensure_alone()
}

/// Disks that come and go: each is pulled, aborted at some moment, and pulled to its end.
fn aborts(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let rounds = if context.is_expensive().is_ok() {
        50
    } else {
        3
    };
    let lab = context.lab();
    let spec = GuestSpec::pv("pull-abort").disks(&[16]);
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    let name = guest.name();
    let mut random = Random::new(50);
    let mut ends = Vec::new();
    for round in 0..rounds {
        let disk = Pulled::make(lab, &guest.dir(), "xvdc", 16)?;
        lab.run(&format!("xl block-attach {name} {}", disk.entry()))?;
        guest.wait_disk("xvdc")?;
        product.run("block-pull --bandwidth 256K {} xvdc")?;
        let end = Instant::now() + Duration::from_millis(random.below(15_000));
        disk.write(&guest, &mut random)?;
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        let seen = info(&product, "xvdc")?["cur"].as_u64();
        let text = product.run("block-pull-abort --json {} xvdc")?;
        let aborted: Value = serde_json::from_str(&text)?;
        let cur = aborted["cur"].as_u64();
        ensure!(
            cur.is_some() && cur >= seen,
            "it was at {seen:?}: {aborted}"
        );
        ends.push(format!("{} at {}", aborted["state"], aborted["cur"]));
        if aborted["state"] == "aborted" {
            disk.ensure_on_template()?;
            product.run("block-pull --wait {} xvdc")?;
        }
        assert_eq!(state(&product, "xvdc")?, "completed", "round {round}");
        disk.ensure_alone()?;
        lab.run_within(&format!("xl block-detach {name} xvdc"), LIMIT)?;
        guest.wait_no_disk("xvdc")?;
    }
    println!("{rounds} aborts: {}", ends.join(", "));
    ensure!(
        ends.iter().any(|end| end.contains("aborted")),
        "none came in time: {ends:?}"
    );
    Ok(())
}
