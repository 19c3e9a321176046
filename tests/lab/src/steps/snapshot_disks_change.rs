//! The ways back of a guest whose disks are not those of the snapshot any more, of one that has crashed, and disks that
//! have no snapshots.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::guest::{Guest, GuestSpec, image_sum};
use crate::host::Lab;
use crate::product::Product;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-snapshot-revert-after-disks-came-and-went",
        run: disks_came_and_went,
        cells: &[],
    },
    Step {
        name: "ts-snapshot-revert-of-a-guest-that-crashed",
        run: crashed,
        cells: &[],
    },
    Step {
        name: "ts-snapshot-leaves-out-a-block-device",
        run: block_device,
        cells: &[],
    },
];

/// For `xl` and what follows from it, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A disk that was attached since is no part of the way back: nobody writes to its image, or removes it. One that was
/// detached since comes back as it was.
fn disks_came_and_went(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("changing").disks(&[16]))?;
    let product = Product::of(lab, &guest);
    let (name, added) = (guest.name(), guest.disk_path("xvdb"));
    let attach = format!(
        "xl block-attach {name} format=qcow2,vdev=xvdb,access=rw,backendtype=qdisk,target={added}"
    );
    guest.write("xvda", 1, 2, "one")?;
    let one = guest.sum("xvda", 1, 2)?;
    product.run("snapshot-create -n one {}")?;

    lab.run(&format!(
        "qemu-img create -q -f qcow2 {added} 16M && {attach}"
    ))?;
    wait_for_disks(&guest, 2)?;
    guest.write("xvda", 1, 2, "two")?;
    guest.write("xvdb", 1, 2, "added")?;
    let two = guest.sums(["xvda", "xvdb"], 1, 2)?;
    product.run("snapshot-create -n two {}")?;
    guest.write("xvdb", 1, 2, "later")?;
    let later = guest.sum("xvdb", 1, 2)?;

    let output = product.try_run("snapshot-revert {} one")?;
    assert_eq!(output.status, 0, "{}", output.stderr);
    ensure!(
        output.stderr.contains("xvdb") && output.stderr.contains("was attached since"),
        "{}",
        output.stderr
    );
    wait_for_disks(&guest, 1)?;
    assert_eq!(guest.sum("xvda", 1, 2)?, one);
    assert_eq!(image_sum(lab, &added, 1, 2)?, later, "an image of nobody's");

    // Of the two disks of this snapshot the guest has one.
    product.run("snapshot-revert {} two")?;
    wait_for_disks(&guest, 2)?;
    assert_eq!(guest.sums(["xvda", "xvdb"], 1, 2)?, two);
    lab.run(&format!("xl block-detach {name} xvdb"))?;
    wait_for_disks(&guest, 1)?;
    guest.write("xvda", 1, 2, "three")?;
    product.run("snapshot-revert {} two")?;
    assert_eq!(guest.sums(["xvda", "xvdb"], 1, 2)?, two);
    product.run("snapshot-delete --children {} one")?;
    product.ensure_nothing_left(&guest, &["xvda", "xvdb"])
}

/// What the guest was at the crash nobody wants back, so it is not saved; the disks are.
fn crashed(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("crashing")
        .disks(&[16])
        .line("on_crash=\"preserve\"");
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    guest.set_memory("when", "before")?;
    guest.write("xvda", 1, 2, "before")?;
    let (life, before) = (guest.life_id()?, guest.sum("xvda", 1, 2)?);
    product.run("snapshot-create -n fine {}")?;
    guest.set_memory("when", "after")?;
    guest.write("xvda", 1, 2, "after")?;
    guest.ask("crash")?;
    lab.run_within(
        &format!(
            "until xl list {} | grep -q -e 'sc-'; do sleep 1; done; xl list",
            guest.name()
        ),
        LIMIT,
    )?;
    product.refuses("snapshot-create -n broken {}", &["crashed"])?;
    product.run("snapshot-revert {} fine")?;
    assert_eq!(guest.life_id()?, life);
    assert_eq!(guest.get_memory("when")?, "before");
    assert_eq!(guest.sum("xvda", 1, 2)?, before);
    guest.wait_counter_beyond(guest.counter()?)?;
    Ok(())
}

/// A disk of the phy backend is refused by its name and that of the backend, and can be left out.
fn block_device(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let device = LoopDevice::of(lab, "/run/lab-block-device")?;
    let spec = GuestSpec::pv("device").disks(&[16]).another_disk(&format!(
        "format=raw,vdev=xvdb,access=rw,backendtype=phy,target={}",
        device.path
    ));
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    product.refuses(
        "snapshot-create -n x {}",
        &["xvdb", "phy", "--disk xvdb,snapshot=no"],
    )?;
    guest.write("xvda", 1, 2, "kept")?;
    guest.write("xvdb", 1, 2, "kept")?;
    let kept = guest.sum("xvda", 1, 2)?;
    product.run("snapshot-create -n x --disk xvdb,snapshot=no {}")?;
    guest.write("xvda", 1, 2, "later")?;
    guest.write("xvdb", 1, 2, "later")?;
    let later = guest.sum("xvdb", 1, 2)?;
    product.run("snapshot-revert {} x")?;
    assert_eq!(guest.sum("xvda", 1, 2)?, kept);
    assert_eq!(guest.sum("xvdb", 1, 2)?, later, "it was left out");
    product.run("snapshot-delete {} x")?;
    product.ensure_nothing_left(&guest, &["xvda"])
}

/// A block device that is a file, for as long as this is there.
struct LoopDevice<'lab> {
    lab: &'lab Lab,
    path: String,
}

impl<'lab> LoopDevice<'lab> {
    fn of(lab: &'lab Lab, file: &str) -> Result<Self> {
        let path = lab.run(&format!(
            "truncate -s 16M {file} && losetup --find --show {file}"
        ))?;
        Ok(Self {
            lab,
            path: path.trim().to_owned(),
        })
    }
}

impl Drop for LoopDevice<'_> {
    fn drop(&mut self) {
        // While the guest has it open, it goes when the guest does.
        let _ = self.lab.run(&format!("losetup --detach {}", self.path));
    }
}

/// Until the guest has so many disks.
fn wait_for_disks(guest: &Guest<'_>, count: usize) -> Result<()> {
    let until = std::time::Instant::now() + LIMIT;
    loop {
        let disks = guest.ask("disks")?;
        if disks.split_whitespace().count() == count {
            return Ok(());
        }
        ensure!(
            std::time::Instant::now() < until,
            "the guest has not {count} disks, but {disks}"
        );
        std::thread::sleep(Duration::from_secs(1));
    }
}
