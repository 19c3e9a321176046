//! What a guest is made of: its configuration file and its disks.

use std::fmt::Write as _;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{dir_of, disk_path};
use crate::host::Lab;

/// What sort of domain a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Paravirtual: the quickest by far.
    Pv,
    /// Paravirtual in a hardware container.
    Pvh,
    /// Full virtualisation, with a device model and firmware.
    Hvm,
}

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    pub(super) name: String,
    kind: Kind,
    memory: u32,
    vcpus: u32,
    disks: Vec<u32>,
    other_disks: Vec<String>,
    lines: Vec<String>,
}

impl GuestSpec {
    /// A PV guest of 96 MiB without a disk; with 64 Debian's kernel does not start.
    pub fn pv(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: Kind::Pv,
            memory: 96,
            vcpus: 1,
            disks: vec![],
            other_disks: vec![],
            lines: vec![],
        }
    }

    /// A guest of another kind; PVH and HVM get the 256 MiB that Debian's kernel needs there.
    #[must_use]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        if kind != Kind::Pv {
            self.memory = self.memory.max(256);
        }
        self
    }

    /// With this much memory, in MiB.
    #[must_use]
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory = mib;
        self
    }

    /// With so many virtual CPUs.
    #[must_use]
    pub fn vcpus(mut self, count: u32) -> Self {
        self.vcpus = count;
        self
    }

    /// With qcow2 disks of these sizes in MiB: xvda, xvdb, ...
    #[must_use]
    pub fn disks(mut self, sizes: &[u32]) -> Self {
        self.disks = sizes.to_vec();
        self
    }

    /// With one more disk, as an entry of `disk=[...]` in the configuration file says it.
    #[must_use]
    pub fn another_disk(mut self, entry: &str) -> Self {
        self.other_disks.push(format!("\"{entry}\""));
        self
    }

    /// With one more line in its configuration file, such as `on_reboot="destroy"`.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// The directory of its files in dom0.
    pub fn dir(&self) -> String {
        dir_of(&self.name)
    }

    /// Its configuration file's path in dom0.
    pub fn config_path(&self) -> String {
        format!("{}/guest.cfg", self.dir())
    }

    /// Its configuration file's text.
    pub fn config(&self) -> String {
        let mut text = format!("name=\"{}\"\n", self.name);
        let (kind, kernel) = match self.kind {
            Kind::Pv => ("pv", "vmlinux"),
            Kind::Pvh => ("pvh", "vmlinux"),
            // Its firmware starts the kernel, which is the one that takes only the packed form.
            Kind::Hvm => ("hvm", "vmlinuz"),
        };
        let disks: Vec<_> = (0..self.disks.len())
            .map(|index| {
                let vdev = vdev(index);
                format!(
                    "\"format=qcow2,vdev={vdev},access=rw,backendtype=qdisk,target={}\"",
                    disk_path(&self.name, &vdev)
                )
            })
            .chain(self.other_disks.iter().cloned())
            .collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "type=\"{kind}\"\nkernel=\"/root/guest/{kernel}\"\nramdisk=\"/root/guest/initrd\"\n\
             extra=\"console=hvc0 panic=1 quiet clearcpuid=112\"\nmemory={}\nvcpus={}\ndisk=[{}]",
            self.memory,
            self.vcpus,
            disks.join(",")
        );
        if self.kind != Kind::Pv {
            // The emulated SVM reports RDTSCP wrongly, so a guest whose TSC Xen emulates dies.
            text.push_str("tsc_mode=\"native\"\n");
        }
        if self.kind == Kind::Hvm {
            // No serial port either: a boot that wrote all its messages to one took four minutes.
            text.push_str("vga=\"none\"\nvnc=0\n");
        }
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// Makes its disks and writes its configuration file, and does not start it.
    ///
    /// # Errors
    /// When dom0 cannot do so.
    pub fn prepare(&self, lab: &Lab) -> Result<()> {
        let mut script = format!("mkdir -p {}", self.dir());
        for (index, size) in self.disks.iter().enumerate() {
            let path = disk_path(&self.name, &vdev(index));
            let _ = write!(script, " && qemu-img create -q -f qcow2 {path} {size}M");
        }
        lab.run(&script)?;
        lab.put_text(&self.config(), &self.config_path())
    }
}

fn vdev(index: usize) -> String {
    let letter = b"abcdefghijklmnop".get(index).copied().unwrap_or(b'p');
    format!("xvd{}", char::from(letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_with_two_disks_names_both() {
        let config = GuestSpec::pv("g")
            .disks(&[64, 32])
            .line("on_crash=\"destroy\"")
            .config();
        assert!(config.contains(
            "vdev=xvda,access=rw,backendtype=qdisk,target=/var/lib/lab/guests/g/xvda.qcow2"
        ));
        assert!(config.contains("vdev=xvdb"));
        assert!(config.ends_with("on_crash=\"destroy\"\n"));
    }

    #[test]
    fn a_hardware_guest_keeps_the_native_clock() {
        let config = GuestSpec::pv("g").kind(Kind::Pvh).config();
        assert!(config.contains("tsc_mode=\"native\""));
        assert!(config.contains("memory=256"));
    }
}
