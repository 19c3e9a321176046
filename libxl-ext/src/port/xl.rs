//! `xl restore`.
//!
//! Stock xl restores so that its own monitor process comes along: what the guest does afterwards
//! (reboot, poweroff, crash) is handled as for every domain that xl started.

use super::subprocess::{self, Death};
use crate::error::{Error, Result};
use crate::memory;
use crate::model::configuration::redirect;
use crate::plan::Switch;
use crate::store::atomic;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Restores the domain by the `xl` on the path, and leaves it paused.
pub(super) fn restore_paused(image: &Path, switches: &[Switch]) -> Result<()> {
    let what = format!("restore {}", image.display());
    if switches.is_empty() {
        return restore(image.as_os_str(), Stdio::null(), &what);
    }
    // Through a pipe, so that the image needs no second copy for a line in its head.
    let failed = |error: Error| error.while_doing(&what);
    let mut file = atomic::open_own(image).map_err(failed)?;
    let configuration = memory::read_header(&mut file).map_err(failed)?;
    let head = memory::header(&redirect(&configuration, switches).map_err(failed)?)?;
    let (reader, writer) = std::io::pipe().map_err(|error| Error::io(&what, error))?;
    std::thread::scope(|scope| {
        let feeder = scope.spawn(move || feed(&head, file, writer));
        let restored = restore(OsStr::new("/dev/stdin"), reader.into(), &what);
        let fed = feeder.join().unwrap_or(Ok(()));
        // A restore that failed stopped reading, so its word comes first.
        restored.and(fed.map_err(|error| Error::io(format!("read {}", image.display()), error)))
    })
}

fn feed(head: &[u8], mut rest: File, mut to: std::io::PipeWriter) -> std::io::Result<()> {
    to.write_all(head)?;
    std::io::copy(&mut rest, &mut to).map(drop)
}

fn restore(image: &OsStr, input: Stdio, what: &str) -> Result<()> {
    let mut command = Command::new("xl");
    command.args([OsStr::new("restore"), OsStr::new("-p"), image]);
    // A restore that outlived us would give the domain to nobody: recovery could not tell it from one
    // that was completed.
    subprocess::run_with_input(command, Death::WithUs, input, what).map(drop)
}
