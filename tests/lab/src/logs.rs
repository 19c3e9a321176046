//! The logs of a lab, collected when a step has failed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::host::Lab;
use crate::process;

/// What dom0 is asked: the file for the answer, and the question.
const QUESTIONS: &[(&str, &str)] = &[
    ("xl-dmesg.txt", "xl dmesg"),
    ("xl-list.json", "xl list -l"),
    ("xl-list.txt", "xl list -v; xl info"),
    ("xenstore.txt", "xenstore-ls -fp"),
    ("dmesg.txt", "dmesg"),
    (
        "journal.txt",
        "journalctl --no-pager -o short-precise -b -n 3000",
    ),
    (
        "journal-xl-ext.txt",
        "journalctl --no-pager -o verbose -t xl-ext",
    ),
    (
        "processes.txt",
        "ps -eo pid,ppid,stat,etimes,args; df -h /; free -m",
    ),
];

/// Writes all logs of `lab` to the directory `out`, which is created.
///
/// # Errors
/// When `out` cannot be written. What dom0 does not answer is noted in the file in question.
pub fn collect(lab: &Lab, out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    for file in ["serial.log", "qemu.log"] {
        let source = lab.run_dir().join(file);
        if source.exists() {
            fs::copy(&source, out.join(file)).with_context(|| {
                format!("cannot copy {} to {}", source.display(), out.display())
            })?;
        }
    }
    if !lab.is_running() {
        return Ok(());
    }
    for (file, question) in QUESTIONS {
        let text = match lab.try_run(question, Duration::from_secs(60)) {
            Ok(output) => output.stdout + &output.stderr,
            Err(error) => format!("{error:#}\n"),
        };
        let path = out.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    copy_xen_logs(lab, out)
}

fn copy_xen_logs(lab: &Lab, out: &Path) -> Result<()> {
    let mut ssh = lab
        .ssh_command()
        .args(["root@127.0.0.1", "tar -C /var/log -cf - xen"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start ssh")?;
    let pipe = ssh.stdout.take().context("ssh without a pipe")?;
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(out).args(["--no-same-owner", "-xf", "-"]);
    let unpacked = process::run(
        &mut tar,
        process::Input::Child(pipe),
        Duration::from_secs(60),
    );
    process::wait(&mut ssh, Duration::from_secs(10))?;
    // A log that grows while tar reads it makes tar complain; what came is there all the same.
    unpacked.map(drop)
}
