//! QEMU as a storage daemon: without a machine, for the disks of a domain that is off. It is the program that domains
//! have too; `qemu-storage-daemon` is of another package, which a Xen host need not have.

use super::qemu_img::protocol_of;
use super::qmp::Locked;
use super::qmp_wire::{self, USUAL};
use super::subprocess::{self, Beside};
use super::{StorageServer, Worker, proc};
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::ImageFormat;
use crate::model::layer::Backing;
use crate::store::{absent_is_fine, private_directory};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Name of the monitor's socket in the daemon's directory.
pub(super) const SOCKET: &str = "qmp";

/// Where libxl has the QEMU of its domains, by how it was built: Debian's, and Xen's own.
const PROGRAMS: [&str; 3] = [
    "/usr/libexec/xen-qemu-system-i386",
    "/usr/lib/xen/bin/qemu-system-i386",
    "/usr/local/lib/xen/bin/qemu-system-i386",
];

/// How long it may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long it may take to write what it holds and end.
const END_LIMIT: Duration = Duration::from_secs(120);

/// A storage daemon of our own. It is killed if we are: the image stays as it is then, on the images below it.
pub(super) struct StorageDaemon {
    daemon: Beside,
    directory: PathBuf,
    what: String,
    ended: bool,
}

#[derive(Serialize)]
pub(super) struct Quit {}

impl qmp_wire::Command for Quit {
    const NAME: &'static str = "quit";
    type Answer = Value;
}

impl StorageDaemon {
    /// Opens a chain of images, the one that is written to first. Every image and format is said, so that nothing in the
    /// images counts.
    pub(super) fn start(directory: &Path, chain: &[Backing]) -> Result<Self> {
        let top = chain.first().map(|top| top.image.display().to_string());
        let what = format!("open {} in a storage daemon", top.unwrap_or_default());
        // Its locks do not keep a domain's QEMU off, nor the other way round.
        if let Some(disk) = chain.first() {
            proc::wait_until_closed(&disk.image).map_err(|error| error.while_doing(&what))?;
        }
        private_directory(directory).map_err(|error| error.while_doing(&what))?;
        let socket = directory.join(SOCKET);
        absent_is_fine(std::fs::remove_file(&socket)).map_err(|error| Error::io(&what, error))?;
        let mut command = Command::new(program(&what)?);
        // No accelerator of its own is compiled in; this one runs nothing.
        command.args(["-machine", "none,accel=qtest", "-nodefaults"]);
        command.args(["-no-user-config", "-display", "none", "-S"]);
        let mut chardev = std::ffi::OsString::from("socket,id=qmp,server=on,wait=off,path=");
        chardev.push(&socket);
        command.arg("-chardev").arg(chardev);
        command.args(["-mon", "chardev=qmp,mode=control"]);
        command
            .arg("-blockdev")
            .arg(node(chain, true, &what)?.to_string());
        let mut daemon = subprocess::spawn(command, &what)?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match std::os::unix::net::UnixStream::connect(&socket) {
                Ok(_) => break,
                Err(error) => {
                    if let Some(error) = daemon.failure(&what)? {
                        return Err(error);
                    }
                    if Instant::now() >= deadline {
                        // It has the image open, and would for as long as we live.
                        let _ = daemon.child.kill();
                        let _ = daemon.child.wait();
                        return Err(Error::io(&what, error));
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        Ok(Self {
            daemon,
            directory: directory.into(),
            what,
            ended: false,
        })
    }

    fn quit(&mut self) -> Result<()> {
        self.ended = true;
        let mut qemu = Locked::connect_to(&Worker::Daemon(self.directory.clone()), USUAL)?;
        let said = qemu.monitor.run(&Quit {});
        drop(qemu);
        let deadline = Instant::now() + END_LIMIT;
        loop {
            match self.daemon.child.try_wait() {
                Ok(Some(status)) if status.success() => break,
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                ended => {
                    let failure = self.daemon.failure(&self.what)?;
                    said?;
                    return Err(failure.unwrap_or_else(|| {
                        Error::new(ErrorKind::Toolstack, &self.what)
                            .because(format!("it does not end: {ended:?}"))
                    }));
                }
            }
        }
        let _ = std::fs::remove_file(self.directory.join(SOCKET));
        let _ = std::fs::remove_dir(&self.directory);
        Ok(())
    }
}

impl StorageServer for StorageDaemon {
    fn end(mut self: Box<Self>) -> Result<()> {
        self.quit()
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = self.quit()
        {
            tracing::warn!("{}", error.report());
        }
        if matches!(self.daemon.child.try_wait(), Ok(None)) {
            let _ = self.daemon.child.kill();
            let _ = self.daemon.child.wait();
        }
    }
}

/// The QEMU that is installed.
fn program(what: &str) -> Result<&'static Path> {
    let mut programs = PROGRAMS.iter().map(Path::new);
    programs.find(|program| program.is_file()).ok_or_else(|| {
        Error::new(ErrorKind::Toolstack, what)
            .because("there is no QEMU of Xen's")
            .hint(format!("looked for {}", PROGRAMS.join(", ")))
    })
}

/// The uppermost image of a chain with those below it, as `blockdev-add` takes it.
fn node(chain: &[Backing], is_top: bool, what: &str) -> Result<Value> {
    let Some((own, below)) = chain.split_first() else {
        return Ok(Value::Null);
    };
    let path = own.image.to_str().ok_or_else(|| {
        let path = own.image.display();
        Error::new(ErrorKind::Unsupported, what).because(format!("{path} is not UTF-8"))
    })?;
    let protocol = protocol_of(&own.image);
    let mut opened = json!({
        "driver": own.format.driver(),
        "read-only": !is_top,
        // Others may have those below open, also for writing to what is not this chain's concern.
        "file": { "driver": protocol, "filename": path, "locking": if is_top { "auto" } else { "off" } },
    });
    if is_top {
        opened["node-name"] = json!("disk");
    }
    if own.format == ImageFormat::Qcow2 {
        opened["backing"] = node(below, false, what)?;
    }
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_and_format_is_said() {
        let image = |path: &str, format| Backing {
            image: Path::new(path).into(),
            format,
        };
        let chain = [
            image("/i/a,b", ImageFormat::Qcow2),
            image("/i/m", ImageFormat::Qcow2),
            image("/i/base", ImageFormat::Raw),
        ];
        let top = node(&chain, true, "try").unwrap();
        assert_eq!(top["file"]["filename"], "/i/a,b");
        assert_eq!(top["read-only"], false);
        assert_eq!(top["backing"]["driver"], "qcow2");
        assert_eq!(top["backing"]["read-only"], true);
        assert_eq!(top["backing"]["backing"]["driver"], "raw");
        assert!(top["backing"]["backing"].get("backing").is_none());
        let alone = node(&chain[..1], true, "try").unwrap();
        assert_eq!(
            alone["backing"],
            Value::Null,
            "what its header says does not count"
        );
    }
}
