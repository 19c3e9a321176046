//! A script in dom0 that goes on beside us, and what it says.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::host::Lab;

/// How long it may be silent: long enough for any command on a loaded machine.
const LIMIT: Duration = Duration::from_secs(300);

/// It is ended with us.
pub(crate) struct Script {
    ssh: Child,
    said: Receiver<String>,
    reader: Option<JoinHandle<()>>,
    heard: Vec<String>,
}

impl Script {
    pub(crate) fn begin(lab: &Lab, script: &str) -> Result<Self> {
        let mut ssh = lab
            .ssh_command()
            .args(["root@127.0.0.1", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start ssh")?;
        let pipe = ssh.stdout.take().context("ssh without a pipe")?;
        let (sender, said) = mpsc::channel();
        let reader = thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            ssh,
            said,
            reader: Some(reader),
            heard: Vec::new(),
        })
    }

    /// Waits until it says this line.
    pub(crate) fn hear(&mut self, line: &str) -> Result<()> {
        self.hear_until(line, |said| said == line)
    }

    /// Waits until it says a line that begins so.
    pub(crate) fn hear_beginning(&mut self, beginning: &str) -> Result<()> {
        self.hear_until(beginning, |said| said.starts_with(beginning))
    }

    fn hear_until(&mut self, wanted: &str, is_it: impl Fn(&str) -> bool) -> Result<()> {
        loop {
            let heard =
                |heard: &[String]| format!("waiting for {wanted:?}, heard: {}", heard.join("\n"));
            let line = self
                .said
                .recv_timeout(LIMIT)
                .with_context(|| heard(&self.heard))?;
            let is_wanted = is_it(&line);
            self.heard.push(line);
            if is_wanted {
                return Ok(());
            }
        }
    }

    /// All that was heard of it, now that its host is gone.
    pub(crate) fn end(mut self) -> Vec<String> {
        self.kill();
        let mut heard = std::mem::take(&mut self.heard);
        heard.extend(self.said.try_iter());
        heard
    }

    fn kill(&mut self) {
        // It may have ended by itself.
        drop(self.ssh.kill());
        drop(self.ssh.wait());
        if let Some(reader) = self.reader.take() {
            drop(reader.join());
        }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.kill();
    }
}
