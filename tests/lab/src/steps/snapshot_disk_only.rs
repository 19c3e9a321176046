//! Snapshots of the disks alone, of a guest that is off; and one that a file describes, with its memory elsewhere.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::snapshot::{DISKS, State, sums, two_disks};
use crate::coverage::{Cells, Disks, Feature};
use crate::guest::{Guest, GuestSpec};
use crate::host::Lab;
use crate::product::Product;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-snapshot-disk-only-of-a-guest-that-is-off",
        run: off,
        cells: &[Cells::pv(
            &[Feature::DiskOnly, Feature::KeepCurrent],
            &[Disks::Mixed],
        )],
    },
    Step {
        name: "ts-snapshot-described-by-a-file",
        run: described,
        cells: &[Cells::pv(&[Feature::Described], &[Disks::Mixed])],
    },
];

/// Long enough for a domain's creation on a loaded machine.
const LIMIT: Duration = Duration::from_secs(180);

/// Starts the guest on the images that its disks are now.
fn start(lab: &Lab, guest: &Guest<'_>, product: &Product<'_>) -> Result<()> {
    let (dir, store) = (guest.dir(), product.store_dir());
    let output = lab.try_run(
        &format!(
            "mkdir -p {dir}/bin && ln -sf $(command -v xl-ext) {dir}/bin/xl && \
             PATH={dir}/bin:$PATH XL_EXT_STORE={store} xl create {dir}/guest.cfg"
        ),
        LIMIT,
    )?;
    ensure!(output.status == 0, "{}{}", output.stdout, output.stderr);
    guest.wait_ready()
}

/// Goes back as `how` says, which leaves the guest off, and looks what it reads when it is started.
fn revert_and_start(
    lab: &Lab,
    guest: &Guest<'_>,
    product: &Product<'_>,
    how: &str,
) -> Result<[String; 2]> {
    let said = product.run(&format!("snapshot-revert {how}"))?;
    ensure!(said.contains(", off"), "{said}");
    ensure!(!guest.exists(), "there is a domain after the revert {how}");
    product.run("snapshot-verify {}")?;
    start(lab, guest, product)?;
    sums(guest)
}

/// A qcow2 disk, held inside, and a raw one, held externally.
fn off(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("off");
    let raw = format!("{}/xvdb.raw", spec.dir());
    let spec = spec.disks(&[32]).another_disk(&format!(
        "format=raw,vdev=xvdb,access=rw,backendtype=qdisk,target={raw}"
    ));
    spec.prepare(lab)?;
    lab.run(&format!("truncate -s 32M {raw}"))?;
    let guest = Guest::attach(lab, "off");
    let product = Product::of(lab, &guest);
    let config = spec.config_path();

    product.refuses("snapshot-create --disk-only {}", &["there is no domain"])?;
    product.refuses(
        "snapshot-create --disk-only --domain-config /nowhere.cfg",
        &["/nowhere.cfg"],
    )?;
    product.refuses(
        &format!("snapshot-create --disk-only --domain-config {config} another"),
        &["is that of domain 'off'"],
    )?;
    product.run(&format!(
        "snapshot-create -n empty --disk-only --domain-config {config}"
    ))?;
    start(lab, &guest, &product)?;
    let empty = sums(&guest)?;
    let first = State::set(&guest, "first")?;
    product.refuses(
        "snapshot-create --disk-only {}",
        &["is running", "power cut"],
    )?;
    guest.destroy()?;
    product.run("snapshot-create -n first --disk-only --disk xvdb,snapshot=external {}")?;
    assert_eq!(product.names()?, ["empty", "first"]);
    let info = product.run("snapshot-info {} first")?;
    ensure!(
        info.contains("PV, off") && info.contains("internal") && info.contains("external"),
        "{info}"
    );

    start(lab, &guest, &product)?;
    assert_eq!(
        sums(&guest)?,
        *first.sums(),
        "the snapshot changed the disks"
    );
    let live = State::set(&guest, "live")?;
    product.run("snapshot-create -n live {}")?;
    State::change(&guest, "later")?;
    product.refuses("snapshot-revert --running {} first", &["xl create"])?;
    let read = revert_and_start(lab, &guest, &product, "{} first")?;
    assert_eq!(read, *first.sums(), "after the revert of the running guest");
    State::change(&guest, "lost")?;
    product.run("snapshot-revert {} live")?;
    assert_eq!(State::read(&guest)?, live, "with its memory");
    let kept = State::set(&guest, "kept")?;
    let read = revert_and_start(lab, &guest, &product, "--keep-current=kept {} empty")?;
    assert_eq!(read, empty, "after the revert that keeps the present state");
    product.run("snapshot-revert {} kept")?;
    assert_eq!(State::read(&guest)?, kept, "what was kept");
    guest.destroy()?;
    let read = revert_and_start(lab, &guest, &product, "{} empty")?;
    assert_eq!(read, empty, "after the revert of the guest that was off");

    let end = State::set(&guest, "end")?;
    product.run("snapshot-delete {} first")?;
    product.run("snapshot-delete {} live")?;
    product.run("snapshot-delete {} kept")?;
    assert_eq!(
        State::read(&guest)?,
        end,
        "a deletion changed the running guest"
    );
    guest.destroy()?;
    product.run("snapshot-delete {} empty")?;
    product.ensure_nothing_left(&guest, &DISKS[..1])?;
    let left = lab.run(&format!("ls {}", guest.dir()))?;
    ensure!(!left.contains("xl-ext-"), "layers are left: {left}");
    lab.run(&format!("xl create {config}"))?;
    guest.wait_ready()?;
    assert_eq!(
        sums(&guest)?,
        *end.sums(),
        "on the images of the configuration file"
    );
    Ok(())
}

/// Name, disks and a place for the memory come from a file in the syntax of xl.cfg.
fn described(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let (guest, product) = two_disks(lab, "described")?;
    let dir = guest.dir();
    let (memory, file) = (format!("{dir}/its memory"), format!("{dir}/snapshot.cfg"));
    lab.put_text(
        &format!(
            "# as xl.cfg\nname = \"by-file\"; description = 'two words'\nmemory = \"{memory}\"\n\
             disks = [ ',,xvda', # inside\n '{dir}/layer.qcow2,qcow2,xvdb', ]\n"
        ),
        &file,
    )?;
    let before = State::set(&guest, "before")?;
    product.run(&format!("snapshot-create --config {file} {{}}"))?;
    let look = format!("stat -c '%a %h' '{memory}'; ls -A {dir} | grep -c '^.xl-ext-'; true");
    assert_eq!(lab.run(&look)?.trim_end(), "600 1\n0", "the memory image");
    lab.run(&format!("test -e {dir}/layer.qcow2"))?;
    product.refuses(
        &format!(
            "snapshot-create --config {file} -n other --disk xvdb,file={dir}/other.qcow2 {{}}"
        ),
        &["its memory", "already"],
    )?;
    State::change(&guest, "later")?;
    product.run("snapshot-revert {} by-file")?;
    assert_eq!(State::read(&guest)?, before, "after the revert");
    product.run("snapshot-verify {}")?;
    product.run("snapshot-delete {} by-file")?;
    assert_eq!(State::read(&guest)?, before, "after the deletion");
    let left = lab.run(&format!("ls -A {dir}"))?;
    ensure!(
        !left.contains("memory") && !left.contains("layer") && !left.contains("xl-ext-"),
        "something is left: {left}"
    );
    product.ensure_nothing_left(&guest, &DISKS)
}
