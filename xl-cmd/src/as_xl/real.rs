//! The real `xl`: the first one on the path that is not this program.

use libxl_ext::{Error, ErrorKind, Result};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Says in the environment which process became the real one, so that it is noticed if that is one of us again:
/// another installation.
const BECAME: &str = "XL_EXT_BECAME_XL";

/// Becomes it. Returns only if that fails.
pub(super) fn become_xl(arguments: &[OsString]) -> Error {
    let own = std::process::id().to_string();
    if std::env::var(BECAME).is_ok_and(|pid| pid == own) {
        return Error::new(
            ErrorKind::Toolstack,
            "there is no other xl on the path than this program",
        )
        .hint("is it installed twice under that name?");
    }
    match find() {
        Err(error) => error,
        Ok(xl) => {
            let error = Command::new(&xl).args(arguments).env(BECAME, own).exec();
            Error::io(format!("run {}", xl.display()), error)
        }
    }
}

/// Asks it what it would make of the arguments of `create`, which does nothing. None if it refuses them: it
/// says so itself when it is run for real.
///
/// # Errors
/// If the configuration comes from standard input, which can be read once only.
pub(super) fn dry_run_of_create(arguments: &[OsString]) -> Result<Option<Vec<u8>>> {
    if arguments
        .iter()
        .any(|word| word == "-" || word == "/dev/stdin")
    {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "a configuration from standard input cannot be looked at before it is used",
        )
        .hint("put it into a file, or call the real xl by its path"));
    }
    let output = dry_run(arguments)?;
    Ok(output.status.success().then_some(output.stdout))
}

/// Has it say what it would make of the arguments of `create`.
pub(super) fn dry_run(arguments: &[OsString]) -> Result<Output> {
    let xl = find()?;
    Command::new(&xl)
        .args(["-N", "create"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::io(format!("run {}", xl.display()), error))
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
