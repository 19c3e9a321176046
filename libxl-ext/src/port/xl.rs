//! `xl restore`.
//!
//! Stock xl restores so that its own monitor process comes along: what the guest does afterwards
//! (reboot, poweroff, crash) is handled as for every domain that xl started.

use super::feed::{fed_through, image_pipe};
use super::subprocess::{self, Death};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::memory::{Content, Kept, header, read_header};
use crate::model::configuration::redirect;
use crate::plan::Switch;
use std::ffi::OsStr;
use std::io::PipeWriter;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

/// An `xl restore` that waits for the first byte of an image. If none comes, it fails by itself and has changed nothing.
pub(super) struct Ready {
    to: PipeWriter,
    /// xl is killed if the thread that started it ends, so that one waits for it. It starts it too: until the new
    /// process has left our memory, whoever starts it stands still.
    xl: JoinHandle<Result<()>>,
}

impl Ready {
    /// Starts it.
    pub(super) fn start(what: &str) -> Result<Self> {
        let (from, to) = image_pipe(what)?;
        let said = what.to_owned();
        let xl = std::thread::Builder::new()
            .spawn(move || restore(OsStr::new("/dev/stdin"), from.into(), &said))
            .map_err(|error| Error::io(what, error))?;
        Ok(Self { to, xl })
    }
}

/// Restores the domain by the `xl` on the path, the one that is ready if there is one, and leaves it paused.
pub(super) fn restore_paused(
    ready: Option<Ready>,
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
    let Ready { to, xl } = match ready {
        Some(ready) => ready,
        None => Ready::start(&what)?,
    };
    fed_through(to, &head, content, &what, observer, || {
        xl.join().unwrap_or_else(|_| {
            let context = "the thread that runs xl panicked";
            Err(Error::new(ErrorKind::Toolstack, context))
        })
    })
}

fn restore(image: &OsStr, input: Stdio, what: &str) -> Result<()> {
    let mut command = Command::new("xl");
    command.args([OsStr::new("restore"), OsStr::new("-p"), image]);
    // A restore that outlived us would give the domain to nobody: recovery could not tell it from one
    // that was completed.
    subprocess::run_with_input(command, Death::WithUs, input, what).map(drop)
}
