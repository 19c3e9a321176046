//! How the replication of a domain is, as either side knows it.

use super::{STATUS_LIMIT, broken, is_kept};
use crate::error::Result;
use crate::model::disk::DiskTarget;
use crate::model::record::MemoryProof;
use crate::model::replica::{Checkpoint, PrimaryState, ReplicaState, ReplicationRecord, Role};
use crate::replication::RUN_DIRECTORY;
use crate::replication::keeper::{self, Command};
use crate::snapshot::Host;
use serde::Serialize;
use std::path::Path;

/// The memory of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CheckpointMemory {
    /// Bytes of it, as libxl writes them; not known before the first checkpoint, nor on the primary without its keeper.
    pub bytes: Option<u64>,
    /// Bytes that were stored for it, on the secondary: only pages that the checkpoint before did not have.
    pub stored_bytes: Option<u64>,
}

/// How the replication of a domain is.
#[derive(Clone, Debug, Serialize)]
pub struct ReplicationInfo {
    /// The domain.
    pub domain: String,
    /// What this host is to it: `primary` or `secondary`.
    pub role: &'static str,
    /// Of the primary `starting`, `running`, `broken`, `stopped` or `lost`; of the secondary `receiving`, `replicating`,
    /// `failing over`, `failed over` or `stopped`.
    pub state: String,
    /// Since when, in seconds since 1970-01-01 00:00 UTC, if it is known.
    pub since: Option<u64>,
    /// Why it is broken.
    pub why: Option<String>,
    /// Raised by each start and each failover.
    pub generation: u64,
    /// Where the secondary is, on the primary.
    pub peer: Option<String>,
    /// Name of the key.
    pub pair: String,
    /// The disks, as they are on this host.
    pub disks: Vec<DiskTarget>,
    /// The last checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// For how long the guest stood still for that, in microseconds.
    pub pause_us: Option<u64>,
    /// Its memory; none where a checkpoint is of the disks alone.
    pub memory: Option<CheckpointMemory>,
    /// Whether the process is there that keeps it going: the keeper, or the secondary's QEMU.
    pub is_served: bool,
}

impl Host {
    /// How replication is, of one domain or of all that this host has to do with.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] if the domain is not replicated; what the store reports.
    pub fn replications(&self, domain: Option<&str>) -> Result<Vec<ReplicationInfo>> {
        let records = match domain {
            Some(domain) => vec![self.replication_of(domain)?.1],
            None => self.store.replications()?,
        };
        records
            .into_iter()
            .map(|record| self.info(record))
            .collect()
    }

    fn info(&self, record: ReplicationRecord) -> Result<ReplicationInfo> {
        let (domain, generation) = (record.domain, record.generation);
        Ok(match record.role {
            Role::Primary(primary) => {
                let is_served = is_kept(&primary);
                let run = Path::new(RUN_DIRECTORY);
                let told = is_served.then(|| {
                    keeper::tell(run, primary.session, Command::Status, STATUS_LIMIT).ok()
                });
                let told = told.flatten();
                let state = match &told {
                    Some(told) => told.state.clone(),
                    None if is_served => primary.state.clone(),
                    None => broken(&primary),
                };
                let (since, why) = match &state {
                    PrimaryState::Starting => (None, None),
                    PrimaryState::Running { since: at }
                    | PrimaryState::Stopped { at }
                    | PrimaryState::Lost { at } => (Some(*at), None),
                    PrimaryState::Broken { at, why } => (Some(*at), Some(why.clone())),
                };
                ReplicationInfo {
                    domain,
                    role: "primary",
                    state: state.to_string(),
                    since,
                    why,
                    generation,
                    peer: Some(primary.peer),
                    pair: primary.pair,
                    disks: primary.disks,
                    checkpoint: told.as_ref().and_then(|told| told.checkpoint),
                    pause_us: told.as_ref().and_then(|told| told.pause_us),
                    memory: primary.memory.then(|| CheckpointMemory {
                        bytes: told.and_then(|told| told.memory_bytes),
                        stored_bytes: None,
                    }),
                    is_served,
                }
            }
            Role::Secondary(replica) => ReplicationInfo {
                is_served: self.replicas().is_served(&domain, &replica)?,
                domain,
                role: "secondary",
                state: replica.state.to_string(),
                since: match replica.state {
                    ReplicaState::Receiving | ReplicaState::Replicating => None,
                    ReplicaState::FailingOver { at }
                    | ReplicaState::Merged { at }
                    | ReplicaState::FailedOver { at }
                    | ReplicaState::Stopped { at } => Some(at),
                },
                why: None,
                generation,
                peer: None,
                pair: replica.pair,
                disks: replica.disks,
                checkpoint: replica.checkpoint,
                pause_us: None,
                memory: replica.memory.map(|image| {
                    let proof = image.memory.as_ref();
                    CheckpointMemory {
                        bytes: proof.map(|proof| proof.bytes),
                        stored_bytes: proof.map(MemoryProof::stored_bytes),
                    }
                }),
            },
        })
    }
}
