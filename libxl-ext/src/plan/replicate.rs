//! What may be replicated, and what may not be done with it meanwhile.

use super::claims::require_unclaimed;
use super::managed_save::require_none_saved;
use super::pull::require_none_pulled;
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::{DeviceDisk, DiskTarget, ImageFormat};
use crate::model::domain::DomainState;
use crate::observe::Inventory;
use std::path::Path;

/// The disks of a domain that are replicated: all that it can write to.
///
/// # Errors
/// A refusal that names what stands in the way: [`ErrorKind::DomainState`], [`ErrorKind::Unsupported`].
pub(crate) fn replicable(inventory: &Inventory) -> Result<Vec<DiskTarget>> {
    require_unclaimed(inventory)?;
    require_none_saved(inventory)?;
    require_none_pulled(inventory)?;
    let domain = &inventory.domain;
    let refuse = |what: String| Error::new(ErrorKind::DomainState, what);
    let live = inventory
        .live
        .as_ref()
        .ok_or_else(|| refuse(format!("domain '{domain}' is not running")))?;
    if !matches!(live.state, DomainState::Running | DomainState::Paused) {
        return Err(refuse(format!("domain '{domain}' is {}", live.state)));
    }
    let writable = live.disks.iter().filter(|disk| disk.is_writable());
    let disks: Vec<_> = writable.map(target).collect::<Result<_>>()?;
    if disks.is_empty() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "domain '{domain}' has no disk that it can write to: there is nothing to replicate"
            ),
        ));
    }
    Ok(disks)
}

fn target(disk: &DeviceDisk) -> Result<DiskTarget> {
    let vdev = disk.vdev();
    let refuse = |why: String| Error::new(ErrorKind::Unsupported, format!("disk {vdev} {why}"));
    let all = "a domain is replicated with all disks that it can write to, or not at all";
    let backend = disk.backend.as_deref().unwrap_or("unknown");
    if backend != "qdisk" {
        return Err(refuse(format!(
            "is on the {backend} backend, which cannot be replicated"
        ))
        .hint(format!(
            "put backendtype=qdisk into the disk's configuration: {all}"
        )));
    }
    let name = disk.format.as_deref().unwrap_or("unknown");
    let format = ImageFormat::of(name).ok_or_else(|| {
        refuse(format!("is {name}, and only qcow2 and raw images can be replicated")).hint(format!(
            "`qemu-img convert -f {name} -O qcow2` makes a qcow2 image of it while the domain is off: {all}"
        ))
    })?;
    let path = disk.pdev_path.as_deref().unwrap_or_default();
    if !Path::new(path).is_absolute() {
        return Err(refuse(format!("has no absolute path: {path:?}")));
    }
    Ok(DiskTarget {
        vdev: vdev.to_owned(),
        image: Path::new(path).into(),
        format,
    })
}

/// Refuses to change a domain that is replicated: the other side would not hear of it.
///
/// # Errors
/// [`ErrorKind::DomainState`] with the ways out.
pub(super) fn require_not_replicated(inventory: &Inventory) -> Result<()> {
    let Some(claim) = &inventory.replicated else {
        return Ok(());
    };
    let domain = &inventory.domain;
    Err(
        Error::new(ErrorKind::DomainState, format!("domain '{domain}' {claim}")).hint(format!(
            "`xl-ext replication-status {domain}` tells more; `xl-ext replication-stop {domain}` ends that"
        )),
    )
}
