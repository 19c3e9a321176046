//! A domain that is not running, as it would be started: what it is made of, and which images its disks are.

use crate::error::{Error, ErrorKind, Result};
use crate::model::configuration::disks_of;
use crate::model::disk::{DeviceDisk, ImageFacts, ImageFormat};
use crate::model::domain::GuestType;
use crate::model::layer::{Backing, Layer};
use crate::model::record::{DomainRecord, RecordState, SnapshotRecord};
use crate::store::DomainStore;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use uuid::Uuid;

/// A domain that is off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OffDomain {
    /// Name of the snapshot that tells what it is made of; none where the user does.
    pub told_by: Option<String>,
    /// libxl's configuration in JSON, whose disks are the images that they are now.
    pub configuration: Value,
    /// The guest's type.
    pub guest_type: GuestType,
    /// Its UUID, if the configuration names one.
    pub uuid: Uuid,
    /// Its disks, in the order of its configuration.
    pub disks: Vec<DeviceDisk>,
}

impl OffDomain {
    /// The domain of the configuration that the user says, or else of the snapshot that its present state comes
    /// from; none where nobody knows of one.
    ///
    /// # Errors
    /// If the configuration cannot be read, or snapshots stand on an image that it names and no layer is the disk.
    pub(super) fn find(
        store: &DomainStore,
        record: &DomainRecord,
        said: Option<&Value>,
    ) -> Result<Option<Self>> {
        if let Some(said) = said {
            return Self::new(record, None, said.clone()).map(Some);
        }
        let complete = |snapshot: &&SnapshotRecord| snapshot.state == RecordState::Complete;
        let newest = || record.snapshots.iter().rev().find(complete);
        let Some(snapshot) = record.current.and_then(|id| record.get(id)).or_else(newest) else {
            return Ok(None);
        };
        let configuration = configuration_of(store, snapshot).map_err(|error| {
            error.while_doing(format!(
                "read the domain's configuration from snapshot '{}'",
                snapshot.name()
            ))
        })?;
        Self::new(record, Some(snapshot), configuration).map(Some)
    }

    fn new(
        record: &DomainRecord,
        told_by: Option<&SnapshotRecord>,
        mut configuration: Value,
    ) -> Result<Self> {
        let unreadable = |what: &str| {
            Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "the configuration of domain '{}' has no {what}",
                    record.domain
                ),
            )
        };
        let mut disks = disks_of(&configuration)
            .map_err(|error| unreadable("disks that can be read").because(error))?;
        for disk in &mut disks {
            if let Some(image) = image_now(record, told_by, disk)? {
                disk.pdev_path = Some(image.image.to_string_lossy().into_owned());
                disk.format = Some(image.format.driver().to_owned());
            }
        }
        let of_domain = |key: &str| configuration.get("c_info").and_then(|info| info.get(key));
        let guest_type = of_domain("type").map(GuestType::deserialize);
        let guest_type = match (guest_type, told_by) {
            (Some(Ok(guest_type)), _) => guest_type,
            (_, Some(snapshot)) => snapshot.guest_type,
            (_, None) => return Err(unreadable("type")),
        };
        let uuid = of_domain("uuid").and_then(|uuid| Uuid::deserialize(uuid).ok());
        let uuid = uuid
            .or(told_by.map(|snapshot| snapshot.domain_uuid))
            .unwrap_or_default();
        let mut domain = Self {
            told_by: told_by.map(|snapshot| snapshot.name().to_owned()),
            configuration: Value::Null,
            guest_type,
            uuid,
            disks,
        };
        domain.describe_disks(&mut configuration)?;
        domain.configuration = configuration;
        Ok(domain)
    }

    /// The backends that libxl would choose where the configuration names none: files are QEMU's.
    pub(super) fn settle_backends(
        &mut self,
        facts: impl Fn(&Path) -> Option<ImageFacts>,
    ) -> Result<()> {
        for disk in &mut self.disks {
            let is_open = disk
                .backend
                .as_deref()
                .is_none_or(|backend| backend == "unknown");
            let has_script = disk.other.contains_key("script");
            let path = disk.pdev_path.as_deref().unwrap_or_default();
            let is_file = facts(Path::new(path)).is_some_and(|facts| !facts.is_device);
            let is_qcow2 = disk.format.as_deref() == Some(ImageFormat::Qcow2.driver());
            if is_open && !has_script && (is_file || is_qcow2) {
                disk.backend = Some("qdisk".into());
            }
        }
        let mut configuration = std::mem::take(&mut self.configuration);
        self.describe_disks(&mut configuration)?;
        self.configuration = configuration;
        Ok(())
    }

    /// Puts the disks into the configuration.
    fn describe_disks(&self, configuration: &mut Value) -> Result<()> {
        if self.disks.is_empty() {
            return Ok(());
        }
        let disks = serde_json::to_value(&self.disks).map_err(|error| {
            Error::new(ErrorKind::InvalidRequest, "write the domain's disks").because(error)
        })?;
        if let Some(configuration) = configuration.as_object_mut() {
            configuration.insert("disks".into(), disks);
        }
        Ok(())
    }
}

/// What the domain was made of at the instant of a snapshot.
pub(crate) fn configuration_of(store: &DomainStore, snapshot: &SnapshotRecord) -> Result<Value> {
    if let Some(configuration) = &snapshot.configuration {
        return Ok(configuration.clone());
    }
    let kept = store.kept_memory(snapshot);
    let text = kept.configuration()?;
    serde_json::from_str(&text).map_err(|error| {
        let doing = format!("read {}", kept.image.display());
        Error::new(ErrorKind::Corrupt, doing).because(error)
    })
}

/// The image that a disk is now, if that may be another one than the configuration names.
fn image_now(
    record: &DomainRecord,
    told_by: Option<&SnapshotRecord>,
    disk: &DeviceDisk,
) -> Result<Option<Backing>> {
    // The layer of that time may have become another image; of the snapshot's own disks the record knows.
    let recorded = told_by.and_then(|snapshot| {
        let proofs = snapshot.disks.iter();
        let mut described = proofs.zip(&snapshot.snapshot.disks);
        let of_disk = described.find(|(_, described)| described.disk.vdev == disk.vdev);
        of_disk
            .filter(|(_, described)| described.disk.pdev_path == disk.pdev_path)
            .map(|(proof, _)| record.base_of(&proof.target))
    });
    if let Some(base) = recorded {
        let active = record.active_layer(&base.image);
        return Ok(Some(
            active.map_or(base, |active| (&active.target()).into()),
        ));
    }
    if let Some(layer) = layer_of(record, disk)? {
        return Ok(Some((&layer.target()).into()));
    }
    // A layer that is the disk no more stands beside or below it.
    let path = disk.pdev_path.as_deref().map(Path::new);
    let layer = path.and_then(|path| record.layer(path));
    Ok(layer
        .filter(|layer| !layer.active)
        .map(|layer| layer.base.clone()))
}

/// The layer that a disk is, where its configuration names another one of the images that it consists of.
///
/// # Errors
/// As [`active_layer_of`].
fn layer_of<'a>(record: &'a DomainRecord, disk: &DeviceDisk) -> Result<Option<&'a Layer>> {
    let active = active_layer_of(record, disk)?;
    Ok(active.filter(|layer| !is_named_by(layer, disk)))
}

/// The layer that a disk is, whichever of the images that it consists of the configuration names; none where it
/// is no layer.
///
/// # Errors
/// [`ErrorKind::Stale`] if snapshots stand on the image that it names, and no layer is the disk.
pub(crate) fn active_layer_of<'a>(
    record: &'a DomainRecord,
    disk: &DeviceDisk,
) -> Result<Option<&'a Layer>> {
    let Some(path) = disk.pdev_path.as_deref().map(Path::new) else {
        return Ok(None);
    };
    let own = record.layers.iter().map(|layer| (&*layer.image, layer));
    let bases = record
        .layers
        .iter()
        .map(|layer| (&*layer.base.image, layer));
    let known = own
        .chain(bases)
        .find(|(image, _)| is_same_file(image, path))
        .map(|(_, layer)| &*layer.base.image);
    let Some(base) = known else { return Ok(None) };
    match record.active_layer(base) {
        Some(active) => Ok(Some(active)),
        None if disk.is_writable() && record.is_frozen(path) => Err(Error::new(
            ErrorKind::Stale,
            format!(
                "snapshots stand on {}, and no layer is the disk",
                path.display()
            ),
        )),
        None => Ok(None),
    }
}

/// Whether the configuration of a disk names the layer itself.
pub(crate) fn is_named_by(layer: &Layer, disk: &DeviceDisk) -> bool {
    let path = disk.pdev_path.as_deref().map(Path::new);
    path.is_some_and(|path| is_same_file(&layer.image, path))
}

/// Whether two paths lead to one file, also by a link or another mount.
fn is_same_file(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| {
        std::fs::metadata(path)
            .map(|file| (file.dev(), file.ino()))
            .ok()
    };
    one == other || identity(one).is_some_and(|one| Some(one) == identity(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_any_of_its_names() {
        let directory = tempfile::tempdir().unwrap();
        let (base, link) = (directory.path().join("base"), directory.path().join("link"));
        std::fs::write(&base, b"").unwrap();
        std::os::unix::fs::symlink(&base, &link).unwrap();
        let backing = Backing {
            image: base.as_path().into(),
            format: ImageFormat::Raw,
        };
        let layer = Layer {
            vdev: "xvda".into(),
            image: directory.path().join("layer").into(),
            backing: Some(backing.clone()),
            below_written: None,
            base: backing,
            active: true,
            merging: None,
        };
        let mut record = DomainRecord::new("g");
        record.add_layers(std::slice::from_ref(&layer));
        let disk = |path: &Path| DeviceDisk {
            pdev_path: Some(path.display().to_string()),
            readwrite: 1,
            ..DeviceDisk::default()
        };
        let other = disk(Path::new("/i/other"));
        assert_eq!(layer_of(&record, &disk(&link)).unwrap(), Some(&layer));
        assert_eq!(layer_of(&record, &other).unwrap(), None);
        let own = disk(&layer.image);
        assert_eq!(layer_of(&record, &own).unwrap(), None);
        assert_eq!(active_layer_of(&record, &own).unwrap(), Some(&layer));
        record.layers[0].active = false;
        let error = layer_of(&record, &disk(&base)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stale);
    }
}
