//! What is done for whom: each side decides by what it has written down itself.

use super::super::protocol::{
    Answer, CONFIGURATION_MAX, DISKS_MAX, NAME_MAX, Open, Refusal, Seen, Why,
};
use super::super::qdisk::NbdAddress;
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::DiskTarget;
use crate::model::replica::{
    PrimaryState, Replica, ReplicaState, ReplicationRecord, Role, WantedDisk,
};
use crate::model::replication;
use crate::store::DomainStore;
use std::path::Path;
use uuid::Uuid;

/// The replica of a domain on this host.
pub(super) fn find(own: &DomainStore) -> Result<(ReplicationRecord, Replica)> {
    let record = own.replication()?;
    match record {
        Some(ReplicationRecord {
            role: Role::Secondary(replica),
            domain,
            generation,
        }) => {
            let role = Role::Secondary(replica.clone());
            let record = ReplicationRecord {
                domain,
                generation,
                role,
            };
            Ok((record, replica))
        }
        _ => Err(Error::new(
            ErrorKind::DomainState,
            format!("domain '{}' is not replicated to this host", own.name()),
        )
        .hint("`xl-ext replication-status` lists those that are")),
    }
}

pub(super) fn look(own: &DomainStore, pair: &str) -> Result<Answer, Refusal> {
    let Some(record) = own.replication()? else {
        return Ok(Answer::Seen(Seen {
            generation: 0,
            failed_over: None,
            checkpoint: None,
        }));
    };
    let (failed_over, checkpoint) = match &record.role {
        Role::Secondary(replica) => {
            require_pair(own.name(), replica, pair)?;
            (replica.state.failed_over(), replica.checkpoint)
        }
        Role::Primary(_) => (None, None),
    };
    Ok(Answer::Seen(Seen {
        generation: record.generation,
        failed_over,
        checkpoint,
    }))
}

fn require_pair(domain: &str, replica: &Replica, pair: &str) -> Result<()> {
    if replica.pair == pair {
        return Ok(());
    }
    // Nothing more is said to a host that the domain is none of the business of.
    Err(Error::new(
        ErrorKind::DomainState,
        format!("domain '{domain}' is replicated by another pair of hosts"),
    ))
}

fn lost(record: &ReplicationRecord, at: u64) -> Refusal {
    Refusal {
        why: Why::Lost {
            at,
            generation: record.generation,
        },
        text: format!("domain '{}' has failed over to this host", record.domain),
    }
}

/// Whether a start may be accepted; what there is of an earlier one.
pub(super) fn require_open<'a>(
    known: &'a ReplicationRecord,
    pair: &str,
    generation: u64,
) -> Result<Option<&'a Replica>, Refusal> {
    let replica = match &known.role {
        Role::Secondary(replica) => {
            require_pair(&known.domain, replica, pair)?;
            if let Some(at) = replica.state.failed_over() {
                return Err(lost(known, at));
            }
            Some(replica)
        }
        Role::Primary(primary) => match primary.state {
            PrimaryState::Lost { .. } | PrimaryState::Stopped { .. } => None,
            _ => {
                let what = format!("domain '{}' is replicated from this host", known.domain);
                let error = Error::new(ErrorKind::DomainState, what);
                return Err(error.hint("stop that first, on it").into());
            }
        },
    };
    if generation <= known.generation {
        return Err(Refusal {
            why: Why::Behind {
                generation: known.generation,
            },
            text: format!(
                "generation {generation} of domain '{}' is not newer than {}",
                known.domain, known.generation
            ),
        });
    }
    Ok(replica)
}

/// The replica, if it is that of this start.
pub(super) fn require_session(
    own: &DomainStore,
    pair: &str,
    session: Uuid,
) -> Result<(ReplicationRecord, Replica), Refusal> {
    let (record, replica) = find(own)?;
    require_pair(own.name(), &replica, pair)?;
    if let Some(at) = replica.state.failed_over() {
        return Err(lost(&record, at));
    }
    if replica.session != session {
        return Err(Refusal {
            why: Why::Behind {
                generation: record.generation,
            },
            text: "another start of replication is newer".into(),
        });
    }
    if matches!(replica.state, ReplicaState::Stopped { .. }) {
        let what = format!(
            "the replication of domain '{}' was stopped here",
            own.name()
        );
        return Err(Error::new(ErrorKind::DomainState, what).into());
    }
    Ok((record, replica))
}

/// Refuses what no primary of ours would ask for.
pub(super) fn check(open: &Open) -> Result<()> {
    let invalid = |what: &str| Err(Error::new(ErrorKind::InvalidRequest, what));
    let texts = [Some(&open.configuration), open.domain_config.as_ref()];
    if texts
        .into_iter()
        .flatten()
        .any(|text| text.len() > CONFIGURATION_MAX)
    {
        return invalid("the domain's configuration is too long");
    }
    if open.disks.len() > DISKS_MAX {
        return invalid("these are too many disks");
    }
    let is_length =
        |length: u64| length > 0 && length.is_multiple_of(512) && i64::try_from(length).is_ok();
    if !open.disks.iter().all(|disk| is_length(disk.length)) {
        return invalid("a disk has a length that no disk has");
    }
    if open.generation == 0 || open.generation > i64::MAX as u64 {
        return invalid("the generation is none");
    }
    // By made-up images: theirs are decided here.
    let target = |disk: &WantedDisk| DiskTarget {
        vdev: disk.vdev.clone(),
        image: Path::new("/").join(&disk.vdev).into(),
        format: disk.format,
    };
    let disks: Vec<_> = open.disks.iter().map(target).collect();
    replication::check(&disks, &NbdAddress::Unix("/nbd".into()))
}

/// Refuses a name that no domain has.
pub(in crate::replication) fn check_name(domain: &str) -> Result<()> {
    if domain.is_empty() || domain.len() > NAME_MAX || domain.chars().any(char::is_control) {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "that is no name of a domain",
        ));
    }
    Ok(())
}
