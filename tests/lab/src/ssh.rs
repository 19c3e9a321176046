//! Dom0 over ssh. All commands share one connection, since a handshake takes a second under emulation.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::process::{self, Input, Output};

/// The way into one lab.
#[derive(Debug, Clone)]
pub struct Ssh {
    run_dir: PathBuf,
    key: PathBuf,
    port: u16,
}

impl Ssh {
    /// The way through `port` with `key`; the control socket is in `run_dir`.
    pub fn new(run_dir: &Path, key: PathBuf, port: u16) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            key,
            port,
        }
    }

    /// An ssh command that lacks only what to run in dom0.
    pub fn command(&self) -> Command {
        let mut command = Command::new("ssh");
        // A control socket's path must be short: it is given relative to the run directory.
        command
            .current_dir(&self.run_dir)
            .arg("-F/dev/null")
            .arg("-i")
            .arg(&self.key)
            .arg("-p")
            .arg(self.port.to_string())
            .args(["-o", "BatchMode=yes", "-o", "LogLevel=ERROR"])
            .args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
            ])
            .args(["-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=10"])
            // The default exchange is post-quantum and slow to emulate.
            .args(["-o", "KexAlgorithms=curve25519-sha256"])
            .args([
                "-o",
                "ServerAliveInterval=15",
                "-o",
                "ServerAliveCountMax=8",
            ])
            .args(["-o", "ControlPath=ssh"]);
        command
    }

    /// Opens the shared connection. Without it every command still works, each with a handshake of its own.
    ///
    /// # Errors
    /// When dom0 does not answer yet.
    pub fn connect(&self) -> Result<()> {
        // The process in the background must not keep any pipe of ours open.
        let mut child = self
            .command()
            .args([
                "-M",
                "-N",
                "-f",
                "-o",
                "ControlPersist=yes",
                "root@127.0.0.1",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        match process::wait(&mut child, Duration::from_secs(20))? {
            Some(0) => Ok(()),
            _ => bail!("dom0 does not answer on port {}", self.port),
        }
    }

    /// Whether the shared connection is there.
    pub fn is_connected(&self) -> bool {
        self.control("check")
    }

    /// Closes the shared connection, if there is one.
    pub fn disconnect(&self) {
        self.control("exit");
        // After a power cut the process may be gone and its socket not.
        drop(std::fs::remove_file(self.run_dir.join("ssh")));
    }

    /// Runs `script` with dom0's shell.
    ///
    /// # Errors
    /// When ssh itself fails, or the script does not end within `limit`. The script's own status is in the output.
    pub fn run(&self, script: &str, input: Input, limit: Duration) -> Result<Output> {
        let output = process::run(
            self.command().args(["root@127.0.0.1", script]),
            input,
            limit,
        )?;
        // 255 is ssh's own, also for a script that a signal ended. Scripts of ours do not use it.
        if output.status == 255 {
            bail!(
                "`{script}` was killed in dom0, or ssh to port {} failed: {}",
                self.port,
                output.stderr.trim()
            );
        }
        Ok(output)
    }

    fn control(&self, verb: &str) -> bool {
        let mut command = self.command();
        command.args(["-O", verb, "root@127.0.0.1"]);
        process::run(&mut command, Input::Nothing, Duration::from_secs(10))
            .is_ok_and(|output| output.status == 0)
    }
}

/// Quotes `word` for a shell.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_come_through_a_shell() {
        for word in [
            "",
            "plain",
            "two words",
            "it's",
            "$HOME `id` \"x\" \\",
            "a\nb",
        ] {
            let script = format!("printf %s {}", quote(word));
            let output = process::run_ok(
                Command::new("sh").args(["-c", &script]),
                Duration::from_secs(10),
            );
            assert_eq!(output.unwrap(), word);
        }
    }
}
