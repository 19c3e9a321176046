//! An encrypted connection between two hosts that have a key in common: Noise (NNpsk0, Curve25519, ChaCha20-Poly1305,
//! BLAKE2s). The QEMU of Debian's Xen is built without TLS, so what QEMU writes goes through it too.
//!
//! Who lacks the key hears nothing: the first message, which the initiator sends, proves that he has it.

use super::pair::Key;
use crate::error::{Error, ErrorKind, Result};
use rustix::net::sockopt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use snow::{Builder, StatelessTransportState};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";

/// Both sides have to mean the same protocol.
const PROLOGUE: &[u8] = b"libxl-ext replication 1";

/// Longest message on the wire, in bytes (Noise's own bound).
const MESSAGE_MAX: usize = 65_535;

/// Bytes in front of each message, which say its length.
const LENGTH: usize = 2;

/// What encryption adds to a message, in bytes.
const TAG: usize = 16;

/// Most of what is sent, in bytes of one message.
pub(super) const CHUNK_MAX: usize = MESSAGE_MAX - TAG;

/// Length of either message of the handshake, in bytes: a key and a tag.
const GREETING: usize = 32 + TAG;

/// Longest JSON in a conversation, in bytes.
const JSON_MAX: usize = 1 << 20;

/// After how long of silence the kernel asks whether the peer is there, and how long it may not take what is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Sends.
pub(super) struct Sender {
    stream: TcpStream,
    noise: Arc<StatelessTransportState>,
    nonce: u64,
    sealed: Vec<u8>,
}

/// Receives.
pub(super) struct Receiver {
    stream: TcpStream,
    noise: Arc<StatelessTransportState>,
    nonce: u64,
    sealed: Vec<u8>,
    plain: Vec<u8>,
}

/// Both ways.
pub(super) struct Link {
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
}

impl Link {
    /// Connects to a host, within a limit, and proves that one has the key.
    ///
    /// # Errors
    /// [`ErrorKind::Toolstack`] if nobody answers there, or he lacks the key.
    pub(super) fn connect(peer: &str, key: &Key, limit: Duration) -> Result<Self> {
        let deadline = Instant::now() + limit;
        let what = || format!("connect to the secondary at {peer}");
        let failed = |error: io::Error| {
            Error::new(ErrorKind::Toolstack, what())
                .because(error)
                .hint("is `xl-ext replication-serve` running there, and is the port let through?")
        };
        let stream = dial(peer, deadline).map_err(failed)?;
        let greeted = greet(&stream, key, deadline);
        let noise = greeted.map_err(|error| {
            Error::new(ErrorKind::Toolstack, what()).because(error).hint(
                "do both hosts have the same key? `xl-ext replication-pair` makes one and carries it over",
            )
        })?;
        Self::new(stream, noise).map_err(failed)
    }

    /// Lets one in who has one of the keys; tells which one. Nothing is sent to anybody else.
    ///
    /// # Errors
    /// If he lacks them, or takes too long.
    pub(super) fn accept<N>(
        stream: TcpStream,
        keys: &[(N, Key)],
        limit: Duration,
    ) -> io::Result<(&N, Self)> {
        let deadline = Instant::now() + limit;
        let first = take(&stream, GREETING, deadline)?;
        for (name, key) in keys {
            let mut noise = builder(key)?.build_responder().map_err(strange)?;
            if noise.read_message(&first, &mut []).is_err() {
                continue;
            }
            let mut answer = [0; GREETING];
            let length = noise.write_message(&[], &mut answer).map_err(strange)?;
            put(&stream, &answer[..length], deadline)?;
            let noise = noise.into_stateless_transport_mode().map_err(strange)?;
            return Ok((name, Self::new(stream, noise)?));
        }
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it has none of the keys",
        ))
    }

    fn new(stream: TcpStream, noise: StatelessTransportState) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, KEEP_ALIVE)?;
        sockopt::set_tcp_keepintvl(&stream, KEEP_ALIVE / 6)?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        let noise = Arc::new(noise);
        Ok(Self {
            sender: Sender {
                stream: stream.try_clone()?,
                noise: Arc::clone(&noise),
                nonce: 0,
                sealed: vec![0; LENGTH + MESSAGE_MAX],
            },
            receiver: Receiver {
                stream,
                noise,
                nonce: 0,
                sealed: Vec::new(),
                plain: vec![0; MESSAGE_MAX],
            },
        })
    }

    /// Another handle on its socket, by which it can be cut.
    pub(super) fn handle(&self) -> io::Result<TcpStream> {
        self.sender.stream.try_clone()
    }
}

fn builder(key: &Key) -> io::Result<Builder<'_>> {
    let builder = Builder::new(PATTERN.parse().map_err(strange)?);
    let builder = builder.prologue(PROLOGUE).map_err(strange)?;
    builder.psk(0, key.bytes()).map_err(strange)
}

fn strange(error: snow::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn dial(peer: &str, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    let addresses: Vec<SocketAddr> = peer.to_socket_addrs()?.collect();
    for address in addresses {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The initiator's side of the handshake.
fn greet(stream: &TcpStream, key: &Key, deadline: Instant) -> io::Result<StatelessTransportState> {
    let mut noise = builder(key)?.build_initiator().map_err(strange)?;
    let mut first = [0; GREETING];
    let length = noise.write_message(&[], &mut first).map_err(strange)?;
    put(stream, &first[..length], deadline)?;
    let answer = take(stream, GREETING, deadline)?;
    noise.read_message(&answer, &mut []).map_err(strange)?;
    noise.into_stateless_transport_mode().map_err(strange)
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

fn put(stream: &TcpStream, bytes: &[u8], deadline: Instant) -> io::Result<()> {
    stream.set_write_timeout(Some(left(deadline)?))?;
    (&*stream).write_all(bytes)
}

/// So many bytes, however they come, before the deadline.
fn take(mut stream: &TcpStream, length: usize, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut have = 0;
    while have < length {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut bytes[have..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => have += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

impl Sender {
    /// From now on the peer may not take longer for a part of what is sent.
    pub(super) fn limit(&self, limit: Duration) -> io::Result<()> {
        self.stream.set_write_timeout(Some(limit))
    }

    /// Sends up to [`CHUNK_MAX`] bytes as one message.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (head, body) = self.sealed.split_at_mut(LENGTH);
        let length = self
            .noise
            .write_message(self.nonce, bytes, body)
            .map_err(strange)?;
        self.nonce += 1;
        let written = u16::try_from(length).map_err(io::Error::other)?;
        head.copy_from_slice(&written.to_be_bytes());
        self.stream.write_all(&self.sealed[..LENGTH + length])
    }
}

impl Receiver {
    /// The next message; none if the peer has gone.
    pub(super) fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        let mut head = [0; LENGTH];
        match self.stream.read(&mut head) {
            Ok(0) => return Ok(None),
            Ok(1) => self.stream.read_exact(&mut head[1..])?,
            Ok(_) => {}
            Err(error) => return Err(error),
        }
        self.sealed.resize(usize::from(u16::from_be_bytes(head)), 0);
        self.stream.read_exact(&mut self.sealed)?;
        self.open().map(Some)
    }

    /// The next message, before the deadline.
    pub(super) fn receive_before(&mut self, deadline: Instant) -> io::Result<&[u8]> {
        let head = take(&self.stream, LENGTH, deadline)?;
        let length = u16::from_be_bytes([head[0], head[1]]);
        self.sealed = take(&self.stream, usize::from(length), deadline)?;
        self.open()
    }

    fn open(&mut self) -> io::Result<&[u8]> {
        let opened = self
            .noise
            .read_message(self.nonce, &self.sealed, &mut self.plain);
        let length = opened.map_err(strange)?;
        self.nonce += 1;
        Ok(&self.plain[..length])
    }
}

/// Requests and answers in JSON, each with its length in front.
impl Link {
    /// Says something.
    ///
    /// # Errors
    /// If it is too long, or the peer does not take it within the limit.
    pub(super) fn say<T: Serialize>(&mut self, value: &T, limit: Duration) -> io::Result<()> {
        let text = serde_json::to_vec(value)?;
        if text.len() > JSON_MAX {
            let what = format!("{} bytes are more than are taken", text.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let length = u32::try_from(text.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &text].concat();
        self.sender.stream.set_write_timeout(Some(limit))?;
        framed
            .chunks(CHUNK_MAX)
            .try_for_each(|part| self.sender.send(part))
    }

    /// Hears something.
    ///
    /// # Errors
    /// If nothing comes within the limit, or something else.
    pub(super) fn hear<T: DeserializeOwned>(&mut self, limit: Duration) -> io::Result<T> {
        let deadline = Instant::now() + limit;
        let first = self.receiver.receive_before(deadline)?;
        let strange = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let (length, begun) = first
            .split_first_chunk()
            .ok_or_else(|| strange("a message without a length"))?;
        let length = u32::from_be_bytes(*length) as usize;
        if length > JSON_MAX {
            return Err(strange("a message that is too long"));
        }
        let mut text = begun.to_vec();
        while text.len() < length {
            let more = self.receiver.receive_before(deadline)?;
            if more.is_empty() {
                return Err(strange("a message with nothing in it"));
            }
            text.extend_from_slice(more);
        }
        if text.len() > length {
            return Err(strange("a message that is longer than it says"));
        }
        Ok(serde_json::from_slice(&text)?)
    }

    /// Ends what is only said and heard: from now on nothing has a limit.
    pub(super) fn without_limits(self) -> io::Result<Self> {
        self.sender.stream.set_read_timeout(None)?;
        self.sender.stream.set_write_timeout(None)?;
        Ok(self)
    }
}

#[cfg(test)]
pub(super) mod tests;
