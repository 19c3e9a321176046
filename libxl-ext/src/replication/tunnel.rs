//! The primary's end of what its QEMU says to the secondary: a UNIX socket that QEMU connects to. Whoever is silent at the
//! other end holds up the guest's writes until the tunnel is cut, which needs neither QEMU nor the peer.

use super::link::Link;
use super::pair::Key;
use super::protocol::Purpose;
use super::qdisk::NbdAddress;
use super::relay::{Carried, Relays};
use super::remote::greeted;
use crate::error::{Error, Result};
use crate::store::absent_is_fine;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use uuid::Uuid;

/// Between two looks at whether it was cut.
const LOOK_EVERY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Where it leads.
#[derive(Clone)]
pub(super) struct End {
    pub(super) peer: String,
    pub(super) key: Key,
    pub(super) domain: String,
    pub(super) session: Uuid,
    /// How long it may be silent.
    pub(super) heartbeat: Duration,
}

/// It is cut when it is dropped.
pub(super) struct Tunnel {
    path: PathBuf,
    relays: Arc<Relays>,
    heart: Arc<Heart>,
    threads: Vec<JoinHandle<()>>,
}

/// Feels the secondary's pulse all the time.
#[derive(Default)]
struct Heart {
    state: Mutex<Beat>,
    changed: Condvar,
}

#[derive(Default)]
struct Beat {
    /// Why it beats no more.
    trouble: Option<Error>,
    is_over: bool,
}

impl Heart {
    fn state(&self) -> std::sync::MutexGuard<'_, Beat> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tunnel {
    /// Listens for QEMU. The heart does not beat yet.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub(super) fn open(path: PathBuf, end: End) -> Result<Self> {
        let failed =
            |error: std::io::Error| Error::io(format!("listen at {}", path.display()), error);
        absent_is_fine(std::fs::remove_file(&path)).map_err(failed)?;
        let listener = UnixListener::bind(&path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let relays = Arc::new(Relays::default());
        let carrying = Arc::clone(&relays);
        let accept = move || accept_all(&listener, &end, &carrying);
        let thread = std::thread::Builder::new().spawn(accept).map_err(failed)?;
        Ok(Self {
            path,
            relays,
            heart: Arc::default(),
            threads: vec![thread],
        })
    }

    pub(super) fn address(&self) -> NbdAddress {
        NbdAddress::Unix(self.path.clone())
    }

    /// From now on, cuts the tunnel as soon as `pulse`, which has a limit of its own, tells of an error.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub(super) fn begin_to_beat(
        &mut self,
        every: Duration,
        pulse: impl Fn() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (relays, heart) = (Arc::clone(&self.relays), Arc::clone(&self.heart));
        let beat = move || {
            while !heart.state().is_over {
                if let Err(error) = pulse() {
                    // Before anything else: the guest's writes may wait.
                    relays.cut();
                    let mut state = heart.state();
                    if !state.is_over {
                        state.trouble = Some(error);
                    }
                    return;
                }
                let state = heart.state();
                let goes_on = |state: &mut Beat| !state.is_over;
                drop(heart.changed.wait_timeout_while(state, every, goes_on));
            }
        };
        let spawned = std::thread::Builder::new().spawn(beat);
        self.threads
            .push(spawned.map_err(|error| Error::io("start a thread", error))?);
        Ok(())
    }

    /// Why it was cut, if the heart has stopped; it is told once.
    pub(super) fn trouble(&self) -> Option<Error> {
        self.heart.state().trouble.take()
    }

    /// Has a link of one's own cut with it, as long as what is returned lives.
    ///
    /// # Errors
    /// If it was cut before.
    pub(super) fn watch(&self, link: &Link) -> std::io::Result<Carried> {
        self.relays.watch(link)
    }

    /// Cuts it.
    pub(super) fn cut(&self) {
        self.heart.state().is_over = true;
        self.heart.changed.notify_all();
        self.relays.cut();
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.cut();
        for thread in self.threads.drain(..) {
            // What it panicked of, it has said.
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn accept_all(listener: &UnixListener, end: &End, relays: &Arc<Relays>) {
    while !relays.is_cut() {
        let mut ready = [PollFd::new(listener, PollFlags::IN)];
        if !matches!(poll(&mut ready, Some(&LOOK_EVERY)), Ok(1..)) {
            continue;
        }
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        let (end, relays) = (end.clone(), Arc::clone(relays));
        let carry = move || {
            if let Err(error) = carry(stream, &end, &relays) {
                tracing::debug!("{}", error.report());
            }
        };
        if let Err(error) = std::thread::Builder::new().spawn(carry) {
            tracing::warn!("QEMU is sent away: {error}");
        }
    }
}

fn carry(qemu: UnixStream, end: &End, relays: &Arc<Relays>) -> Result<()> {
    let failed = |error: std::io::Error| Error::io("carry what QEMU says", error);
    qemu.set_nonblocking(false).map_err(failed)?;
    let session = end.session;
    let link = greeted(
        &end.peer,
        &end.key,
        &end.domain,
        Purpose::Nbd { session },
        end.heartbeat,
    )?;
    relays.carry(link, qemu).map_err(failed)
}
