//! Guests that write what is meant for the host's eyes.

use anyhow::{Result, ensure};

use super::snapshot::{State, reboot, sums};
use super::snapshot_external::active;
use super::snapshot_life::{ensure_own_again, with_raw_disk};
use crate::coverage::{Cells, Disks, Feature};
use crate::guest::{Guest, Kind};
use crate::host::Lab;
use crate::product::Product;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[Step {
    name: "ts-external-raw-disk-that-looks-like-qcow2",
    run: looks_like_qcow2,
    cells: &[Cells::pv(
        &[Feature::HostileDisk],
        &[Disks::Raw, Disks::Mixed],
    )],
}];

/// What whoever takes the guest's disk for qcow2 would read.
const SECRET: &str = "/etc/shadow";

/// A qcow2 image (version 2) of `mib` MiB that holds nothing itself: all is read from [`SECRET`]. Its tables are where
/// the disk is zero.
fn header(mib: u64) -> Vec<u8> {
    let mut bytes = b"QFI\xfb".to_vec();
    let small = |number: u32| number.to_be_bytes().to_vec();
    let large = |number: u64| number.to_be_bytes().to_vec();
    let fields = [
        // The version; where the name of the backing file is, and its length.
        small(2),
        large(72),
        small(u32::try_from(SECRET.len()).unwrap_or(0)),
        // Clusters of 64 KiB, and the size.
        small(16),
        large(mib << 20),
        // No encryption, one entry in the first table, and where that is.
        small(0),
        small(1),
        large(1 << 16),
        // The reference counts, one cluster of them.
        large(2 << 16),
        small(1),
        // No snapshots.
        small(0),
        large(0),
    ];
    bytes.extend(fields.concat());
    bytes.extend(SECRET.as_bytes());
    bytes
}

/// Its raw disk begins with a qcow2 header that names a file of the host's, in the base and in a layer: nobody ever
/// reads it as such, and it is still there when the layers have become the disk again.
fn looks_like_qcow2(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let spec = with_raw_disk(lab, "hostile", Kind::Pv)?;
    let raw = format!("{}/xvdb.raw", spec.dir());
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    let bases = active(lab, &guest)?;
    let (first, second) = (header(32), header(64));
    guest.write_sector("xvdb", 0, &first)?;
    ensure_begins_with(lab, &raw, &first)?;
    let probed = lab.run(&format!("qemu-img info -U {raw}"))?;
    ensure!(
        probed.contains(&format!("backing file: {SECRET}")),
        "nobody would be deceived: {probed}"
    );
    // The same for the watch: that who is deceived leaves a trace.
    let unread = unread(lab)?;
    lab.run(&format!("qemu-io -r -U -c 'read 0 512' {raw}"))?;
    assert_ne!(accessed(lab)?, unread, "the trap leaves no trace");
    let unread = self::unread(lab)?;

    let before = State::set(&guest, "before")?;
    product.run("snapshot-create -n mixed {}")?;
    ensure_raw_below(lab, &active(lab, &guest)?[1], &raw)?;
    guest.write_sector("xvdb", 0, &second)?;
    let later = State::set(&guest, "later")?;
    product.run("snapshot-create -n external --external {}")?;
    ensure_not_open(lab, &guest)?;

    product.run("snapshot-revert {} mixed")?;
    assert_eq!(State::read(&guest)?, before);
    ensure_raw_below(lab, &active(lab, &guest)?[1], &raw)?;
    ensure_not_open(lab, &guest)?;
    guest.destroy()?;
    product.run("snapshot-revert {} external")?;
    assert_eq!(State::read(&guest)?, later);
    product.run("snapshot-verify {}")?;
    ensure_not_open(lab, &guest)?;
    for name in ["mixed", "external"] {
        product.run(&format!("snapshot-delete {{}} {name}"))?;
        assert_eq!(State::read(&guest)?, later, "after the deletion of {name}");
        ensure_not_open(lab, &guest)?;
    }
    assert_eq!(active(lab, &guest)?, bases);
    ensure_begins_with(lab, &raw, &second)?;
    reboot(&guest)?;
    assert_eq!(sums(&guest)?, *later.sums(), "after a reboot");
    ensure_not_open(lab, &guest)?;

    // And the same by qemu-img, which has the images when the domain is off.
    product.run("snapshot-create -n off --external {}")?;
    guest.write_sector("xvdb", 0, &first)?;
    let end = State::set(&guest, "end")?;
    guest.destroy()?;
    product.run("snapshot-delete {} off")?;
    ensure_begins_with(lab, &raw, &first)?;
    ensure_own_again(lab, &guest, &product, &end)?;
    assert_eq!(accessed(lab)?, unread, "somebody read {SECRET}");
    Ok(())
}

/// Makes the last time at which the file was read one at which it was not; returns it.
fn unread(lab: &Lab) -> Result<String> {
    lab.run(&format!("touch -a -d 2001-02-03 {SECRET}"))?;
    accessed(lab)
}

fn accessed(lab: &Lab) -> Result<String> {
    lab.run(&format!("stat -c %X {SECRET}"))
}

fn ensure_begins_with(lab: &Lab, path: &str, bytes: &[u8]) -> Result<()> {
    let found = lab.run(&format!(
        "head -c {} {path} | od -An -v -w1 -t u1 | tr -d ' '",
        bytes.len()
    ))?;
    let found: Vec<u8> = found.lines().map(str::parse).collect::<Result<_, _>>()?;
    assert_eq!(found, bytes, "the beginning of {path}");
    Ok(())
}

/// The layer says itself that what is below it is raw.
fn ensure_raw_below(lab: &Lab, layer: &str, raw: &str) -> Result<()> {
    let text = lab.run(&format!("qemu-img info -U -f qcow2 --output=json {layer}"))?;
    let info: serde_json::Value = serde_json::from_str(&text)?;
    assert_eq!(
        (
            &info["full-backing-filename"],
            &info["backing-filename-format"]
        ),
        (&raw.into(), &"raw".into()),
        "below {layer}"
    );
    Ok(())
}

fn ensure_not_open(lab: &Lab, guest: &Guest<'_>) -> Result<()> {
    let open = lab.run(&format!(
        "for p in $(pgrep -f 'xen-domid {} '); do readlink /proc/$p/fd/*; done; true",
        guest.domid()?
    ))?;
    ensure!(open.contains("qcow2"), "no QEMU was found: {open}");
    ensure!(!open.contains(SECRET), "QEMU has it open: {open}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_whole() {
        let header = header(32);
        assert_eq!(header.len(), 72 + SECRET.len());
        assert_eq!(&header[..8], b"QFI\xfb\0\0\0\x02");
        assert_eq!(&header[24..32], (32_u64 << 20).to_be_bytes());
    }
}
