//! A disk of the primary that fails.

use anyhow::{Result, ensure};

use super::figures::Figures;
use super::hosts::{HEARTBEAT_MS, Hosts, Side};
use super::scenarios::{SIZES, require_sums, sums};
use crate::guest::{Guest, GuestSpec};
use crate::steps::small_store::SmallStore;

/// The guest hears that its own disk takes no more, although the other host's would, and what both hold is the same once it
/// has written that again.
pub(super) fn fails(hosts: &mut Hosts, _: &mut Figures) -> Result<()> {
    const NAME: &str = "own-disk";
    let lab = hosts.lab(Side::A);
    let small = SmallStore::of(lab, 64)?;
    let [first, second] = SIZES;
    let image = format!("{}/xvdb.qcow2", small.mount);
    lab.run(&format!("qemu-img create -q -f qcow2 {image} {second}M"))?;
    let spec = GuestSpec::pv(NAME).disks(&[first]).another_disk(&format!(
        "format=qcow2,vdev=xvdb,access=rw,backendtype=qdisk,target={image}"
    ));
    let guest = Guest::create(lab, &spec)?;
    guest.write("xvdb", 2, 4, "there")?;
    let options = format!("--heartbeat {HEARTBEAT_MS}");
    hosts.start(Side::A, NAME, &spec.config_path(), &options)?;

    small.resize(small.used()? + 1)?;
    let written = guest.write("xvdb", 8, 6, "no-room");
    ensure!(written.is_err(), "it was written where there is no room");
    guest.write("xvda", 8, 2, "beside-it")?;
    let info = hosts.info(Side::A, NAME)?;
    println!("      replication is {}", info["state"]);

    small.resize(64)?;
    let here = hosts.product(Side::A, NAME);
    if info["state"] != "running" {
        here.run("replication-resume {}")?;
    }
    guest.write("xvdb", 8, 6, "again")?;
    let kept = sums(&guest)?;
    here.run("replication-checkpoint {}")?;
    guest.write("xvdb", 2, 4, "not-there")?;
    here.run("replication-stop {}")?;
    require_sums(hosts, &hosts.product(Side::B, NAME), &kept)?;
    guest.destroy()
}
