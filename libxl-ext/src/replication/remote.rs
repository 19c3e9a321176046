//! The secondary as the primary sees it, over the wire.

use super::link::Link;
use super::pair::Key;
use super::protocol::{Answer, Hello, Open, Purpose, Refused, Request, Seen, VERSION};
use super::{Mode, ReplicationOps};
use crate::error::{Error, ErrorKind, Result};
use crate::model::name::SnapshotId;
use crate::model::replica::Checkpoint;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// How long the secondary may take to make images and start its QEMU.
const OPEN_LIMIT: Duration = Duration::from_secs(180);

/// How long it may take to set its disks back.
const CLOSE_LIMIT: Duration = Duration::from_secs(900);

/// A conversation about one domain.
pub(super) struct Line {
    peer: String,
    /// None once a request was not answered in time: what comes then could be the answer to that.
    link: Mutex<Option<Link>>,
}

impl Line {
    pub(super) fn connect(peer: &str, key: &Key, domain: &str, limit: Duration) -> Result<Self> {
        let link = greeted(peer, key, domain, Purpose::Control, limit)?;
        Ok(Self {
            peer: peer.to_owned(),
            link: Mutex::new(Some(link)),
        })
    }

    fn ask(&self, what: &str, request: &Request, limit: Duration) -> Result<Answer> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let what = format!("{what} at the secondary {}", self.peer);
        let Some(mut there) = link.take() else {
            return Err(Error::new(ErrorKind::Toolstack, what)
                .because("it did not answer before, and is asked no more"));
        };
        let said = there.say(request, limit).and_then(|()| there.hear(limit));
        match said {
            Err(error) => Err(Error::new(ErrorKind::Toolstack, what).because(in_words(error))),
            Ok(answer) => {
                *link = Some(there);
                match answer {
                    Answer::Refused(refusal) => Err(Refused::as_error(&refusal, &what)),
                    answer => Ok(answer),
                }
            }
        }
    }

    /// What it knows of the domain.
    pub(super) fn look(&self, limit: Duration) -> Result<Seen> {
        match self.ask("look for the domain", &Request::Look, limit)? {
            Answer::Seen(seen) => Ok(seen),
            _ => Err(strange()),
        }
    }
}

/// Connects, and says what for.
pub(super) fn greeted(
    peer: &str,
    key: &Key,
    domain: &str,
    purpose: Purpose,
    limit: Duration,
) -> Result<Link> {
    let mut link = Link::connect(peer, key, limit)?;
    let hello = Hello {
        version: VERSION,
        domain: domain.to_owned(),
        purpose,
    };
    let what = format!("begin to talk to the secondary at {peer}");
    let said = link.say(&hello, limit).and_then(|()| link.hear(limit));
    match said {
        Ok(Answer::Done) => Ok(link),
        Ok(Answer::Refused(refusal)) => Err(Refused::as_error(&refusal, &what)),
        Ok(_) => Err(strange()),
        Err(error) => Err(Error::new(ErrorKind::Toolstack, what).because(in_words(error))),
    }
}

/// Whether the secondary and its QEMU are there, and as they should be.
pub(super) fn alive(line: &Line, session: Uuid, limit: Duration) -> Result<()> {
    match line.ask("look", &Request::Alive { session }, limit)? {
        Answer::Done => Ok(()),
        _ => Err(strange()),
    }
}

/// Asks a secondary what it knows of a domain.
///
/// # Errors
/// If nobody answers there within the limit, or the domain is none of the business of who has this key.
pub fn ask_secondary(peer: &str, key: &Key, domain: &str, limit: Duration) -> Result<Seen> {
    Line::connect(peer, key, domain, limit)?.look(limit)
}

/// Tells a secondary that a start of replication is over.
///
/// # Errors
/// As [`ask_secondary`]; if it has failed over.
pub(crate) fn close_secondary(
    peer: &str,
    key: &Key,
    domain: &str,
    session: Uuid,
    limit: Duration,
) -> Result<()> {
    let line = Line::connect(peer, key, domain, limit)?;
    line.ask("stop replication", &Request::Close { session }, CLOSE_LIMIT)
        .map(drop)
}

pub(super) fn strange() -> Error {
    Error::new(
        ErrorKind::Toolstack,
        "the secondary answers something else than it was asked",
    )
}

pub(super) fn in_words(error: std::io::Error) -> std::io::Error {
    match error.kind() {
        std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => {
            std::io::Error::other("it says nothing")
        }
        std::io::ErrorKind::UnexpectedEof => std::io::Error::other("it has ended the connection"),
        _ => error,
    }
}

/// What both sides agree on.
#[derive(Default)]
pub(super) struct Agreed {
    last: Mutex<Option<Checkpoint>>,
    /// What is stored there and is to count with the next checkpoint.
    memory: Mutex<Option<SnapshotId>>,
}

impl Agreed {
    /// The last checkpoint.
    pub(super) fn last(&self) -> Option<Checkpoint> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next checkpoint is with this memory, or without.
    pub(super) fn next_is_with(&self, stored: Option<SnapshotId>) {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = stored;
    }
}

/// All disks of the domain at the secondary.
pub(super) struct RemoteSecondary {
    pub(super) line: Arc<Line>,
    /// What is opened there.
    pub(super) wanted: Open,
    /// How long it may be silent: the guest stands still for a checkpoint.
    pub(super) heartbeat: Duration,
    /// What it has agreed to.
    pub(super) agreed: Arc<Agreed>,
}

impl RemoteSecondary {
    fn ask(&self, what: &str, request: &Request, limit: Duration) -> Result<()> {
        match self.line.ask(what, request, limit)? {
            Answer::Done => Ok(()),
            _ => Err(strange()),
        }
    }
}

impl ReplicationOps for RemoteSecondary {
    fn start(&mut self, mode: Mode) -> Result<()> {
        if mode != Mode::Secondary {
            return Err(super::qdisk::wrong_mode(mode));
        }
        self.ask(
            "start replication",
            &Request::Open(Box::new(self.wanted.clone())),
            OPEN_LIMIT,
        )
    }

    fn checkpoint(&mut self) -> Result<()> {
        let session = self.wanted.session;
        let agreed = &self.agreed;
        let mut stored = agreed.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = stored.take();
        drop(stored);
        let request = Request::Checkpoint { session, memory };
        match self
            .line
            .ask("make a checkpoint", &request, self.heartbeat)?
        {
            Answer::Checkpointed(checkpoint) => {
                *agreed.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(checkpoint);
                Ok(())
            }
            _ => Err(strange()),
        }
    }

    fn error(&mut self) -> Result<()> {
        alive(&self.line, self.wanted.session, self.heartbeat)
    }

    /// It is told that it is over, and not to fail over: its guest is the one here.
    fn stop(&mut self, _failover: bool) -> Result<()> {
        let session = self.wanted.session;
        self.ask("stop replication", &Request::Close { session }, CLOSE_LIMIT)
    }
}
