//! What each side remembers of the replication of a domain: who is right is told by the generation.

use super::disk::{DiskTarget, ImageFormat};
use super::domain::{DomainLife, GuestState};
use super::process::ProcessId;
use super::record::ManagedImage;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;
use uuid::Uuid;

/// The TCP port on which a secondary listens, unless it is told another one.
pub const DEFAULT_PORT: u16 = 9_433;

/// What a store remembers of the replication of one domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationRecord {
    /// Name of the domain.
    pub domain: String,
    /// Raised by each start, on both sides, and by a failover, on the side that goes on. Whoever has the higher one is
    /// right.
    pub generation: u64,
    /// What this host is to the domain.
    pub role: Role,
}

impl ReplicationRecord {
    /// What keeps others from changing the domain, in words that follow its name; none once replication is over.
    pub fn claim(&self) -> Option<String> {
        match &self.role {
            Role::Primary(primary) => match &primary.state {
                PrimaryState::Stopped { .. } => None,
                PrimaryState::Lost { .. } => Some(format!(
                    "is the domain of {} now: it has failed over",
                    primary.peer
                )),
                state => Some(format!("is replicated to {} ({state})", primary.peer)),
            },
            Role::Secondary(replica) => match replica.state {
                ReplicaState::Stopped { .. } | ReplicaState::FailedOver { .. } => None,
                state => Some(format!("is replicated to this host ({state})")),
            },
        }
    }
}

/// What a host is to a domain that is replicated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The domain runs here.
    Primary(Primary),
    /// It could go on here.
    Secondary(Replica),
}

/// How long both sides wait for each other, and how often they agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// How long the secondary may be silent before the guest goes on without it, in milliseconds.
    pub heartbeat_ms: u64,
    /// Between two checkpoints, in milliseconds; none by itself if not said.
    pub interval_ms: Option<u64>,
}

impl Pace {
    /// The first of the two, as a duration.
    pub const fn heartbeat(self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }

    /// The second one.
    pub fn interval(self) -> Option<Duration> {
        self.interval_ms.map(Duration::from_millis)
    }
}

/// The side on which the domain runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Primary {
    /// Which start of replication it was.
    pub session: Uuid,
    /// Where the secondary listens: HOST:PORT.
    pub peer: String,
    /// Name of the key that both hosts have.
    pub pair: String,
    /// How long is waited, and how often a checkpoint made.
    pub pace: Pace,
    /// The disks that are replicated.
    pub disks: Vec<DiskTarget>,
    /// Whether a checkpoint is of the memory too.
    #[serde(default)]
    pub memory: bool,
    /// Which life of the domain.
    pub life: DomainLife,
    /// The configuration file's text with which the domain is to be started there, if it was given.
    pub domain_config: Option<String>,
    /// The process that keeps it going.
    pub keeper: Option<ProcessId>,
    /// What is to be done for the guest to go on, as long as it is suspended for a checkpoint: if the keeper is killed
    /// then, whoever comes next does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standing: Option<Standing>,
    /// How it is.
    pub state: PrimaryState,
}

/// How a guest was before it was suspended for a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// How it goes on.
    pub guest: GuestState,
    /// The monitor of xl's that is held meanwhile.
    pub monitor: Option<ProcessId>,
}

/// How replication is on the primary. Times are in seconds since 1970-01-01 00:00 UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrimaryState {
    /// The first copy is under way.
    Starting,
    /// What the guest writes goes to both sides.
    Running {
        /// Since when.
        since: u64,
    },
    /// The guest goes on alone.
    Broken {
        /// Since when.
        at: u64,
        /// Why.
        why: String,
    },
    /// It was stopped.
    Stopped {
        /// When.
        at: u64,
    },
    /// The other side has failed over: it is the domain now.
    Lost {
        /// When it did.
        at: u64,
    },
}

/// A checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Counted from 1 within a session.
    pub number: u64,
    /// When the secondary had it, in seconds since 1970-01-01 00:00 UTC.
    pub at: u64,
}

/// The side on which the domain could go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Names its directories.
    pub id: Uuid,
    /// Which start of replication it was: no other may write.
    pub session: Uuid,
    /// Name of the key that both hosts have.
    pub pair: String,
    /// Its disks.
    pub disks: Vec<DiskTarget>,
    /// libxl's configuration of the domain, in JSON, as it is on the primary.
    pub configuration: String,
    /// The configuration file's text with which the domain is to be started here, if it was given.
    pub domain_config: Option<String>,
    /// The last checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// The memory at that checkpoint, as the saved state that it becomes with a failover; none where it is of the disks
    /// alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Box<ManagedImage>>,
    /// The memory of a checkpoint that is being made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Box<Pending>>,
    /// How it is.
    pub state: ReplicaState,
}

/// Memory that is here, whole and on the disk, and counts for nothing yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// What it becomes.
    pub image: ManagedImage,
    /// Whether the primary has said that it is to count. The disks' part of the checkpoint follows, and nothing is
    /// written to them before it has: whoever finds it so makes that checkpoint, once more if need be.
    pub is_decided: bool,
}

#[cfg(test)]
impl Replica {
    /// One without disks, of the pair `p`.
    pub(crate) fn of_nothing(state: ReplicaState) -> Self {
        Self {
            id: Uuid::nil(),
            session: Uuid::nil(),
            pair: "p".into(),
            disks: Vec::new(),
            configuration: "{}".into(),
            domain_config: None,
            checkpoint: None,
            memory: None,
            pending: None,
            state,
        }
    }
}

/// How replication is on the secondary. Times are in seconds since 1970-01-01 00:00 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaState {
    /// The first copy is under way: its disks are of no instant.
    Receiving,
    /// It could be set back to the last checkpoint.
    Replicating,
    /// It is being set back; the primary has lost.
    FailingOver {
        /// Since when.
        at: u64,
    },
    /// It is set back, and on the disk.
    Merged {
        /// When the failover began.
        at: u64,
    },
    /// It is the domain now.
    FailedOver {
        /// When the failover began.
        at: u64,
    },
    /// It was stopped; its disks are those of the last checkpoint, if there was one.
    Stopped {
        /// When.
        at: u64,
    },
}

impl ReplicaState {
    /// When the failover began, if one did.
    pub const fn failed_over(self) -> Option<u64> {
        match self {
            Self::FailingOver { at } | Self::Merged { at } | Self::FailedOver { at } => Some(at),
            Self::Receiving | Self::Replicating | Self::Stopped { .. } => None,
        }
    }
}

impl fmt::Display for ReplicaState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Receiving => "receiving",
            Self::Replicating => "replicating",
            Self::FailingOver { .. } | Self::Merged { .. } => "failing over",
            Self::FailedOver { .. } => "failed over",
            Self::Stopped { .. } => "stopped",
        })
    }
}

impl fmt::Display for PrimaryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running { .. } => "running",
            Self::Broken { .. } => "broken",
            Self::Stopped { .. } => "stopped",
            Self::Lost { .. } => "lost",
        })
    }
}

/// What the primary says of a disk: the rest of it is the secondary's to decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedDisk {
    /// Name of the virtual device.
    pub vdev: String,
    /// Format of the image.
    pub format: ImageFormat,
    /// Its length as the guest sees it, in bytes.
    pub length: u64,
}
