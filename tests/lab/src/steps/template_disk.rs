//! Disks on templates, and what should be in them.

use anyhow::{Result, ensure};

use crate::guest::{Guest, GuestSpec};
use crate::host::Lab;
use crate::random::Random;

/// Where an image is written out to be compared.
const FLAT: &str = "/root/pulled.flat";

/// A disk on a template that is full of random bytes, with a file beside it that is kept as the disk should be.
pub(super) struct Pulled<'a> {
    lab: &'a Lab,
    dir: String,
    vdev: String,
    mib: u32,
}

impl<'a> Pulled<'a> {
    /// Makes the images.
    pub(super) fn make(lab: &'a Lab, dir: &str, vdev: &str, mib: u32) -> Result<Self> {
        let this = Self {
            lab,
            dir: dir.to_owned(),
            vdev: vdev.to_owned(),
            mib,
        };
        let (template, image, expected) = (this.template(), this.image(), this.expected());
        lab.run(&format!(
            "mkdir -p {dir} && head -c {mib}M /dev/urandom > {template} && cp {template} {expected} && \
             qemu-img create -q -f qcow2 -b {template} -F raw {image}"
        ))?;
        Ok(this)
    }

    pub(super) fn template(&self) -> String {
        format!("{}/{}.template.raw", self.dir, self.vdev)
    }

    pub(super) fn image(&self) -> String {
        format!("{}/{}.top.qcow2", self.dir, self.vdev)
    }

    fn expected(&self) -> String {
        format!("{}/{}.expected", self.dir, self.vdev)
    }

    /// As `disk=[...]` says it.
    pub(super) fn entry(&self) -> String {
        let (vdev, image) = (&self.vdev, self.image());
        format!("format=qcow2,vdev={vdev},access=rw,backendtype=qdisk,target={image}")
    }

    /// The guest writes somewhere, and so do we.
    pub(super) fn write(&self, guest: &Guest<'_>, random: &mut Random) -> Result<()> {
        let at = 1 + u32::try_from(random.below(u64::from(self.mib) - 2))?;
        let word = format!("w{}", random.below(1_000_000));
        guest.write(&self.vdev, at, 1, &word)?;
        let sector = 2048 + u32::try_from(random.below(u64::from(self.mib - 1) * 2048))?;
        guest.write_sector(&self.vdev, sector, word.as_bytes())?;
        let expected = self.expected();
        self.lab.run(&format!(
            "yes {word} | head -c 1M | dd of={expected} bs=1M seek={at} conv=notrunc iflag=fullblock status=none && \
             printf %s {word} | dd of={expected} bs=512 seek={sector} count=1 conv=notrunc,sync status=none"
        ))?;
        Ok(())
    }

    /// Every byte of the image `image` is as it should be, but for the marks in the first MiB. What is below the image
    /// does not count.
    pub(super) fn ensure_alone(&self) -> Result<()> {
        let (image, expected) = (self.image(), self.expected());
        let info = self
            .lab
            .run(&format!("qemu-img info -U -f qcow2 {image}"))?;
        ensure!(
            !info.contains("backing file"),
            "it stands on something: {info}"
        );
        self.lab.run(&format!(
            "qemu-img convert -U -f qcow2 -O raw {image} {FLAT} && cmp -i 1048576 {FLAT} {expected} && \
             rm {FLAT} && qemu-img check -U -q -f qcow2 {image}"
        ))?;
        Ok(())
    }

    /// The same, of an image that stands on its template still.
    pub(super) fn ensure_on_template(&self) -> Result<()> {
        let (image, template, expected) = (self.image(), self.template(), self.expected());
        let options = format!(
            "driver=qcow2,file.driver=file,file.filename={image},backing.driver=raw,backing.file.driver=file,\
             backing.file.filename={template},force-share=on"
        );
        self.lab.run(&format!(
            "qemu-img convert --image-opts -O raw {options} {FLAT} && cmp -i 1048576 {FLAT} {expected} && \
             rm {FLAT}"
        ))?;
        Ok(())
    }
}

/// A guest with two such disks.
pub(super) fn two_on_templates(
    lab: &Lab,
    spec: GuestSpec,
    mib: u32,
) -> Result<(GuestSpec, [Pulled<'_>; 2])> {
    let disks = [
        Pulled::make(lab, &spec.dir(), "xvda", mib)?,
        Pulled::make(lab, &spec.dir(), "xvdb", mib)?,
    ];
    let spec = disks
        .iter()
        .fold(spec, |spec, disk| spec.another_disk(&disk.entry()));
    Ok((spec, disks))
}
