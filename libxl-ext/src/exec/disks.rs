//! What the steps do that work on images: those that a QEMU has open, and those that nobody has.

use super::perform::{Measured, Performer};
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::{DiskKind, DiskTarget, ImageFormat};
use crate::model::domain::{DomainLife, DomainState};
use crate::model::layer::{Backing, Into, Layer};
use crate::model::name::SnapshotId;
use crate::model::record::DiskProof;
use crate::plan::{Extracted, Merge, Switch};
use crate::port::{BlockNode, DomainView};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long xl may take between a domain's end and its start in a reboot.
const RESTART_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 30 });

/// A start of the domain by somebody else.
#[derive(Clone, Copy)]
enum Start {
    /// It is there, with the domid.
    Begun(u32),
    /// xl is about to start it.
    Near,
}

/// A domain's QEMU at one instant.
struct Qemu {
    life: DomainLife,
    nodes: Vec<BlockNode>,
}

impl Qemu {
    fn has_open(&self, image: &Path) -> bool {
        self.nodes.iter().any(|node| &*node.image == image)
    }

    /// Whether it has an image open that stands on another one.
    fn stands_on(&self, image: &Path, below: Option<&Backing>) -> bool {
        let mut nodes = self.nodes.iter();
        nodes.any(|node| &*node.image == image && node.facts.stands_on(below))
    }
}

impl Performer<'_> {
    /// Whether a disk is still what the snapshot says.
    pub(super) fn prove_disk(&self, id: SnapshotId, proof: &DiskProof) -> Result<()> {
        let DiskTarget {
            image,
            format,
            vdev,
        } = &proof.target;
        let images = &self.ports.images;
        let holds = match (proof.kind, proof.stamp) {
            (DiskKind::External, Some(stamp)) => images.last_write(image) == Some(stamp),
            (DiskKind::External, None) => images.facts(image, *format)?.is_some(),
            (DiskKind::Internal, _) => images
                .facts(image, *format)?
                .is_some_and(|facts| facts.snapshot(&id.tag()).is_some()),
        };
        if holds {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            match proof.kind {
                DiskKind::Internal => {
                    format!("{} ({vdev}) no longer holds {}", image.display(), id.tag())
                }
                DiskKind::External => {
                    format!("{} ({vdev}) is gone or was written to", image.display())
                }
            },
        ))
    }

    pub(super) fn create_layers(&self, layers: &[Layer]) -> Result<()> {
        layers
            .iter()
            .try_for_each(|layer| self.ports.images.create_layer(layer))
    }

    pub(super) fn extract_layers(&self, id: SnapshotId, layers: &[Extracted]) -> Result<()> {
        layers.iter().try_for_each(|made| {
            self.ports
                .images
                .extract(&made.from, &id.tag(), &made.layer)
        })
    }

    pub(super) fn merge_layer(&self, merge: &Merge) -> Result<()> {
        let (layer, images) = (&merge.layer, &self.ports.images);
        let below = layer.backing.as_ref();
        let seen = self.look_at_qemu()?;
        match &seen {
            Some(qemu) if qemu.has_open(&layer.image) => {
                self.ports.block.merge(qemu.life, merge)?;
            }
            // The domain left it.
            _ if merge.into == Into::Below && self.is_retired(layer)? => {}
            Some(qemu) if below.is_some_and(|below| qemu.has_open(&below.image)) => {
                let is_done = |above: &Layer| qemu.stands_on(&above.image, below);
                if !merge.above.iter().any(is_done) {
                    return Err(self.not_its_layer(layer));
                }
            }
            _ => self.merge_closed(merge, seen.is_none())?,
        }
        if merge.into == Into::Below {
            // Those that a QEMU has open it has put onto the image below itself.
            let is_open = |image: &Path| seen.as_ref().is_some_and(|qemu| qemu.has_open(image));
            let mut closed = merge.above.iter().filter(|above| !is_open(&above.image));
            closed.try_for_each(|above| images.rebase_layer(above, below, false))?;
        }
        // The other image is removed soon: nothing of it may be in a cache only.
        let left = match (merge.into, below) {
            (Into::Below, Some(below)) => &below.image,
            _ => &layer.image,
        };
        let above = merge.above.iter().map(|above| &above.image);
        [left]
            .into_iter()
            .chain(above)
            .try_for_each(|image| images.make_durable(image))
    }

    /// Merges images that no QEMU has open: those of a domain that is off, or of another branch than the one that
    /// it runs on.
    fn merge_closed(&self, merge: &Merge, is_off: bool) -> Result<()> {
        if is_off {
            self.require_no_restart()?;
        }
        match merge.into {
            Into::Below if merge.layer.active => return self.leave_closed(&merge.layer),
            Into::Below => {
                self.refuse_if_below_is_newer(&merge.layer)?;
                self.ports.images.commit_layer(&merge.layer)?;
            }
            Into::Layer => {
                let onto = merge.onto.as_ref();
                self.ports.images.rebase_layer(&merge.layer, onto, true)?;
            }
        }
        self.require_still_closed(&merge.layer)
    }

    /// A domain that is started while its images are merged would write to one of them.
    fn require_still_closed(&self, layer: &Layer) -> Result<()> {
        let images = [
            Some(&layer.image),
            layer.backing.as_ref().map(|it| &it.image),
        ];
        let is_open = |qemu: &Qemu| images.into_iter().flatten().any(|it| qemu.has_open(it));
        let Some(qemu) = self.look_at_qemu()?.filter(is_open) else {
            return Ok(());
        };
        let error = Error::new(
            ErrorKind::NeedsRepair,
            format!(
                "domain '{}' was started while its images were merged",
                self.plan.domain
            ),
        );
        Err(if qemu.has_open(&layer.image) {
            error.hint("what it writes is not lost: the next command for it goes on with the merge")
        } else {
            error.because(self.not_its_layer(layer))
        })
    }

    /// Between two images of a domain that is off, until the next command.
    fn require_no_restart(&self) -> Result<()> {
        let Some(start) = self.start_in_sight()? else {
            return Ok(());
        };
        let hint = match start {
            Start::Begun(_) => "the next command for it goes on",
            Start::Near => "give the command again when it runs, or end its `xl` process",
        };
        Err(Error::new(ErrorKind::NeedsRepair, self.started(start)).hint(hint))
    }

    /// Nobody uses the disks of a domain that is off, or is about to.
    pub(super) fn require_off(&self) -> Result<()> {
        match self.start_in_sight()? {
            None => Ok(()),
            Some(start) => Err(Error::new(ErrorKind::Stale, self.started(start))
                .hint("give the command again when it runs, or shut it down first")),
        }
    }

    fn started(&self, start: Start) -> String {
        let domain = &self.plan.domain;
        match start {
            Start::Begun(domid) => format!("domain '{domain}' was just started (domid {domid})"),
            Start::Near => format!("xl is about to start domain '{domain}' anew"),
        }
    }

    /// xl reads what a domain is made of before it destroys it for a reboot: for some seconds there is no domain, and
    /// yet it is known on which images it will go on.
    fn start_in_sight(&self) -> Result<Option<Start>> {
        let deadline = Instant::now() + RESTART_LIMIT;
        loop {
            if let Some(view) = self.find_by_name()? {
                return Ok(Some(Start::Begun(view.life.domid)));
            }
            if self.ports.monitors.find(&self.plan.domain, None)?.is_none() {
                return Ok(None);
            }
            if Instant::now() >= deadline {
                return Ok(Some(Start::Near));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The images that the QEMU of the domain of the plan's name has open; none if there is no domain.
    fn look_at_qemu(&self) -> Result<Option<Qemu>> {
        let Some(view) = self.find_by_name()? else {
            return Ok(None);
        };
        // Without its word nobody knows what is open.
        let nodes = self.ports.block.nodes(view.life)?;
        Ok(Some(Qemu {
            life: view.life,
            nodes,
        }))
    }

    fn not_its_layer(&self, layer: &Layer) -> Error {
        Error::new(
            ErrorKind::Stale,
            format!(
                "domain '{}' goes on in the image below {} and not in that",
                self.plan.domain,
                layer.target()
            ),
        )
        .hint("was it started from its configuration file, without the layers?")
    }

    pub(super) fn remove_layers(&self, layers: &[Layer]) -> Result<()> {
        layers
            .iter()
            .try_for_each(|layer| self.ports.images.remove_layer(layer))
    }

    pub(super) fn snapshot_disks(
        &self,
        life: DomainLife,
        id: SnapshotId,
        disks: &[DiskTarget],
        layers: &[Layer],
        measured: &mut Measured,
    ) -> Result<()> {
        let below = layers.iter().filter_map(Layer::below);
        self.refuse_if_open_twice(
            life,
            &disks.iter().cloned().chain(below).collect::<Vec<_>>(),
        )?;
        self.ports.block.snapshot(life, &id.tag(), disks, layers)?;
        self.read_stamps(life, id, disks, measured)?;
        self.read_last_writes(layers, measured)
    }

    /// A domain that is gone, or another one, needs not be told.
    pub(super) fn point_disks(&self, life: DomainLife, switches: &[Switch]) -> Result<()> {
        match self.look(life)? {
            Some(_) => self.ports.toolstack.point_disks(life.domid, switches),
            None => Ok(()),
        }
    }

    pub(super) fn leave_layers(
        &self,
        life: Option<DomainLife>,
        layers: &[Layer],
        wake: bool,
    ) -> Result<()> {
        let mut layers = layers.iter();
        let left = layers.try_for_each(|layer| self.leave_layer(life, layer, wake));
        // Whatever went wrong: until this is finished, somebody could go on in the wrong image.
        left.map_err(|error| {
            Error::new(
                ErrorKind::NeedsRepair,
                format!(
                    "domain '{}' may be between two images, and paused",
                    self.plan.domain
                ),
            )
            .because(error)
            .hint("the next command for this domain goes on with it")
        })
    }

    fn leave_layer(&self, life: Option<DomainLife>, layer: &Layer, wake: bool) -> Result<()> {
        let Some(qemu) = self.look_at_qemu()? else {
            self.require_no_restart()?;
            return self.leave_closed(layer);
        };
        let mut was_running = false;
        if qemu.has_open(&layer.image) {
            self.ports.block.bring_in_step(qemu.life, layer)?;
            was_running = self.stand_still(qemu.life)?;
            if !self.ports.block.leave_layer(qemu.life, layer)? {
                if was_running {
                    self.wake(qemu.life)?;
                }
                return Err(Error::new(
                    ErrorKind::Toolstack,
                    format!("QEMU gave up copying {}", layer.target()),
                ));
            }
        } else {
            let below = layer.backing.as_ref();
            let is_below = below.is_some_and(|below| qemu.has_open(&below.image));
            match (is_below, life == Some(qemu.life)) {
                (false, _) => return self.leave_closed(layer),
                // It was never put on top, or was left before.
                (true, true) => {}
                (true, false) if self.is_retired(layer)? => return Ok(()),
                (true, false) => return Err(self.not_its_layer(layer)),
            }
        }
        // When the guest writes again the image below is the newer one, and everybody knows.
        self.point_back(layer)?;
        if !self.is_retired(layer)? {
            self.ports.images.retire_layer(layer)?;
        }
        if was_running || (wake && self.killed_at.is_some()) {
            self.wake(qemu.life)?;
        }
        Ok(())
    }

    /// Sees to it that the guest does not write. Returns whether it did run.
    fn stand_still(&self, life: DomainLife) -> Result<bool> {
        let state = |view: Option<DomainView>| view.map(|view| view.state);
        let was_running = state(self.look(life)?) == Some(DomainState::Running);
        if was_running {
            self.ports.toolstack.pause(life.domid)?;
        }
        match state(self.look(life)?) {
            Some(DomainState::Paused | DomainState::Suspended) => Ok(was_running),
            // xl may have read already on which images it will go on.
            _ => Err(Error::new(
                ErrorKind::DomainState,
                format!("domain {} is ending or rebooting", life.domid),
            )),
        }
    }

    /// Tells libxl of a disk that is the image below a layer now.
    fn point_back(&self, layer: &Layer) -> Result<()> {
        let (Some(qemu), Some(to)) = (self.look_at_qemu()?, layer.backing.clone()) else {
            return Ok(());
        };
        if qemu.has_open(&layer.image) || !qemu.has_open(&to.image) {
            return Ok(());
        }
        let from = layer.target();
        self.ports
            .toolstack
            .point_disks(qemu.life.domid, &[Switch { from, to }])
    }

    /// What a guest that is gone wrote to a layer belongs onto the image as it was left, and to no other.
    fn leave_closed(&self, layer: &Layer) -> Result<()> {
        if self.is_retired(layer)? {
            return Ok(());
        }
        self.refuse_if_below_is_newer(layer)?;
        self.ports.images.commit_layer(layer)?;
        if let Some(below) = &layer.backing {
            self.ports.images.make_durable(&below.image)?;
        }
        self.require_still_closed(layer)?;
        self.ports.images.retire_layer(layer)
    }

    /// Whether the image below a layer holds all that the layer did.
    fn is_retired(&self, layer: &Layer) -> Result<bool> {
        let facts = self.ports.images.facts(&layer.image, ImageFormat::Qcow2)?;
        facts.map(|facts| facts.retired).ok_or_else(|| {
            Error::new(
                ErrorKind::NeedsRepair,
                format!("{} of {} is missing", layer.image.display(), layer.vdev),
            )
            .hint("is its file system mounted?")
        })
    }

    pub(super) fn apply_images(&self, id: SnapshotId, disks: &[DiskTarget]) -> Result<()> {
        self.refuse_if_used_since(disks)?;
        disks.iter().try_for_each(|disk| {
            self.write_ourselves()?;
            self.ports.images.apply_snapshot(disk, &id.tag())
        })
    }

    pub(super) fn delete_tags(&self, id: SnapshotId, disks: &[DiskTarget]) -> Result<()> {
        let tag = id.tag();
        let live = self.changeable_nodes(disks)?;
        for disk in disks {
            match &live {
                Some((view, Some(nodes))) if nodes.iter().any(|node| node.image == disk.image) => {
                    self.ports.block.delete_snapshot(view.life, &tag, disk)?;
                }
                _ => {
                    self.ports.images.delete_snapshot(disk, &tag)?;
                    self.release_leaks(disk);
                }
            }
        }
        Ok(())
    }

    /// Where we were killed, the host may have gone down with the image's QEMU at work. What is lost otherwise is room,
    /// so nothing fails for it.
    fn release_leaks(&self, disk: &DiskTarget) {
        if self.killed_at.is_none() {
            return;
        }
        if let Err(error) = self.ports.images.release_leaks(disk) {
            tracing::warn!("{}", error.report());
        }
    }
}
