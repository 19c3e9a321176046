//! What primary and secondary say to each other over a [`Link`](super::link::Link). Either side may be another
//! version, and the other host may have fallen into strange hands: each side decides by what it has written down itself.

use crate::error::{Error, ErrorKind};
use crate::model::domain::{GuestState, GuestType};
use crate::model::name::SnapshotId;
use crate::model::replica::{Checkpoint, WantedDisk};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The version of what follows.
pub(super) const VERSION: u32 = 2;

/// Longest text of a configuration, in bytes.
pub(super) const CONFIGURATION_MAX: usize = 256 << 10;

/// Most disks of a domain.
pub(super) const DISKS_MAX: usize = 64;

/// Longest name of a domain, in bytes.
pub(super) const NAME_MAX: usize = 1024;

/// The first words of who connects.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) version: u32,
    pub(super) domain: String,
    pub(super) purpose: Purpose,
}

/// What a connection is for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Purpose {
    /// Requests and answers.
    Control,
    /// What QEMU says to an NBD server, and what that answers.
    Nbd { session: Uuid },
    /// The memory of one checkpoint: an [`Offer`], and after its answer the memory itself
    /// ([`Outgoing`](super::transfer::Outgoing)), whose end is answered too. Once the primary has nothing more to ask, it
    /// ends the connection; what was not made to count by then is dropped.
    Memory { session: Uuid },
}

/// What the primary asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Request {
    /// What is known of the domain?
    Look,
    /// Make or take the disks, and listen.
    Open(Box<Open>),
    /// The present is what counts from now on, with the memory that was stored before, if that is said; nothing is under
    /// way. If it is not answered so, the primary writes no more.
    Checkpoint {
        session: Uuid,
        memory: Option<SnapshotId>,
    },
    /// Is everything as it should be?
    Alive { session: Uuid },
    /// It is over, and not to fail over.
    Close { session: Uuid },
}

/// The start of replication.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Open {
    pub(super) session: Uuid,
    /// Has to be higher than the one that is known there.
    pub(super) generation: u64,
    pub(super) disks: Vec<WantedDisk>,
    /// libxl's configuration of the domain, in JSON.
    pub(super) configuration: String,
    pub(super) domain_config: Option<String>,
}

/// What the primary says of a memory before it sends it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    /// libxl's configuration of the domain, in JSON, as it is now.
    pub(super) configuration: String,
    /// How the guest goes on.
    pub(super) guest: GuestState,
    pub(super) guest_type: GuestType,
    pub(super) domain_uuid: Uuid,
    /// Most bytes that come, of libxl's stream.
    pub(super) at_most: u64,
}

/// What the secondary answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Answer {
    /// To `Look`.
    Seen(Seen),
    /// To `Checkpoint`.
    Checkpointed(Checkpoint),
    /// To the end of a memory: it is on the disk, so many bytes of it.
    Stored { id: SnapshotId, bytes: u64 },
    /// To everything else.
    Done,
    /// It is not done.
    Refused(Refusal),
}

/// What the secondary knows of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The highest generation; 0 for a domain that it does not know.
    pub generation: u64,
    /// When it failed over, in seconds since 1970-01-01 00:00 UTC, if it did.
    pub failed_over: Option<u64>,
    /// The last checkpoint.
    pub checkpoint: Option<Checkpoint>,
}

/// Why something is not done.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub(super) why: Why,
    /// In words, with the way out.
    pub(super) text: String,
}

/// What the other side decides on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Why {
    /// The secondary has failed over: it is the domain now.
    Lost { at: u64, generation: u64 },
    /// Another start is newer.
    Behind { generation: u64 },
    /// It says so in words.
    Other,
}

impl Refusal {
    pub(super) fn of(error: &Error) -> Self {
        Self {
            why: Why::Other,
            text: error.report(),
        }
    }
}

/// A refusal as it came over, which callers decide on.
#[derive(Debug, thiserror::Error)]
#[error("the secondary refuses: {text}")]
pub(super) struct Refused {
    pub(super) why: Why,
    pub(super) text: String,
}

impl Refused {
    /// As an error of ours. What the peer says is shown without what could move a terminal's cursor.
    pub(super) fn as_error(refusal: &Refusal, what: &str) -> Error {
        let shown = |letter: char| !letter.is_control() || letter == '\n';
        let text: String = refusal
            .text
            .chars()
            .filter(|it| shown(*it))
            .take(4096)
            .collect();
        let kind = match refusal.why {
            Why::Lost { .. } => ErrorKind::Stale,
            Why::Behind { .. } | Why::Other => ErrorKind::DomainState,
        };
        let why = refusal.why;
        Error::new(kind, what).because(Self { why, text })
    }

    /// That of an error, if it is one.
    pub(super) fn of(error: &Error) -> Option<Why> {
        let mut cause = std::error::Error::source(error);
        while let Some(below) = cause {
            if let Some(refused) = below.downcast_ref::<Self>() {
                return Some(refused.why);
            }
            cause = below.source();
        }
        None
    }
}
