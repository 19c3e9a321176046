//! `libxl_domain_create_restore` behind [`Restorer`]: for toolstacks that act themselves on what the
//! guest does afterwards (reboot, poweroff, crash), as libxl's users do for all their domains.

use super::Restorer;
use super::libxl::Libxl;
use crate::error::{Error, Result};
use crate::memory;
use crate::store::atomic;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

/// libxl, in a context of its own.
pub struct CreateRestore(Libxl);

impl CreateRestore {
    /// Opens a context.
    ///
    /// # Errors
    /// If this is not a Xen host's domain 0, or the caller is not root.
    pub fn open() -> Result<Self> {
        Libxl::open().map(Self)
    }
}

impl Restorer for CreateRestore {
    fn restore_paused(&self, image: &Path) -> Result<()> {
        let failed = |error: Error| error.while_doing(format!("restore {}", image.display()));
        let mut file: File = atomic::open_own(image).map_err(failed)?;
        // Unbuffered, so that libxl goes on reading where the header ends.
        let configuration = memory::read_header(&mut file).map_err(failed)?;
        self.0
            .create_restore(&configuration, file.as_fd())
            .map(drop)
            .map_err(failed)
    }
}
