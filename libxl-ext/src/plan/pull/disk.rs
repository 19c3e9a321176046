//! Which disk is meant, what it stands on, and whether that may become less.

use crate::error::{Error, ErrorKind, Result};
use crate::model::below::{DEPTH_MAX, below};
use crate::model::disk::{DeviceDisk, DiskKind, DiskTarget, ImageFacts, ImageFormat};
use crate::model::layer::Backing;
use crate::observe::Inventory;
use std::path::{Path, PathBuf};

/// The disk that a user names by its device, or by its image.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] for one that the domain does not have; [`ErrorKind::Unsupported`] for one that cannot be
/// pulled.
pub(super) fn find(inventory: &Inventory, named: &str) -> Result<DiskTarget> {
    let disks = match (&inventory.live, &inventory.off) {
        (Some(live), _) => &live.disks,
        (None, Some(off)) => &off.disks,
        (None, None) => return of_last_pull(inventory, named),
    };
    let is_it = |disk: &&DeviceDisk| {
        disk.vdev.as_deref() == Some(named) || disk.pdev_path.as_deref() == Some(named)
    };
    if let Some(disk) = disks.iter().find(is_it) {
        return pullable(disk);
    }
    let there: Vec<_> = disks.iter().map(DeviceDisk::vdev).collect();
    Err(unknown(inventory, named).hint(format!("it has {}", there.join(", "))))
}

/// The images of the domain's other disks; none where nobody knows them.
pub(super) fn beside(inventory: &Inventory, disk: &DiskTarget) -> Option<Vec<Backing>> {
    let disks = match (&inventory.live, &inventory.off) {
        (Some(live), _) => &live.disks,
        (None, Some(off)) => &off.disks,
        (None, None) => return None,
    };
    let others = disks.iter().filter_map(Backing::of_disk);
    Some(others.filter(|it| it.image != disk.image).collect())
}

fn unknown(inventory: &Inventory, named: &str) -> Error {
    Error::new(
        ErrorKind::InvalidRequest,
        format!("domain '{}' has no disk {named}", inventory.domain),
    )
}

/// Of a domain that is off, and of which no snapshot tells what it is made of, its last pull may.
fn of_last_pull(inventory: &Inventory, named: &str) -> Result<DiskTarget> {
    let mut pulls = inventory.record.pulls.iter();
    let is_it = |disk: &DiskTarget| disk.vdev == named || &*disk.image == Path::new(named);
    if let Some(pull) = pulls.find(|pull| is_it(&pull.disk)) {
        return Ok(pull.disk.clone());
    }
    let error = Error::new(
        ErrorKind::DomainState,
        format!(
            "domain '{}' is off, and nobody knows its disks",
            inventory.domain
        ),
    )
    .hint("say what it is made of by --domain-config FILE");
    Err(match &inventory.off_unknown {
        Some(why) => error.because(why.clone()),
        None => error,
    })
}

fn pullable(disk: &DeviceDisk) -> Result<DiskTarget> {
    let vdev = disk.vdev();
    let path = disk.pdev_path.as_deref().unwrap_or_default();
    let refuse = |why: String| Error::new(ErrorKind::Unsupported, format!("disk {vdev} {why}"));
    let backend = disk.backend.as_deref().unwrap_or("unknown");
    if backend != "qdisk" {
        return Err(
            refuse(format!("is on the {backend} backend, and only QEMU pulls"))
                .hint("put backendtype=qdisk into the disk's configuration"),
        );
    }
    if !disk.is_writable() {
        return Err(refuse(format!("({path}) is read-only: nothing can be pulled into it"))
            .hint("while the domain is off, `qemu-img rebase` does it for an image that the guest does not write to"));
    }
    match disk.format.as_deref().and_then(ImageFormat::of) {
        Some(ImageFormat::Qcow2) => {}
        Some(ImageFormat::Raw) => {
            return Err(refuse(format!(
                "({path}) is raw: it holds all of its content itself, and stands on nothing"
            )));
        }
        None => {
            let format = disk.format.as_deref().unwrap_or("unknown");
            return Err(refuse(format!(
                "({path}) is {format}, and only qcow2 images stand on others"
            )));
        }
    }
    if !Path::new(path).is_absolute() {
        return Err(refuse(format!(
            "has the target '{path}', which is no absolute path"
        )));
    }
    Ok(DiskTarget {
        vdev: vdev.to_owned(),
        image: Path::new(path).into(),
        format: ImageFormat::Qcow2,
    })
}

/// What is seen of an image.
///
/// # Errors
/// If it is missing or cannot be read.
pub(super) fn facts<'a>(inventory: &'a Inventory, image: &Path) -> Result<&'a ImageFacts> {
    if let Some(Some(facts)) = inventory.images.get(image) {
        return Ok(facts);
    }
    let error = match inventory.unreadable.get(image) {
        Some(why) => Error::new(
            ErrorKind::Toolstack,
            format!("{} cannot be read", image.display()),
        )
        .because(why.clone()),
        None => Error::new(
            ErrorKind::Stale,
            format!(
                "{} is missing, or QEMU does not have it open",
                image.display()
            ),
        ),
    };
    Err(error.hint("is its file system mounted?"))
}

/// The images that a disk stands on, the uppermost first.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for what is no image file of a known format; what [`facts`] says of one that is not there.
pub(super) fn all_below(inventory: &Inventory, disk: &DiskTarget) -> Result<Vec<Backing>> {
    let mut chain: Vec<Backing> = Vec::new();
    let mut at: PathBuf = disk.image.to_path_buf();
    let mut format = disk.format;
    // A raw image stands on nothing, whatever its guest wrote to its beginning.
    while format == ImageFormat::Qcow2 {
        let Some(next) = below(&at, facts(inventory, &at)?)? else {
            break;
        };
        at = next.image.to_path_buf();
        format = next.format;
        chain.push(next);
        if chain.len() > DEPTH_MAX {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the images of {disk} stand on each other in a circle"),
            ));
        }
    }
    Ok(chain)
}

/// Which of the images below is meant by a path or by the name of a snapshot.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] if the disk does not stand on it.
pub(super) fn base(
    inventory: &Inventory,
    disk: &DiskTarget,
    chain: &[Backing],
    named: &str,
) -> Result<Backing> {
    let find = |image: &Path| chain.iter().find(|below| &*below.image == image).cloned();
    let images = || {
        let images = chain.iter().map(|below| below.image.display().to_string());
        format!("it stands on {}", images.collect::<Vec<_>>().join(", "))
    };
    if named.contains('/') {
        return find(Path::new(named)).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidRequest,
                format!("{disk} does not stand on {named}"),
            )
            .hint(images())
        });
    }
    let snapshot = inventory.record.find(named)?;
    let proof = snapshot
        .disks
        .iter()
        .find(|proof| proof.target.vdev == disk.vdev);
    let refuse = |why: &str| {
        Error::new(
            ErrorKind::InvalidRequest,
            format!("snapshot '{named}' {why}"),
        )
        .hint(images())
    };
    match proof {
        None => Err(refuse(&format!("has no part in {}", disk.vdev))),
        Some(proof) if proof.kind == DiskKind::Internal => Err(refuse(&format!(
            "holds {} inside its image, and is no image of its own to stand on",
            disk.vdev
        ))),
        Some(proof) => find(&proof.target.image)
            .ok_or_else(|| refuse(&format!("is not below {disk} as it is now"))),
    }
}

/// Beyond the end of an image that is shorter than those above and below it a disk reads as zeros, which QEMU (7.2's
/// `block-stream`, tried) does not copy: the disk would have the content of the image below there afterwards.
///
/// # Errors
/// [`ErrorKind::Unsupported`] with the image and the way out.
pub(super) fn require_nothing_uncovered(
    inventory: &Inventory,
    disk: &DiskTarget,
    from: &[Backing],
    onto: Option<&Backing>,
) -> Result<()> {
    let Some(onto) = onto else {
        return Ok(());
    };
    let length = |image: &Path| facts(inventory, image).map(|facts| facts.virtual_size);
    let both = length(&disk.image)?.min(length(&onto.image)?);
    for between in from {
        if length(&between.image)? < both {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{disk} cannot be pulled down to {}: {}, which is between them, is shorter than both, and what \
                     the disk reads beyond its end would change",
                    onto.image.display(),
                    between.image.display()
                ),
            )
            .hint("without --base the disk gets all that it lacks"));
        }
    }
    Ok(())
}

/// Internal snapshots read through to the images below, of which the header of their image tells for all of them.
///
/// # Errors
/// [`ErrorKind::Unsupported`] with their names.
pub(super) fn require_no_tags(inventory: &Inventory, disk: &DiskTarget) -> Result<()> {
    let tags = &facts(inventory, &disk.image)?.snapshots;
    if tags.is_empty() {
        return Ok(());
    }
    let name = |tag: &str| {
        let mut snapshots = inventory.record.snapshots.iter();
        let ours = snapshots.find(|snapshot| snapshot.id.tag() == tag);
        ours.map_or_else(|| tag.to_owned(), |it| format!("'{}'", it.name()))
    };
    let names: Vec<_> = tags.iter().map(|it| name(&it.tag)).collect();
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "{disk} holds snapshots inside, which need what is below it: {}",
            names.join(", ")
        ),
    )
    .hint("delete them first, or let the domain go on in a new image (snapshot-create --external) and pull into that"))
}
