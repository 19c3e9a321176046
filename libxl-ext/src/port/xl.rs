//! `xl restore`.
//!
//! Stock xl restores so that its own monitor process comes along: what the guest does afterwards
//! (reboot, poweroff, crash) is handled as for every domain that xl started.

use super::feed::fed;
use super::subprocess::{self, Death};
use crate::error::{Error, Result};
use crate::event::Observer;
use crate::memory::{Content, Kept, header, read_header};
use crate::model::configuration::redirect;
use crate::plan::Switch;
use std::ffi::OsStr;
use std::process::{Command, Stdio};

/// Restores the domain by the `xl` on the path, and leaves it paused.
pub(super) fn restore_paused(
    memory: &Kept,
    switches: &[Switch],
    observer: &dyn Observer,
) -> Result<()> {
    let what = format!("restore {}", memory.image.display());
    let failed = |error: Error| error.while_doing(&what);
    let mut content = memory.open().map_err(failed)?;
    if switches.is_empty() && matches!(content, Content::Plain(_)) {
        return restore(memory.image.as_os_str(), Stdio::null(), &what);
    }
    // Through a pipe, so that the image needs no second copy for a line in its head. xl reads what it is given
    // from its beginning to its end, and its monitor has let go of it by the time xl returns.
    let mut head = Vec::new();
    if !switches.is_empty() {
        let configuration = read_header(&mut content).map_err(failed)?;
        head = header(&redirect(&configuration, switches).map_err(failed)?)?;
    }
    fed(&head, content, &what, observer, |from| {
        restore(OsStr::new("/dev/stdin"), from.into(), &what)
    })
}

fn restore(image: &OsStr, input: Stdio, what: &str) -> Result<()> {
    let mut command = Command::new("xl");
    command.args([OsStr::new("restore"), OsStr::new("-p"), image]);
    // A restore that outlived us would give the domain to nobody: recovery could not tell it from one
    // that was completed.
    subprocess::run_with_input(command, Death::WithUs, input, what).map(drop)
}
