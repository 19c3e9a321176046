//! The product in dom0: `xl-ext`, with a store of its own beside the guest's files.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::guest::Guest;
use crate::host::Lab;
use crate::process::Output;
use crate::ssh::quote;

/// Long enough for a save and a restore on a loaded machine.
const LIMIT: Duration = Duration::from_secs(300);

/// `xl-ext` for one guest. Its store goes with the guest's files when the step ends.
#[derive(Debug)]
pub struct Product<'lab> {
    lab: &'lab Lab,
    domain: String,
    store: String,
}

impl<'lab> Product<'lab> {
    /// For a guest, with the store `store` in the guest's directory.
    pub fn of(lab: &'lab Lab, guest: &Guest<'_>) -> Self {
        let store = format!("{}/store", guest.dir());
        Self {
            lab,
            domain: guest.name().to_owned(),
            store,
        }
    }

    /// With a store elsewhere.
    #[must_use]
    pub fn store(mut self, directory: &str) -> Self {
        directory.clone_into(&mut self.store);
        self
    }

    /// The directory of the store.
    pub fn store_dir(&self) -> &str {
        &self.store
    }

    /// The shell words that run a command with `arguments` (shell words too) on the guest's domain:
    /// `{}` in them is the domain.
    pub fn command(&self, arguments: &str) -> String {
        format!(
            "XL_EXT_STORE={} xl-ext {}",
            quote(&self.store),
            arguments.replace("{}", &quote(&self.domain))
        )
    }

    /// Runs a command to its end, whatever that is.
    ///
    /// # Errors
    /// When dom0 does not answer.
    pub fn try_run(&self, arguments: &str) -> Result<Output> {
        self.lab.try_run(&self.command(arguments), LIMIT)
    }

    /// Runs a command that succeeds; returns its standard output.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, arguments: &str) -> Result<String> {
        let output = self.try_run(arguments)?;
        ensure!(
            output.status == 0,
            "xl-ext {arguments} ended with {}: {}",
            output.status,
            output.stderr
        );
        Ok(output.stdout)
    }

    /// Runs a command that fails with exit status 1 and says each of `words`.
    ///
    /// # Errors
    /// When it does not.
    pub fn refuses(&self, arguments: &str, words: &[&str]) -> Result<()> {
        let output = self.try_run(arguments)?;
        ensure!(
            output.status == 1,
            "xl-ext {arguments} ended with {}: {}{}",
            output.status,
            output.stdout,
            output.stderr
        );
        for word in words {
            ensure!(
                output.stderr.contains(word),
                "xl-ext {arguments} did not say {word:?}: {}",
                output.stderr
            );
        }
        Ok(())
    }

    /// Runs a command with an `xl` whose first restore fails, as it does where the host has become too small.
    ///
    /// # Errors
    /// When dom0 does not answer, or nothing was to be restored.
    pub fn try_run_failing_to_restore(&self, guest: &Guest<'_>, arguments: &str) -> Result<Output> {
        let bin = format!("{}/bin", guest.dir());
        self.lab.run(&format!(
            "rm -rf {bin} && mkdir {bin} && cat > {bin}/xl <<'END'\n#!/bin/sh\n\
             if [ \"$1\" = restore ] && mkdir {bin}/failed 2>/dev/null; then\n\
             echo 'not enough memory, says the test' >&2; exit 1; fi\n\
             exec {} \"$@\"\nEND\nchmod +x {bin}/xl",
            self.lab.run("command -v xl")?.trim()
        ))?;
        let output = self.lab.try_run(
            &format!("PATH={bin}:$PATH; export PATH; {}", self.command(arguments)),
            LIMIT,
        )?;
        self.lab.run(&format!("test -d {bin}/failed"))?;
        Ok(output)
    }

    /// Checks that the next command succeeds, and says that it took an interrupted one back.
    ///
    /// # Errors
    /// When it does not.
    pub fn ensure_taken_back(&self) -> Result<()> {
        let output = self.try_run("snapshot-list {}")?;
        ensure!(
            output.status == 0 && output.stderr.contains("was taken back"),
            "snapshot-list ended with {}: {}",
            output.status,
            output.stderr
        );
        Ok(())
    }

    /// The names of the snapshots, oldest first.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn names(&self) -> Result<Vec<String>> {
        let text = self.run("snapshot-list --json {}")?;
        let list: serde_json::Value = serde_json::from_str(&text)?;
        let snapshots = list["snapshots"]
            .as_array()
            .context("no list of snapshots")?;
        Ok(snapshots
            .iter()
            .map(|snapshot| {
                let name = &snapshot["domain_snapshot"]["name"];
                name.as_str().unwrap_or_default().to_owned()
            })
            .collect())
    }

    /// The internal snapshots in an image, as `qemu-img` lists them.
    ///
    /// # Errors
    /// When the image cannot be read.
    pub fn internal_snapshots(&self, image: &str) -> Result<Vec<String>> {
        let image = quote(image);
        let text = self
            .lab
            .run(&format!("qemu-img info -U -f qcow2 --output=json {image}"))?;
        let info: serde_json::Value = serde_json::from_str(&text)?;
        let snapshots = info["snapshots"].as_array().cloned().unwrap_or_default();
        Ok(snapshots
            .iter()
            .map(|snapshot| snapshot["name"].as_str().unwrap_or_default().to_owned())
            .collect())
    }

    /// Checks that nothing of a snapshot is left: not in the images, not in the store.
    ///
    /// # Errors
    /// Naming what is left.
    pub fn ensure_nothing_left(&self, guest: &Guest<'_>, vdevs: &[&str]) -> Result<()> {
        for vdev in vdevs {
            let left = self.internal_snapshots(&guest.disk_path(vdev))?;
            ensure!(left.is_empty(), "{vdev} still holds {left:?}");
        }
        let store = quote(&self.store);
        let left = self.lab.run(&format!(
            "find {store} -mindepth 2 ! -name lock ! -name domain ! -name present 2>/dev/null || true"
        ))?;
        ensure!(left.trim().is_empty(), "the store still holds {left}");
        ensure!(
            self.names()?.is_empty(),
            "a snapshot is recorded: {:?}",
            self.names()?
        );
        Ok(())
    }

    /// Starts a command in the background and kills it, by `kill -9`, as soon as the shell condition
    /// `when` holds. Returns once it is dead.
    ///
    /// # Errors
    /// When the condition did not hold before the command ended.
    pub fn kill_when(&self, arguments: &str, when: &str) -> Result<()> {
        let output = self.lab.try_run(
            &format!(
                "{} >/dev/null 2>&1 & pid=$!; while kill -0 $pid 2>/dev/null; do \
                 if {when}; then kill -9 $pid; wait $pid; exit 9; fi; done; exit 3",
                self.command(arguments)
            ),
            LIMIT,
        )?;
        if output.status != 9 {
            bail!(
                "xl-ext {arguments} ended before `{when}` held: {}",
                output.stderr
            );
        }
        Ok(())
    }

    /// Shell words that hold while memory is being written, once more than `mib` MiB came from libxl: what becomes of
    /// that in the store says nothing.
    pub fn memory_beyond(&self, mib: u32) -> String {
        let store = quote(&self.store);
        let beyond = u64::from(mib) << 20;
        format!(
            "{{ find {store} -name memory.partial 2>/dev/null | grep -q . && \
             cat $(pgrep '^(xl-ext|libxl-ext-agent)' | sed 's|.*|/proc/&/io|') 2>/dev/null | \
             awk '/^rchar/ && $2 > {beyond} {{ found = 1 }} END {{ exit !found }}'; }}"
        )
    }

    /// Leaves `room` MiB in the tmpfs at `directory`, in the background, once more than `mib` MiB of memory came from
    /// libxl: to fill it would take longer than a save. Of less room than is written while that is done nothing comes. A file `DIRECTORY.shrunk` says that it was done.
    ///
    /// # Errors
    /// When dom0 does not answer.
    pub fn shrink_beyond(&self, mib: u32, room: u32, directory: &str) -> Result<()> {
        // It is refused as long as more than that is written in the meantime.
        let script = format!(
            "rm -f {directory}.shrunk; (while ! {}; do :; done; \
             until mount -o remount,size=$(($(df --output=used -B1 {directory} | tail -n 1) + {})) {directory}; \
             do :; done; touch {directory}.shrunk) >/dev/null 2>&1 &",
            self.memory_beyond(mib),
            u64::from(room) << 20
        );
        self.lab.run(&script).map(drop)
    }

    /// Waits until no helper of libxl's works on a save any more.
    ///
    /// # Errors
    /// When one stays for half a minute.
    pub fn wait_for_helpers(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        while self
            .lab
            .try_run("pgrep -f '[l]ibxl-save-helper'", LIMIT)?
            .status
            == 0
        {
            ensure!(Instant::now() < end, "libxl-save-helper is still there");
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }
}
