//! Compressing blocks on a thread of its own, so that the one that takes libxl's bytes goes on.

use crate::error::{Error, ErrorKind, Result};
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use zstd::zstd_safe::compress_bound;

/// zstd's.
pub(super) const LEVEL: i32 = -1;

/// Blocks that are under way at most: beyond it, whoever has another one waits.
const WAITING_MAX: usize = 8;

/// A block. Its memory is used again for later ones: to touch memory for the first time costs more than to fill it.
#[derive(Default)]
pub(super) struct Block {
    /// Its pages.
    pub(super) pages: Vec<u8>,
    /// What they became, once it is compressed.
    pub(super) stored: Vec<u8>,
}

/// The thread, and what is under way. It ends when this is dropped.
pub(super) struct Compressor {
    blocks: SyncSender<Block>,
    done: Receiver<io::Result<Block>>,
    waiting: usize,
}

impl Compressor {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if it cannot be started.
    pub(super) fn start() -> Result<Self> {
        let (blocks, incoming) = sync_channel::<Block>(WAITING_MAX);
        let (outgoing, done) = channel();
        let mut zstd = zstd::bulk::Compressor::new(LEVEL).map_err(failed)?;
        std::thread::Builder::new()
            .name("compress".into())
            .spawn(move || {
                for mut block in incoming {
                    block.stored.clear();
                    block.stored.reserve(compress_bound(block.pages.len()));
                    let compressed = zstd.compress_to_buffer(&block.pages, &mut block.stored);
                    let compressed = compressed.map(|_| block);
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
    pub(super) fn give(&mut self, block: Block) -> Result<Option<Block>> {
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
    pub(super) fn next(&mut self) -> Result<Option<Block>> {
        if self.waiting == 0 {
            return Ok(None);
        }
        let compressed = self.receive()?;
        self.waiting -= 1;
        Ok(Some(compressed))
    }

    fn receive(&self) -> Result<Block> {
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
