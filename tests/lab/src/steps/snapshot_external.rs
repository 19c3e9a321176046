//! Snapshots for which the guest goes on in layers: raw disks, `--external`, both kinds mixed; and live ones.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::snapshot::{State, reboot, sums};
use super::snapshot_life;
use crate::coverage::{Cells, Disks, Feature};
use crate::guest::{Guest, GuestSpec, Kind};
use crate::host::Lab;
use crate::product::Product;
use crate::step::{Context, Step};

/// Both disks of [`with_raw_disk`], in snapshots by `--external`.
const LAYERS: &[Disks] = &[Disks::External, Disks::Raw];

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-external-is-used-by-reboot-save-and-revert",
        run: used_by_everybody,
        cells: &[Cells::pv(
            &[
                Feature::Create,
                Feature::Reboot,
                Feature::SaveRestore,
                Feature::Revert,
                Feature::Verify,
                Feature::CreateAsXl,
            ],
            LAYERS,
        )],
    },
    Step {
        name: "ts-external-and-internal-in-one-tree",
        run: mixed_tree,
        cells: &[Cells::pv(
            &[Feature::Create, Feature::Revert, Feature::Tree],
            &[Disks::External, Disks::Mixed],
        )],
    },
    Step {
        name: "ts-external-deletes-merge-while-the-guest-runs",
        run: deletes_merge,
        cells: &[Cells::pv(
            &[
                Feature::Delete,
                Feature::DeleteOff,
                Feature::RevertOff,
                Feature::Reboot,
            ],
            LAYERS,
        )],
    },
];

/// Long enough for a domain's creation on a loaded machine.
const LIMIT: Duration = Duration::from_secs(180);

/// A guest with a qcow2 disk, xvda, and a raw one, xvdb.
fn with_raw_disk<'lab>(lab: &'lab Lab, name: &str) -> Result<(Guest<'lab>, Product<'lab>)> {
    let spec = snapshot_life::with_raw_disk(lab, name, Kind::Pv)?;
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    Ok((guest, product))
}

/// The images that libxl, xenstore and QEMU believe the disks to be, but for cdroms; they must agree.
pub(super) fn active(lab: &Lab, guest: &Guest<'_>) -> Result<Vec<String>> {
    let domid = guest.domid()?;
    let text = lab.run(&format!("xl list -l {domid}"))?;
    let list: serde_json::Value = serde_json::from_str(&text)?;
    let disks = list[0]["config"]["disks"]
        .as_array()
        .context("no disks in xl list -l")?;
    let mut images = Vec::new();
    let writable = |disk: &&serde_json::Value| disk["is_cdrom"].as_u64() != Some(1);
    for disk in disks.iter().filter(writable) {
        let path = disk["pdev_path"].as_str().unwrap_or_default();
        // libxl's own name for it in xenstore.
        let format = match disk["format"].as_str() {
            Some("raw") => "aio",
            format => format.unwrap_or_default(),
        };
        let vdev = disk["vdev"].as_str().unwrap_or_default();
        let params = lab.run(&format!(
            "for n in $(xenstore-list /libxl/{domid}/device/vbd); do \
             d=/libxl/{domid}/device/vbd/$n; [ \"$(xenstore-read $d/dev)\" = {vdev} ] || continue; \
             xenstore-read $d/params; xenstore-read $(xenstore-read $d/backend)/params; done"
        ))?;
        let wanted = format!("{format}:{path}");
        assert_eq!(
            params.lines().collect::<Vec<_>>(),
            [&wanted, &wanted],
            "of {vdev}"
        );
        let open = lab.run(&format!(
            "for p in $(pgrep -f 'xen-domid {domid} '); do readlink /proc/$p/fd/*; done; true"
        ))?;
        ensure!(
            open.lines().any(|line| line == path),
            "QEMU does not have {path} open, but {open}"
        );
        images.push(path.to_owned());
    }
    Ok(images)
}

/// When the images that the guest's configuration file names were last written to.
fn base_times(lab: &Lab, guest: &Guest<'_>) -> Result<String> {
    lab.run(&format!(
        "stat -c '%n %y' {dir}/xvda.qcow2 {dir}/xvdb.raw",
        dir = guest.dir()
    ))
}

fn used_by_everybody(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let (guest, product) = with_raw_disk(lab, "everybody")?;
    let before = State::set(&guest, "before")?;
    let bases = active(lab, &guest)?;
    product.run("snapshot-create -n first --external {}")?;
    assert_eq!(
        State::read(&guest)?,
        before,
        "the snapshot disturbed the guest"
    );
    let layers = active(lab, &guest)?;
    ensure!(
        layers.iter().all(|layer| !bases.contains(layer)),
        "the guest goes on in {layers:?}"
    );
    let times = base_times(lab, &guest)?;

    let later = State::set(&guest, "later")?;
    reboot(&guest)?;
    assert_eq!(active(lab, &guest)?, layers, "after a reboot");
    assert_eq!(sums(&guest)?, *later.sums(), "after a reboot");
    let saved = State::set(&guest, "saved")?;
    let file = format!("{}/saved", guest.dir());
    lab.run(&format!(
        "xl save {} {file} && xl restore {file}",
        guest.name()
    ))?;
    assert_eq!(
        State::read(&guest)?,
        saved,
        "after save and restore by stock xl"
    );
    assert_eq!(
        active(lab, &guest)?,
        layers,
        "after save and restore by stock xl"
    );

    product.run("snapshot-revert {} first")?;
    assert_eq!(State::read(&guest)?, before, "after the revert");
    let reverted = active(lab, &guest)?;
    ensure!(
        reverted
            .iter()
            .all(|image| !layers.contains(image) && !bases.contains(image)),
        "the reverted guest writes to {reverted:?}"
    );
    ensure!(
        layers
            .iter()
            .all(|layer| lab.run(&format!("test ! -e {layer}")).is_ok()),
        "what nothing needs any more is still there"
    );
    State::change(&guest, "again")?;
    product.run("snapshot-revert {} first")?;
    assert_eq!(State::read(&guest)?, before, "after the second revert");
    assert_eq!(base_times(lab, &guest)?, times, "a base was written to");
    product.run("snapshot-verify {}")?;
    started_as_xl(lab, &guest, &product)?;
    assert_eq!(base_times(lab, &guest)?, times, "a base was written to");
    Ok(())
}

/// Under the name xl, `create` takes the layers though the configuration file names the bases, and everything
/// else is as by the real one.
pub(super) fn started_as_xl(lab: &Lab, guest: &Guest<'_>, product: &Product<'_>) -> Result<()> {
    let bin = format!("{}/bin", guest.dir());
    lab.run(&format!(
        "mkdir {bin} && ln -s $(command -v xl-ext) {bin}/xl"
    ))?;
    let as_xl = |arguments: &str| {
        let store = product.store_dir();
        format!("PATH={bin}:$PATH XL_EXT_STORE={store} xl {arguments}")
    };
    for arguments in [
        "nonsense",
        "domid none",
        "list -l 0",
        "-N create /nowhere",
        "vcpu-list 0 | head -n 1",
    ] {
        let theirs = lab.try_run(&format!("xl {arguments}"), LIMIT)?;
        let ours = lab.try_run(&as_xl(arguments), LIMIT)?;
        assert_eq!(
            (ours.status, ours.stdout, ours.stderr),
            (theirs.status, theirs.stdout, theirs.stderr),
            "xl {arguments}"
        );
    }
    let state = State::read(guest)?;
    let layers = active(lab, guest)?;
    guest.destroy()?;
    let output = lab.try_run(&as_xl(&format!("create {}/guest.cfg", guest.dir())), LIMIT)?;
    ensure!(output.status == 0, "{}{}", output.stdout, output.stderr);
    ensure!(
        output.stderr.contains("which is on top of"),
        "{}",
        output.stderr
    );
    guest.wait_ready()?;
    assert_eq!(
        active(lab, guest)?,
        layers,
        "the disks of a domain that was created anew"
    );
    assert_eq!(
        sums(guest)?,
        *state.sums(),
        "of a domain that was created anew"
    );
    Ok(())
}

/// Internal, external, internal: to each of them from each other one, and a branch.
fn mixed_tree(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("mixed").disks(&[32, 32]))?;
    let product = Product::of(lab, &guest);
    let mut states = Vec::new();
    for (name, how) in [
        ("in", ""),
        ("out", "--external"),
        ("half", "--disk xvdb,snapshot=external"),
    ] {
        states.push((name, State::set(&guest, name)?));
        product.run(&format!("snapshot-create -n {name} {how} {{}}"))?;
    }
    State::change(&guest, "later")?;
    for at in [0, 2, 1, 0] {
        let (name, state) = &states[at];
        product.run(&format!("snapshot-revert {{}} {name}"))?;
        assert_eq!(&State::read(&guest)?, state, "after the revert to {name}");
        active(lab, &guest)?;
        State::change(&guest, "between")?;
    }
    Ok(())
}

/// Deleted from the middle, from the top and from the bottom, the layers become the base again, under a guest
/// that goes on; what is left of the tree can be reverted to at each time.
fn deletes_merge(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let (guest, product) = with_raw_disk(lab, "merges")?;
    let bases = active(lab, &guest)?;
    let mut states = Vec::new();
    for name in ["one", "two", "three"] {
        states.push(State::set(&guest, name)?);
        product.run(&format!("snapshot-create -n {name} --external {{}}"))?;
    }
    let life = State::set(&guest, "later")?;
    let plan = product.run("snapshot-delete --plan {} two")?;
    ensure!(plan.contains("is copied from image to image"), "{plan}");
    product.run("snapshot-delete {} two")?;
    assert_eq!(
        State::read(&guest)?,
        life,
        "after a merge in the middle of the chain"
    );
    product.run("snapshot-delete {} three")?;
    assert_eq!(
        State::read(&guest)?,
        life,
        "after a merge at the top of the chain"
    );
    let top = active(lab, &guest)?;
    reboot(&guest)?;
    assert_eq!(active(lab, &guest)?, top, "after a reboot");
    assert_eq!(sums(&guest)?, *life.sums(), "after a reboot");

    product.run("snapshot-revert {} one")?;
    assert_eq!(
        State::read(&guest)?,
        states[0],
        "after a revert below the merged ones"
    );
    State::change(&guest, "branch")?;
    product.run("snapshot-create -n branch --external {}")?;
    State::change(&guest, "lost")?;
    guest.destroy()?;
    product.run("snapshot-delete {} one")?;
    product.run("snapshot-revert {} branch")?;
    assert_eq!(guest.get_memory("word")?, "branch");
    let end = State::set(&guest, "end")?;
    product.run("snapshot-delete {} branch")?;
    assert_eq!(State::read(&guest)?, end, "after the last deletion");
    assert_eq!(
        active(lab, &guest)?,
        bases,
        "the disks are the guest's own again"
    );
    let left = lab.run(&format!("ls {}", guest.dir()))?;
    ensure!(!left.contains("xl-ext-"), "layers are left: {left}");
    // QEMU's device deletes the node that it began with, which was not the base.
    let domid = guest.domid()?;
    lab.run(&format!(
        "xl block-detach {domid} xvdb && xl block-attach {domid} \
         format=raw,vdev=xvdb,access=rw,backendtype=qdisk,target={}",
        bases[1]
    ))?;
    guest.wait_counter_beyond(guest.counter()?)?;
    Ok(())
}
