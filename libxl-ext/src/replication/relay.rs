//! What QEMU says to an NBD server, carried over a [`Link`].

use super::link::{CHUNK_MAX, Link};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

/// Everything that is being carried, so that it can be cut at once, whoever waits for whom.
#[derive(Default)]
pub(super) struct Relays {
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    is_cut: bool,
    last: u64,
    ends: Vec<(u64, Vec<End>)>,
}

/// One end of what is carried. Who has gone needs no cutting.
enum End {
    Link(TcpStream),
    Local(UnixStream),
}

impl End {
    fn cut(&self) {
        let _ = match self {
            Self::Link(stream) => stream.shutdown(Shutdown::Both),
            Self::Local(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

/// Somebody's ends, among those that can be cut until it is dropped.
pub(super) struct Carried {
    relays: Arc<Relays>,
    number: u64,
}

impl Drop for Carried {
    fn drop(&mut self) {
        let number = self.number;
        self.relays.now().ends.retain(|(other, _)| *other != number);
    }
}

impl Relays {
    fn now(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts all that are there, and those that come.
    pub(super) fn cut(&self) {
        let mut now = self.now();
        now.is_cut = true;
        let ends = now.ends.drain(..).flat_map(|(_, ends)| ends);
        ends.for_each(|end| end.cut());
    }

    fn add(self: &Arc<Self>, ends: Vec<End>) -> io::Result<Carried> {
        let mut now = self.now();
        if now.is_cut {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        now.last += 1;
        let number = now.last;
        now.ends.push((number, ends));
        drop(now);
        let relays = Arc::clone(self);
        Ok(Carried { relays, number })
    }

    /// Has a link cut with the others, who says something over it himself.
    ///
    /// # Errors
    /// If all was cut before.
    pub(super) fn watch(self: &Arc<Self>, link: &Link) -> io::Result<Carried> {
        self.add(vec![End::Link(link.handle()?)])
    }

    /// Whether it was cut.
    pub(super) fn is_cut(&self) -> bool {
        self.now().is_cut
    }

    /// Carries what either side says to the other, until one of them has gone.
    ///
    /// # Errors
    /// If it was cut before, or the sockets cannot be used.
    pub(super) fn carry(self: &Arc<Self>, link: Link, local: UnixStream) -> io::Result<()> {
        let link = link.without_limits()?;
        local.set_read_timeout(None)?;
        local.set_write_timeout(None)?;
        let handles = (link.handle()?, local.try_clone()?);
        let _carried = self.add(vec![
            End::Link(link.handle()?),
            End::Local(local.try_clone()?),
        ])?;
        let (mut reader, mut writer) = (local.try_clone()?, local);
        let Link {
            mut sender,
            mut receiver,
        } = link;
        let close = || {
            let _ = handles.0.shutdown(Shutdown::Both);
            let _ = handles.1.shutdown(Shutdown::Both);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut bytes = vec![0; CHUNK_MAX];
                while let Ok(length @ 1..) = reader.read(&mut bytes) {
                    if sender.send(&bytes[..length]).is_err() {
                        break;
                    }
                }
                close();
            });
            while let Ok(Some(bytes)) = receiver.receive() {
                if writer.write_all(bytes).is_err() {
                    break;
                }
            }
            close();
        });
        Ok(())
    }
}
