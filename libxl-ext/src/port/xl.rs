//! `xl restore` behind [`Restorer`].
//!
//! Stock xl restores so that its own monitor process comes along: what the guest does afterwards
//! (reboot, poweroff, crash) is handled as for every domain that xl started.

use super::Restorer;
use super::subprocess::{self, Death};
use crate::error::Result;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// The `xl` on the path.
pub struct Xl;

impl Restorer for Xl {
    fn restore_paused(&self, image: &Path) -> Result<()> {
        let mut command = Command::new("xl");
        command.args([OsStr::new("restore"), OsStr::new("-p"), image.as_os_str()]);
        // A restore that outlived us would give the domain to nobody: recovery could not tell it from
        // one that was completed.
        subprocess::run(
            command,
            Death::WithUs,
            &format!("restore {}", image.display()),
        )
        .map(drop)
    }
}
