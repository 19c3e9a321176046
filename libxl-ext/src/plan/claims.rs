//! Images that the records of two domains name: after `xl rename`, or where a disk went to another domain. What one of
//! them takes for its own, the other may stand on.

use crate::error::{Error, ErrorKind, Result};
use crate::observe::Inventory;
use std::path::Path;

/// Refuses to change images that another domain's snapshots need.
///
/// # Errors
/// [`ErrorKind::Stale`] with the image and the other domain.
pub(super) fn require_unclaimed(inventory: &Inventory) -> Result<()> {
    let record = &inventory.record;
    let live = inventory.live.iter().flat_map(|live| &live.disks);
    let live = live
        .filter(|disk| disk.is_writable())
        .filter_map(|disk| disk.pdev_path.as_deref().map(Path::new));
    let claimed = record
        .images()
        .chain(live)
        .find_map(|image| Some((image, inventory.claimed.get(image)?)));
    let Some((image, other)) = claimed else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::Stale,
        format!(
            "snapshots of domain '{other}' need {}, which domain '{}' has too",
            image.display(),
            inventory.domain
        ),
    )
    .hint(format!(
        "if it was renamed, give it the name '{other}' again; if '{other}' is no more, delete its snapshots"
    )))
}
