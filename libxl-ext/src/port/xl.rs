//! `xl restore`.
//!
//! Stock xl restores so that its own monitor process comes along: what the guest does afterwards
//! (reboot, poweroff, crash) is handled as for every domain that xl started.

use super::subprocess::{self, Death};
use crate::error::Result;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// Restores the domain by the `xl` on the path, and leaves it paused.
pub(super) fn restore_paused(image: &Path) -> Result<()> {
    let mut command = Command::new("xl");
    command.args([OsStr::new("restore"), OsStr::new("-p"), image.as_os_str()]);
    // A restore that outlived us would give the domain to nobody: recovery could not tell it from one
    // that was completed.
    subprocess::run(
        command,
        Death::WithUs,
        &format!("restore {}", image.display()),
    )
    .map(drop)
}
