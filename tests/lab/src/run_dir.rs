//! The directory of one run: its disk, its serial log, and how to reach it.
//!
//! | file | what it is |
//! |---|---|
//! | `state.json` | [`State`], for other invocations of `lab` |
//! | `disk.qcow2` | what this run wrote, over the cached image; outlives a power cut |
//! | `serial.log` | Xen's and dom0's console, of all boots |
//! | `qemu.log` | what QEMU itself said |
//! | `ssh` | the control socket of the shared ssh connection |

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::link::Link;

const PREFIX: &str = "libxl-ext-lab-";

/// What one invocation of `lab` must know of a lab that another one booted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// The directory of the image that the disk is based on.
    pub image: PathBuf,
    /// Virtual CPUs of the host.
    pub smp: u32,
    /// Memory of the host in MiB.
    pub mem: u32,
    /// Its end of a private network, if it is on one.
    #[serde(default)]
    pub link: Option<Link>,
    /// The port on loopback that leads to dom0's ssh; chosen anew at each boot.
    pub port: u16,
    /// The outer QEMU, when it was last started.
    pub qemu: Option<QemuId>,
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuId {
    /// Process number.
    pub pid: i32,
    /// Start time, as [`crate::process::start_time`] gives it.
    pub started: u64,
}

/// The directory of one run.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The directory of the lab that is called `name`; it need not exist.
    ///
    /// # Errors
    /// When `name` cannot be part of a file name.
    pub fn of(name: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 40 || !name.chars().all(plain) {
            bail!("{name:?} is no name for a lab: use up to 40 letters, digits, - and _");
        }
        Ok(Self {
            path: std::env::temp_dir().join(format!("{PREFIX}{name}")),
        })
    }

    /// The names of all labs that have a directory.
    ///
    /// # Errors
    /// When the directory of temporary files cannot be read.
    pub fn names() -> Result<Vec<String>> {
        let temp = std::env::temp_dir();
        let entries =
            fs::read_dir(&temp).with_context(|| format!("cannot read {}", temp.display()))?;
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| name.strip_prefix(PREFIX).map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Creates it, for its owner only: the key that it leads to opens a root shell.
    ///
    /// # Errors
    /// When it exists or cannot be created.
    pub fn create(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&self.path)
            .with_context(|| format!("cannot create the run directory {}", self.path.display()))
    }

    /// Reads the state; `None` when there is no such run.
    ///
    /// # Errors
    /// When there is one and it cannot be understood.
    pub fn state(&self) -> Result<Option<State>> {
        let path = self.file("state.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let state = serde_json::from_str(&text).with_context(|| {
            format!(
                "{} is damaged; remove {}",
                path.display(),
                self.path.display()
            )
        })?;
        Ok(Some(state))
    }

    /// Writes the state, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, state: &State) -> Result<()> {
        let path = self.file("state.json");
        let new = self.file("state.json.new");
        let text = serde_json::to_string_pretty(state).context("cannot encode the state")?;
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the directory and all in it.
    ///
    /// # Errors
    /// When something in it cannot be removed.
    pub fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.path)
            .with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_within_the_directory() {
        assert!(RunDir::of("dev-1").is_ok());
        for name in ["", "a/b", "..", "a b", "x".repeat(41).as_str()] {
            assert!(RunDir::of(name).is_err(), "{name:?}");
        }
    }
}
