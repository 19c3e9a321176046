//! The NBD server of another QEMU, asked by ourselves before ours is sent there: a QEMU that waits for a silent peer hears
//! nobody meanwhile. (The protocol: doc/proto.md of the nbd project.)

use crate::error::{Error, ErrorKind, Result};
use crate::model::replication::NbdAddress;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

pub(super) const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
pub(super) const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// Flags of both sides: options are negotiated, and no zeros fill the last answer.
pub(super) const FLAGS: u16 = 0b11;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
/// All kinds of replies that are errors have this bit.
const REPLY_IS_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const EXPORT_IS_READ_ONLY: u16 = 1 << 1;

/// Longest reply to an option that is read, in bytes: NBD's strings have at most 4096.
const REPLY_MAX: u32 = 8192;

/// What a server says of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExportFacts {
    /// Its length, in bytes.
    pub(crate) length: u64,
    /// Whether it may be written to.
    pub(crate) writable: bool,
}

/// Asks a server for an export.
///
/// # Errors
/// [`ErrorKind::Toolstack`] if it does not answer within the limit, or has no such export.
pub(crate) fn ask_export(
    address: &NbdAddress,
    export: &str,
    limit: Duration,
) -> Result<ExportFacts> {
    let mut peer = Peer::connect(address, limit)?;
    let asked = peer.greeted().and_then(|()| peer.info(export));
    let facts = asked.map_err(|error| peer.failed(&format!("ask for disk {export}"), error))?;
    facts.ok_or_else(|| {
        Error::new(
            ErrorKind::Toolstack,
            format!("the secondary at {address} has no disk {export}"),
        )
        .hint("is it the secondary of this domain, and has it been started?")
    })
}

/// Whether a server is alive: it greets whoever connects.
///
/// # Errors
/// [`ErrorKind::Toolstack`] if it does not within the limit.
pub(crate) fn feel_pulse(address: &NbdAddress, limit: Duration) -> Result<()> {
    let mut peer = Peer::connect(address, limit)?;
    peer.greeted()
        .map_err(|error| peer.failed("hear of it", error))
}

/// Either kind of connection.
trait Stream: Read + Write {
    fn limit(&self, left: Duration) -> std::io::Result<()>;
}

impl Stream for UnixStream {
    fn limit(&self, left: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(left))?;
        self.set_write_timeout(Some(left))
    }
}

impl Stream for TcpStream {
    fn limit(&self, left: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(left))?;
        self.set_write_timeout(Some(left))
    }
}

struct Peer {
    stream: Box<dyn Stream>,
    address: NbdAddress,
    deadline: Instant,
}

impl Peer {
    fn connect(address: &NbdAddress, limit: Duration) -> Result<Self> {
        let stream: std::io::Result<Box<dyn Stream>> = match address {
            NbdAddress::Unix(path) => UnixStream::connect(path).map(|it| Box::new(it) as _),
            NbdAddress::Loopback(port) => {
                let to = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
                TcpStream::connect_timeout(&to, limit).map(|it| Box::new(it) as _)
            }
        };
        let stream = stream.map_err(|error| {
            Error::new(
                ErrorKind::Toolstack,
                format!("connect to the secondary at {address}"),
            )
            .because(error)
            .hint("is the secondary running?")
        })?;
        Ok(Self {
            stream,
            address: address.clone(),
            deadline: Instant::now() + limit,
        })
    }

    fn failed(&self, what: &str, error: std::io::Error) -> Error {
        let silent = matches!(
            error.kind(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
        );
        let error = if silent {
            std::io::Error::other("it says nothing")
        } else {
            error
        };
        let what = format!("{what} from the secondary at {}", self.address);
        Error::new(ErrorKind::Toolstack, what).because(error)
    }

    fn array<const N: usize>(&mut self) -> std::io::Result<[u8; N]> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            // Each byte on its own, so that the deadline is for all of them: there are few.
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            self.stream.limit(left)?;
            self.stream.read_exact(std::slice::from_mut(byte))?;
        }
        Ok(bytes)
    }

    fn greeted(&mut self) -> std::io::Result<()> {
        let magics = [self.array()?, self.array()?].map(u64::from_be_bytes);
        let flags = u16::from_be_bytes(self.array()?);
        if magics != [MAGIC, OPTION_MAGIC] || flags & FLAGS != FLAGS {
            return Err(strange());
        }
        Ok(())
    }

    fn option(&mut self, option: u32, data: &[u8]) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        bytes.extend(OPTION_MAGIC.to_be_bytes());
        bytes.extend(option.to_be_bytes());
        bytes.extend(
            u32::try_from(data.len())
                .map_err(|_| strange())?
                .to_be_bytes(),
        );
        bytes.extend(data);
        self.stream.write_all(&bytes)
    }

    /// What it says of an export, if it has it.
    fn info(&mut self, export: &str) -> std::io::Result<Option<ExportFacts>> {
        self.stream.write_all(&u32::from(FLAGS).to_be_bytes())?;
        let mut asked = Vec::new();
        let length = u32::try_from(export.len()).map_err(|_| strange())?;
        asked.extend(length.to_be_bytes());
        asked.extend(export.as_bytes());
        // What is mandatory is said unasked.
        asked.extend(0_u16.to_be_bytes());
        self.option(OPTION_INFO, &asked)?;
        let mut facts = None;
        loop {
            let magic = u64::from_be_bytes(self.array()?);
            let option = u32::from_be_bytes(self.array()?);
            let kind = u32::from_be_bytes(self.array()?);
            let length = u32::from_be_bytes(self.array()?);
            if magic != OPTION_REPLY_MAGIC || option != OPTION_INFO || length > REPLY_MAX {
                return Err(strange());
            }
            let mut data = Vec::new();
            for _ in 0..length {
                data.extend(self.array::<1>()?);
            }
            match kind {
                REPLY_ACK => break,
                REPLY_INFO => facts = export_facts(&data).or(facts),
                kind if kind & REPLY_IS_ERROR != 0 => return Ok(None),
                _ => {}
            }
        }
        // It is no failure if it has gone already.
        let _ = self.option(OPTION_ABORT, &[]);
        facts.map(Some).ok_or_else(strange)
    }
}

/// From an `NBD_INFO_EXPORT`: kind, length, flags.
fn export_facts(data: &[u8]) -> Option<ExportFacts> {
    let (kind, rest) = data.split_first_chunk()?;
    let (length, flags) = rest.split_first_chunk()?;
    let flags = u16::from_be_bytes(flags.try_into().ok()?);
    (u16::from_be_bytes(*kind) == INFO_EXPORT).then(|| ExportFacts {
        length: u64::from_be_bytes(*length),
        writable: flags & EXPORT_IS_READ_ONLY == 0,
    })
}

fn strange() -> std::io::Error {
    std::io::Error::other("it answers something else than an NBD server")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A server that says something to whoever connects.
    fn saying(bytes: &[u8]) -> (tempfile::TempDir, NbdAddress, UnixListener) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nbd");
        let listener = UnixListener::bind(&path).unwrap();
        let (bytes, accepting) = (bytes.to_vec(), listener.try_clone().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = accepting.accept().unwrap();
            stream.write_all(&bytes).unwrap();
            // Until the other side has gone.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        (directory, NbdAddress::Unix(path), listener)
    }

    const LIMIT: Duration = Duration::from_millis(200);

    fn greeting() -> Vec<u8> {
        [
            &MAGIC.to_be_bytes()[..],
            &OPTION_MAGIC.to_be_bytes(),
            &FLAGS.to_be_bytes(),
        ]
        .concat()
    }

    #[test]
    fn a_server_that_is_silent_or_strange_has_no_pulse() {
        let (_directory, address, _) = saying(&greeting());
        feel_pulse(&address, LIMIT).unwrap();
        let (_directory, address, _) = saying(&greeting()[..17]);
        let report = feel_pulse(&address, LIMIT).unwrap_err().report();
        assert!(report.ends_with("it says nothing"), "{report}");
        let (_directory, address, _) = saying(b"SSH-2.0-OpenSSH_9.2p1");
        let report = feel_pulse(&address, LIMIT).unwrap_err().report();
        assert!(
            report.ends_with("something else than an NBD server"),
            "{report}"
        );
        let report = feel_pulse(&NbdAddress::Unix("/nowhere/nbd".into()), LIMIT);
        let report = report.unwrap_err().report();
        assert!(report.contains("is the secondary running?"), "{report}");
    }

    fn reply(kind: u32, data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).unwrap();
        let head = [OPTION_INFO, kind, length].map(u32::to_be_bytes).concat();
        [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &head, data].concat()
    }

    #[test]
    fn the_length_and_the_flags_of_an_export_are_read() {
        let info = |flags: u16| {
            let length = 4096_u64.to_be_bytes();
            [&[0, 0][..], &length, &flags.to_be_bytes()].concat()
        };
        let ask = |replies: &[Vec<u8>]| {
            let (_directory, address, _) = saying(&[greeting(), replies.concat()].concat());
            ask_export(&address, "xvda", LIMIT)
        };
        let done = || reply(REPLY_ACK, &[]);
        let facts = ask(&[
            reply(REPLY_INFO, &[0, 3, 0]),
            reply(REPLY_INFO, &info(1)),
            done(),
        ]);
        let (length, writable) = (4096, true);
        assert_eq!(facts.unwrap(), ExportFacts { length, writable });
        let facts = ask(&[reply(REPLY_INFO, &info(0b11)), done()]).unwrap();
        assert!(!facts.writable);
        let unknown = ask(&[reply(REPLY_IS_ERROR | 6, b"no")])
            .unwrap_err()
            .report();
        assert!(unknown.contains("has no disk xvda"), "{unknown}");
        assert!(ask(&[done()]).is_err(), "it says nothing of the length");
        assert!(
            ask(&[reply(REPLY_INFO, &info(1))]).is_err(),
            "it does not end"
        );
    }
}
