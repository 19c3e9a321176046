//! What a guest would read of an image, by `qemu-nbd`: also of an internal snapshot, and through all layers. A client
//! of the NBD protocol, as far as reading needs it. (The protocol: doc/proto.md of the nbd project.)

use super::nbd_peer::{FLAGS, MAGIC, OPTION_MAGIC};
use super::subprocess::{self, Beside};
use crate::error::{Error, ErrorKind, Result};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long the server may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long it may take for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// How long it may take to end once nobody is connected to it.
const END_LIMIT: Duration = Duration::from_secs(5);

const OPTION_EXPORT_NAME: u32 = 1;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const READ: u16 = 0;
const DISCONNECT: u16 = 2;

/// What a guest would read of a disk.
pub trait DiskContent {
    /// Its length, in bytes.
    fn length(&self) -> u64;

    /// Reads at an offset, which together with the buffer is within the length.
    ///
    /// # Errors
    /// If the image cannot be read.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()>;
}

/// A server of our own, for one image, and the connection to it.
pub(super) struct Nbd {
    server: Beside,
    socket: UnixStream,
    length: u64,
    what: String,
    /// The socket is in it.
    _directory: tempfile::TempDir,
}

impl Nbd {
    /// Opens the image that `options` say, as `--image-opts` takes them, or an internal snapshot in it.
    pub(super) fn open(options: OsString, tag: Option<&str>, what: String) -> Result<Self> {
        let failed = |error| Error::io(&what, error);
        let directory = tempfile::tempdir().map_err(failed)?;
        let path = directory.path().join("nbd");
        let mut command = Command::new("qemu-nbd");
        // It serves one client, and ends with that.
        command.args(["--read-only", "--shared=1", "--socket"]);
        command.arg(&path);
        if let Some(tag) = tag {
            command.arg(format!("--load-snapshot=snapshot.name={tag}"));
        }
        command.arg("--image-opts").arg(options);
        let mut server = subprocess::spawn(command, &what)?;
        let deadline = Instant::now() + START_LIMIT;
        let socket = loop {
            match UnixStream::connect(&path) {
                Ok(socket) => break socket,
                Err(error) => {
                    if let Some(error) = server.failure(&what)? {
                        return Err(error);
                    }
                    if Instant::now() >= deadline {
                        return Err(failed(error));
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        };
        let mut nbd = Self {
            server,
            socket,
            length: 0,
            what,
            _directory: directory,
        };
        nbd.length = nbd.negotiate().map_err(|error| nbd.own_words(error))?;
        Ok(nbd)
    }

    /// It takes the connection before it has opened the image, and ends if it cannot: its own words say why.
    fn own_words(&mut self, error: Error) -> Error {
        let deadline = Instant::now() + END_LIMIT;
        while Instant::now() < deadline {
            if let Ok(Some(failure)) = self.server.failure(&self.what) {
                return failure;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        error
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::new(ErrorKind::Toolstack, &self.what).because(error)
    }

    fn strange(&self) -> Error {
        Error::new(ErrorKind::Toolstack, &self.what).because("qemu-nbd answers something else")
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = self.socket.write_all(bytes);
        sent.map_err(|error| self.failed(error))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        let read = self.socket.read_exact(&mut bytes);
        read.map_err(|error| self.failed(error))?;
        Ok(bytes)
    }

    fn negotiate(&mut self) -> Result<u64> {
        let limited = self.socket.set_read_timeout(Some(ANSWER_LIMIT));
        limited.map_err(|error| self.failed(error))?;
        let magic = u64::from_be_bytes(self.array()?);
        let option_magic = u64::from_be_bytes(self.array()?);
        let flags = u16::from_be_bytes(self.array()?);
        if magic != MAGIC || option_magic != OPTION_MAGIC || flags & FLAGS != FLAGS {
            return Err(self.strange());
        }
        let mut answer = Vec::new();
        answer.extend(u32::from(FLAGS).to_be_bytes());
        answer.extend(OPTION_MAGIC.to_be_bytes());
        answer.extend(OPTION_EXPORT_NAME.to_be_bytes());
        // The name of the only export is empty.
        answer.extend(0_u32.to_be_bytes());
        self.send(&answer)?;
        let length = u64::from_be_bytes(self.array()?);
        let _flags: [u8; 2] = self.array()?;
        Ok(length)
    }

    fn request(&mut self, kind: u16, offset: u64, length: u32) -> Result<()> {
        let mut request = Vec::new();
        request.extend(REQUEST_MAGIC.to_be_bytes());
        request.extend(0_u16.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        self.send(&request)
    }
}

impl DiskContent for Nbd {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let length = u32::try_from(buffer.len()).map_err(|_| self.strange())?;
        self.request(READ, offset, length)?;
        let magic = u32::from_be_bytes(self.array()?);
        let error = u32::from_be_bytes(self.array()?);
        let cookie = u64::from_be_bytes(self.array()?);
        if magic != REPLY_MAGIC || cookie != offset {
            return Err(self.strange());
        }
        if let Some(error) = i32::try_from(error).ok().filter(|error| *error != 0) {
            return Err(self.failed(std::io::Error::from_raw_os_error(error)));
        }
        let read = self.socket.read_exact(buffer);
        read.map_err(|error| self.failed(error))
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        let _ = self.request(DISCONNECT, 0, 0);
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let end = Instant::now() + END_LIMIT;
        while Instant::now() < end {
            if !matches!(self.server.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.server.child.kill();
        let _ = self.server.child.wait();
    }
}
