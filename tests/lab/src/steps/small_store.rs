//! A store without much room, for the tests in which that runs out.

use anyhow::{Context as _, Result};

use crate::host::Lab;

/// A file system in dom0's memory for a store, for as long as this is there.
pub(crate) struct SmallStore<'lab> {
    lab: &'lab Lab,
    /// Where it is in dom0.
    pub(crate) mount: &'static str,
}

impl<'lab> SmallStore<'lab> {
    /// One with room for so many MiB.
    pub(crate) fn of(lab: &'lab Lab, mib: u32) -> Result<Self> {
        let mount = "/run/lab-small-store";
        lab.run(&format!(
            "mkdir -p {mount} && mount -t tmpfs -o size={mib}m,mode=700 store {mount}"
        ))?;
        Ok(Self { lab, mount })
    }

    /// The directory of the store.
    pub(crate) fn dir(&self) -> String {
        format!("{}/store", self.mount)
    }

    /// How many MiB of it are taken.
    pub(crate) fn used(&self) -> Result<u32> {
        let command = format!(
            "df -BM --output=used {} | tail -n 1 | tr -d 'M '",
            self.mount
        );
        let used = self.lab.run(&command)?;
        used.parse().with_context(|| format!("df said {used:?}"))
    }

    /// Gives it room for so many MiB from now on.
    pub(crate) fn resize(&self, mib: u32) -> Result<()> {
        let command = format!("mount -o remount,size={mib}m {}", self.mount);
        self.lab.run(&command).map(drop)
    }
}

impl Drop for SmallStore<'_> {
    fn drop(&mut self) {
        // Whoever still has a file in it open keeps the file system, and nobody else finds it any more.
        let _ = self.lab.run(&format!("umount -l {}", self.mount));
    }
}
