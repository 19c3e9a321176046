//! A domain's memory on its way over a [`Link`](super::link::Link), in pieces that each stand alone.
//!
//! A piece is one message: a byte that says what it is, and the rest. Most of an idle guest's memory is zeros, so pieces are
//! compressed, before they are encrypted: both take the guest's time, and encrypting takes more of it. What is received is
//! the peer's word alone, so no piece becomes longer than it may be, nor all of them together.

use super::link::{CHUNK_MAX, Receiver, Sender};
use std::io;
use std::time::{Duration, Instant};
use zstd::bulk::{Compressor, Decompressor};

/// A piece as it is.
const PLAIN: u8 = 0;

/// A piece that zstd has compressed.
const COMPRESSED: u8 = 1;

/// The end, with the number of bytes that came before.
const END: u8 = 2;

/// Longest piece, in bytes.
const PIECE_MAX: usize = CHUNK_MAX - 1;

/// zstd's, as for packs.
const LEVEL: i32 = -1;

/// How long the peer may take for one piece, on either side.
pub(super) const PIECE_LIMIT: Duration = Duration::from_secs(30);

/// What is sent.
pub(super) struct Outgoing {
    zstd: Compressor<'static>,
    message: Vec<u8>,
    bytes: u64,
}

impl Outgoing {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            zstd: Compressor::new(LEVEL)?,
            message: Vec::with_capacity(CHUNK_MAX),
            bytes: 0,
        })
    }

    /// Bytes that went in so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sends the next bytes.
    pub(super) fn send(&mut self, bytes: &[u8], to: &mut Sender) -> io::Result<()> {
        for piece in bytes.chunks(PIECE_MAX) {
            let message = &mut self.message;
            message.resize(CHUNK_MAX, 0);
            // One that would become longer has no room, which is zstd's only error here.
            let packed = self.zstd.compress_to_buffer(piece, &mut message[1..]);
            if let Some(length) = packed.ok().filter(|length| *length < piece.len()) {
                message[0] = COMPRESSED;
                message.truncate(1 + length);
            } else {
                message[0] = PLAIN;
                message[1..=piece.len()].copy_from_slice(piece);
                message.truncate(1 + piece.len());
            }
            to.send(message)?;
            self.bytes += piece.len() as u64;
        }
        Ok(())
    }

    /// Says that this was all.
    pub(super) fn end(&self, to: &mut Sender) -> io::Result<()> {
        let mut message = vec![END];
        message.extend_from_slice(&self.bytes.to_be_bytes());
        to.send(&message)
    }
}

/// What is received.
pub(super) struct Incoming {
    zstd: Decompressor<'static>,
    piece: Vec<u8>,
    at_most: u64,
    bytes: u64,
}

impl Incoming {
    /// Up to so many bytes.
    pub(super) fn new(at_most: u64) -> io::Result<Self> {
        Ok(Self {
            zstd: Decompressor::new()?,
            piece: Vec::with_capacity(PIECE_MAX),
            at_most,
            bytes: 0,
        })
    }

    /// Bytes that came so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next bytes, at least one; `None` after the end.
    ///
    /// # Errors
    /// If nothing comes within the limit, or what no sender of ours sends.
    pub(super) fn next(
        &mut self,
        from: &mut Receiver,
        limit: Duration,
    ) -> io::Result<Option<&[u8]>> {
        let message = from.receive_before(Instant::now() + limit)?;
        let Some((kind, rest)) = message.split_first() else {
            return Err(strange("a piece of nothing"));
        };
        self.piece.clear();
        match *kind {
            PLAIN if rest.len() <= PIECE_MAX => self.piece.extend_from_slice(rest),
            // It writes no more than there is room for.
            COMPRESSED => {
                let unpacked = self.zstd.decompress_to_buffer(rest, &mut self.piece);
                unpacked.map_err(|_| strange("a piece that cannot be unpacked"))?;
            }
            END => {
                let said = rest.try_into().map(u64::from_be_bytes);
                return match said {
                    Ok(said) if said == self.bytes => Ok(None),
                    Ok(_) => Err(strange("another number of bytes than is said at the end")),
                    Err(_) => Err(strange("an end that does not say how much it was")),
                };
            }
            _ => return Err(strange("a piece of a kind that there is not")),
        }
        if self.piece.is_empty() {
            return Err(strange("a piece of nothing"));
        }
        self.bytes += self.piece.len() as u64;
        if self.bytes > self.at_most {
            return Err(strange("more than was offered"));
        }
        Ok(Some(&self.piece))
    }
}

fn strange(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the memory that comes has {what}"),
    )
}

#[cfg(test)]
mod tests;
