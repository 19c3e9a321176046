//! Compressing blocks on a thread of its own, so that the one that takes libxl's bytes goes on.

use crate::error::{Error, ErrorKind, Result};
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};

/// zstd's.
pub(super) const LEVEL: i32 = -1;

/// Blocks that are under way at most: beyond it, whoever has another one waits.
const WAITING_MAX: usize = 8;

/// A block that is compressed.
pub(super) struct Compressed {
    /// Bytes before.
    pub(super) length: usize,
    /// What they became.
    pub(super) stored: Vec<u8>,
}

/// The thread, and what is under way. It ends when this is dropped.
pub(super) struct Compressor {
    blocks: SyncSender<Vec<u8>>,
    done: Receiver<io::Result<Compressed>>,
    waiting: usize,
}

impl Compressor {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if it cannot be started.
    pub(super) fn start() -> Result<Self> {
        let (blocks, incoming) = sync_channel::<Vec<u8>>(WAITING_MAX);
        let (outgoing, done) = channel();
        let mut zstd = zstd::bulk::Compressor::new(LEVEL).map_err(failed)?;
        std::thread::Builder::new()
            .name("compress".into())
            .spawn(move || {
                for block in incoming {
                    let compressed = zstd.compress(&block).map(|stored| Compressed {
                        length: block.len(),
                        stored,
                    });
                    if outgoing.send(compressed).is_err() {
                        return;
                    }
                }
            })
            .map_err(|error| Error::io("start a thread that compresses memory", error))?;
        Ok(Self {
            blocks,
            done,
            waiting: 0,
        })
    }

    /// Has a block compressed. Returns one that was given earlier if it is done, or if too many are under way; they
    /// come back in their order.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the thread ended, or zstd failed.
    pub(super) fn give(&mut self, block: Vec<u8>) -> Result<Option<Compressed>> {
        let ready = if self.waiting < WAITING_MAX {
            self.done.try_recv().ok().transpose().map_err(failed)?
        } else {
            Some(self.receive()?)
        };
        self.waiting -= usize::from(ready.is_some());
        self.blocks.send(block).map_err(|_| gone())?;
        self.waiting += 1;
        Ok(ready)
    }

    /// Waits for the next block; `None` if none is under way.
    ///
    /// # Errors
    /// As [`Compressor::give`].
    pub(super) fn next(&mut self) -> Result<Option<Compressed>> {
        if self.waiting == 0 {
            return Ok(None);
        }
        let compressed = self.receive()?;
        self.waiting -= 1;
        Ok(Some(compressed))
    }

    fn receive(&self) -> Result<Compressed> {
        self.done.recv().map_err(|_| gone())?.map_err(failed)
    }
}

fn gone() -> Error {
    Error::new(
        ErrorKind::Io,
        "the thread that compresses memory ended before its work",
    )
}

/// zstd cannot go on.
pub(super) fn failed(error: io::Error) -> Error {
    Error::io("compress memory", error)
}
