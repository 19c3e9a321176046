//! `xl restore` and `libxl_domain_create_restore` behind [`Restorer`].

use super::libxl::Libxl;
use super::{Restorer, xl};
use crate::error::{Error, Result};
use crate::memory;
use crate::model::configuration::redirect;
use crate::model::domain::Keeper;
use crate::plan::Switch;
use crate::store::atomic;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

/// Both ways to restore a domain.
pub struct Restore;

impl Restorer for Restore {
    fn restore_paused(&self, image: &Path, keeper: Keeper, switches: &[Switch]) -> Result<()> {
        match keeper {
            Keeper::Xl => xl::restore_paused(image, switches),
            Keeper::Caller => restore_paused(image, switches),
        }
    }
}

/// By libxl, in a context of its own. No process is left behind.
fn restore_paused(image: &Path, switches: &[Switch]) -> Result<()> {
    let failed = |error: Error| error.while_doing(format!("restore {}", image.display()));
    let mut file: File = atomic::open_own(image).map_err(failed)?;
    // Unbuffered, so that libxl goes on reading where the header ends.
    let configuration = memory::read_header(&mut file).map_err(failed)?;
    let configuration = redirect(&configuration, switches).map_err(failed)?;
    let libxl = Libxl::open().map_err(failed)?;
    libxl
        .create_restore(&configuration, file.as_fd())
        .map(drop)
        .map_err(failed)
}
