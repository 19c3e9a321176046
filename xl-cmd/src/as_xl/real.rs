//! The real `xl`: the first one on the path that is not this program.

use libxl_ext::{Error, ErrorKind, Result};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Becomes it. Returns only if that fails.
pub(super) fn become_xl(arguments: &[OsString]) -> Error {
    match find() {
        Err(error) => error,
        Ok(xl) => {
            let error = Command::new(&xl).args(arguments).exec();
            Error::io(format!("run {}", xl.display()), error)
        }
    }
}

/// Asks it what it would make of the arguments of `create`, which does nothing. None if it refuses them: it
/// says so itself when it is run for real.
pub(super) fn dry_run_of_create(arguments: &[OsString]) -> Result<Option<Vec<u8>>> {
    let xl = find()?;
    let output = Command::new(&xl)
        .args(["-N", "create"])
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|error| Error::io(format!("run {}", xl.display()), error))?;
    Ok(output.status.success().then_some(output.stdout))
}

fn find() -> Result<PathBuf> {
    let own = std::env::current_exe()
        .and_then(|own| own.canonicalize())
        .ok();
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join("xl"))
        .find(|xl| {
            let target = xl.canonicalize().ok();
            target.is_some_and(|target| target.is_file() && Some(&target) != own.as_ref())
        })
        .ok_or_else(|| {
            Error::new(ErrorKind::Toolstack, "there is no other xl on the path")
                .hint("is /usr/sbin in PATH?")
        })
}
