//! The process that listens on a secondary. It remembers nothing that is not written down: one that was killed and is
//! started again goes on, and a failover does not need it.

use super::link::Link;
use super::pair::{Key, Pairs};
use super::protocol::{Answer, Hello, Purpose, Refusal, Request, VERSION, Why};
use super::relay::Relays;
use super::replica::{Replicas, check_name};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// How long somebody may take to show that he has a key, and to say what he wants.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// Most who have not shown it yet.
const STRANGERS_MAX: usize = 16;

/// Most who are connected.
const CONNECTIONS_MAX: usize = 512;

/// How long a primary may say nothing. It says something more often than it waits for us.
const IDLE_LIMIT: Duration = Duration::from_secs(300);

/// How long it may take to hear an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Between two looks at whether to stop.
const LOOK_EVERY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// A secondary that listens.
pub struct Server {
    listener: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    replicas: Replicas,
    /// What is carried to the disks of each domain, by whose start.
    relays: Mutex<HashMap<String, (Uuid, Arc<Relays>)>>,
    strangers: AtomicUsize,
    connections: AtomicUsize,
}

/// One of a number that is bounded.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(taken: &'a AtomicUsize, most: usize) -> Option<Self> {
        let before = taken.fetch_add(1, Ordering::Relaxed);
        let place = Self(taken);
        (before < most).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    /// Listens at an address, HOST:PORT.
    ///
    /// # Errors
    /// If it cannot, or the store cannot be read.
    pub fn bind(address: &str, replicas: Replicas) -> Result<Self> {
        // Whoever has no key can be served by nobody.
        if Pairs::of(&replicas.store).all()?.is_empty() {
            return Err(
                Error::new(ErrorKind::InvalidRequest, "this host has no key of a pair").hint(
                    "`xl-ext replication-pair NAME` makes one; `--export` and `--import` carry it over",
                ),
            );
        }
        let listener = TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|error| Error::io(format!("listen at {address}"), error))?;
        Ok(Self {
            listener,
            shared: Arc::new(Shared {
                replicas,
                relays: Mutex::default(),
                strangers: AtomicUsize::new(0),
                connections: AtomicUsize::new(0),
            }),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the socket does not say.
    pub fn address(&self) -> Result<SocketAddr> {
        let address = self.listener.local_addr();
        address.map_err(|error| Error::io("look at the socket", error))
    }

    /// Serves until the observer wants it to stop. The domains' QEMUs go on then.
    ///
    /// # Errors
    /// If it can listen no more.
    pub fn serve(&self, observer: &dyn Observer) -> Result<()> {
        let failed = |error: io::Error| Error::io("listen for primaries", error);
        while !observer.wants_abort() {
            let mut ready = [PollFd::new(&self.listener, PollFlags::IN)];
            match poll(&mut ready, Some(&LOOK_EVERY)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(failed(error.into())),
            }
            match self.listener.accept() {
                Ok((stream, from)) => self.welcome(stream, from),
                // One that has gone again, or too many files: the next one may be let in.
                Err(error) => {
                    tracing::debug!("accept: {error}");
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        Ok(())
    }

    fn welcome(&self, stream: TcpStream, from: SocketAddr) {
        let shared = Arc::clone(&self.shared);
        let attend = move || {
            let Some(_place) = Place::take(&shared.connections, CONNECTIONS_MAX) else {
                return tracing::warn!("{from} is sent away: too many are connected");
            };
            if let Err(error) = shared.attend(stream) {
                tracing::info!("{from}: {error}");
            }
        };
        if let Err(error) = std::thread::Builder::new().spawn(attend) {
            tracing::warn!("{from} is sent away: {error}");
        }
    }
}

impl Shared {
    fn attend(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        let (pair, mut link, hello) = {
            let Some(_place) = Place::take(&self.strangers, STRANGERS_MAX) else {
                return Err(io::Error::other("too many others have yet to show a key"));
            };
            // Anew each time: keys come and go while it listens.
            let keys = Pairs::of(&self.replicas.store).all();
            let keys = keys.map_err(|error| io::Error::other(error.report()))?;
            let keys: Vec<(String, Key)> =
                keys.into_iter().map(|pair| (pair.name, pair.key)).collect();
            let (pair, mut link) = Link::accept(stream, &keys, GREETING_LIMIT)?;
            let hello: Hello = link.hear(GREETING_LIMIT)?;
            (pair.clone(), link, hello)
        };
        let refusal = if hello.version == VERSION {
            check_name(&hello.domain).err().map(Refusal::from)
        } else {
            Some(Refusal {
                why: Why::Other,
                text: format!("this host speaks version {VERSION}, not {}", hello.version),
            })
        };
        if let Some(refusal) = refusal {
            return link.say(&Answer::Refused(refusal), ANSWER_LIMIT);
        }
        match hello.purpose {
            Purpose::Control => self.converse(&hello.domain, &pair, link),
            Purpose::Nbd { session } => self.carry(&hello.domain, &pair, session, link),
            Purpose::Memory { session } => self.receive(&hello.domain, &pair, session, link),
        }
    }

    fn converse(&self, domain: &str, pair: &str, mut link: Link) -> io::Result<()> {
        link.say(&Answer::Done, ANSWER_LIMIT)?;
        loop {
            let request: Request = match link.hear(IDLE_LIMIT) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                heard => heard?,
            };
            let opened = match &request {
                Request::Open(open) => Some(open.session),
                _ => None,
            };
            let answer = self.replicas.answer(domain, pair, request);
            if let (Some(session), Answer::Done) = (opened, &answer) {
                self.begin_to_carry(domain, session);
            }
            link.say(&answer, ANSWER_LIMIT)?;
        }
    }

    fn relays(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Uuid, Arc<Relays>)>> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A start of replication is the newest: whoever wrote before, writes no more.
    fn begin_to_carry(&self, domain: &str, session: Uuid) {
        let ours = (session, Arc::new(Relays::default()));
        if let Some((_, before)) = self.relays().insert(domain.to_owned(), ours) {
            before.cut();
        }
    }

    /// What is carried for a start of replication, if no newer one has begun. One of before we were started is as good.
    fn relays_of(&self, domain: &str, session: Uuid) -> Option<Arc<Relays>> {
        let mut all = self.relays();
        let fresh = || (session, Arc::new(Relays::default()));
        let (known, relays) = all.entry(domain.to_owned()).or_insert_with(fresh);
        (*known == session).then(|| Arc::clone(relays))
    }

    fn carry(&self, domain: &str, pair: &str, session: Uuid, mut link: Link) -> io::Result<()> {
        let socket = match self.replicas.nbd(domain, pair, session) {
            Ok(socket) => socket,
            Err(refusal) => return link.say(&Answer::Refused(refusal), ANSWER_LIMIT),
        };
        let Some(relays) = self.relays_of(domain, session) else {
            return link.say(&newer(), ANSWER_LIMIT);
        };
        let qemu = match UnixStream::connect(socket) {
            Ok(qemu) => qemu,
            Err(error) => {
                let error = Error::io("connect to the secondary's QEMU", error);
                return link.say(&Answer::Refused(error.into()), ANSWER_LIMIT);
            }
        };
        link.say(&Answer::Done, ANSWER_LIMIT)?;
        relays.carry(link, qemu)
    }

    /// The memory of a checkpoint, as long as no newer start of replication has begun.
    fn receive(&self, domain: &str, pair: &str, session: Uuid, mut link: Link) -> io::Result<()> {
        if let Err(refusal) = self.replicas.nbd(domain, pair, session) {
            return link.say(&Answer::Refused(refusal), ANSWER_LIMIT);
        }
        let Some(relays) = self.relays_of(domain, session) else {
            return link.say(&newer(), ANSWER_LIMIT);
        };
        let _carried = relays.watch(&link)?;
        link.say(&Answer::Done, ANSWER_LIMIT)?;
        self.replicas.receive(domain, pair, session, &mut link)
    }
}

fn newer() -> Answer {
    Answer::Refused(Refusal {
        why: Why::Other,
        text: "another start of replication is newer".into(),
    })
}
