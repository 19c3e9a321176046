//! What QEMU says to an NBD server, carried over a [`Link`].

use super::link::{CHUNK_MAX, Link};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

/// Everything that is being carried, so that it can be cut at once, whoever waits for whom.
#[derive(Default)]
pub(super) struct Relays {
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    is_cut: bool,
    last: u64,
    ends: Vec<(u64, TcpStream, UnixStream)>,
}

impl Relays {
    fn now(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts all that are there, and those that come.
    pub(super) fn cut(&self) {
        let mut now = self.now();
        now.is_cut = true;
        for (_, link, local) in now.ends.drain(..) {
            // Who has gone needs no cutting.
            let _ = link.shutdown(Shutdown::Both);
            let _ = local.shutdown(Shutdown::Both);
        }
    }

    /// Whether it was cut.
    pub(super) fn is_cut(&self) -> bool {
        self.now().is_cut
    }

    /// Carries what either side says to the other, until one of them has gone.
    ///
    /// # Errors
    /// If it was cut before, or the sockets cannot be used.
    pub(super) fn carry(&self, link: Link, local: UnixStream) -> io::Result<()> {
        let link = link.without_limits()?;
        local.set_read_timeout(None)?;
        local.set_write_timeout(None)?;
        let handles = (link.handle()?, local.try_clone()?);
        let number = {
            let mut now = self.now();
            if now.is_cut {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            now.last += 1;
            let number = now.last;
            now.ends.push((number, link.handle()?, local.try_clone()?));
            number
        };
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
        self.now().ends.retain(|(other, ..)| *other != number);
        Ok(())
    }
}
