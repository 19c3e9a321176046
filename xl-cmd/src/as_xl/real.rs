//! The real `xl`: the first one on the path that is not this program.

use libxl_ext::{Error, ErrorKind, Result};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
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

/// Runs it to its end, with our input and output.
pub(super) fn run(arguments: &[OsString]) -> Result<()> {
    let xl = find()?;
    let what = || {
        let words = arguments.iter().map(|word| word.to_string_lossy());
        format!("xl {}", words.collect::<Vec<_>>().join(" "))
    };
    let status = Command::new(&xl)
        .args(arguments)
        .stdin(Stdio::null())
        .status()
        .map_err(|error| Error::io(format!("run {}", xl.display()), error))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Toolstack, what()).because(status.to_string()))
}

/// Asks it what it would make of the arguments of `create`, which does nothing. None if it refuses them: it
/// says so itself when it is run for real.
///
/// # Errors
/// If the configuration comes from standard input or a pipe, which can be read once only.
pub(super) fn dry_run_of_create(arguments: &[OsString]) -> Result<Option<Vec<u8>>> {
    let is_once = |word: &&OsString| paths_in(word).any(is_read_once);
    if let Some(word) = arguments.iter().find(is_once) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "a configuration from {} cannot be looked at before it is used",
                match word.to_str() {
                    Some("-") => "standard input",
                    Some(word) => word,
                    None => "a pipe",
                }
            ),
        )
        .hint("put it into a file, or call the real xl by its path"));
    }
    let output = dry_run(arguments)?;
    Ok(output.status.success().then_some(output.stdout))
}

/// What in a word of a command line may be the path of a configuration file: the word, or what follows an option.
fn paths_in(word: &OsStr) -> impl Iterator<Item = &OsStr> {
    let bytes = word.as_bytes();
    let behind = |at: usize| bytes.get(at..).map(OsStr::from_bytes);
    let of_long = bytes.iter().position(|byte| *byte == b'=');
    let of_short = bytes.starts_with(b"-f").then_some("-f".len());
    let behind_options = of_long.map(|at| at + 1).into_iter().chain(of_short);
    [word].into_iter().chain(behind_options.filter_map(behind))
}

/// Whether who reads it takes it away from whoever comes next: a pipe, a terminal. Standard input counts, whatever
/// it is, since the dry run has none.
fn is_read_once(path: &OsStr) -> bool {
    let stdin = ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"];
    if stdin.iter().any(|name| path == *name) {
        return true;
    }
    let is_null = Path::new(path) == Path::new("/dev/null");
    std::fs::metadata(path).is_ok_and(|found| {
        let kind = found.file_type();
        kind.is_fifo() || kind.is_socket() || (kind.is_char_device() && !is_null)
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_once_is_not_read_before_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let (pipe, file) = (directory.path().join("pipe"), directory.path().join("file"));
        let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        std::fs::write(&file, "").unwrap();
        let is_once = |word: String| {
            let word = OsString::from(word);
            paths_in(&word).any(is_read_once)
        };
        let (pipe, file) = (pipe.display(), file.display());
        for word in [
            "-".to_owned(),
            "/dev/stdin".into(),
            "/dev/fd/0".into(),
            "--defconfig=-".into(),
            format!("{pipe}"),
            format!("-f{pipe}"),
            format!("--defconfig={pipe}"),
        ] {
            assert!(is_once(word.clone()), "{word}");
            // Nobody writes to the pipe: it would wait for ever.
            let refused = dry_run_of_create(&[word.into()]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported);
        }
        for word in [
            format!("{file}"),
            format!("-f{file}"),
            "/dev/null".into(),
            "vcpus=2".into(),
            "-p".into(),
            "/nowhere".into(),
        ] {
            assert!(!is_once(word.clone()), "{word}");
        }
    }
}
