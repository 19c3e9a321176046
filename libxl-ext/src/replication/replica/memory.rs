//! The memory of checkpoints, on the secondary: received beside whatever else is done with the domain, in a directory of its
//! own with packs of its own, so that no other operation tidies up there.
//!
//! ```text
//!  being received --> pending --> decided --> that of the last checkpoint --> a saved state of the domain
//!   (a file)           on the     the disks' part     the one before is       by a failover
//!                      disk       follows             dropped
//! ```
//! What the record does not name counts for nothing, and whoever has the lock of the directory removes it.

use super::super::link::Link;
use super::super::protocol::{Answer, CONFIGURATION_MAX, Offer, Refusal};
use super::super::transfer::{Incoming, PIECE_LIMIT};
use super::admit::{find, require_session};
use super::{LOCK_LIMIT, Replicas, lock};
use crate::bundle::{Identity, rewrite};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Unobserved;
use crate::memory;
use crate::memory::packed::{self, Known, Traced, Writer};
use crate::model::disk::DiskKind;
use crate::model::domain::GuestState;
use crate::model::layer::Backing;
use crate::model::name::SnapshotId;
use crate::model::record::{DiskProof, ManagedImage};
use crate::model::replica::{Pending, Replica, ReplicationRecord, Role};
use crate::plan::now;
use crate::port::Images;
use crate::port::qemu_img::QemuImg;
use crate::store::{DomainLock, DomainStore, LockWait, atomic, private_directory};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long the primary may take to say what it offers, and to hear an answer.
const WORD_LIMIT: Duration = Duration::from_secs(30);

/// How long it may take until the first of the memory comes: libxl gives a guest a minute to suspend, and we give it half
/// a minute before that to connect to its disks.
const SUSPEND_LIMIT: Duration = Duration::from_secs(180);

/// How long it may take, once all is stored, to decide on it and to let its guest go on.
const DECISION_LIMIT: Duration = Duration::from_secs(180);

/// A memory that is being received.
struct Reception {
    own: DomainStore,
    memory: DomainStore,
    session: Uuid,
    image: ManagedImage,
    at_most: u64,
    writer: Writer,
    /// Held for as long as the primary has something to say of it.
    _lock: DomainLock,
}

impl Replicas {
    /// Receives the memory of one checkpoint, and drops what was not made to count when the primary ends the connection.
    ///
    /// # Errors
    /// If the primary says something else than it should, or nothing.
    pub(in crate::replication) fn receive(
        &self,
        domain: &str,
        pair: &str,
        session: Uuid,
        link: &mut Link,
    ) -> io::Result<()> {
        let own = self.store.domain(domain);
        let offer: Offer = link.hear(WORD_LIMIT)?;
        let reception = match begin(&own, pair, session, &offer) {
            Ok(reception) => reception,
            Err(refusal) => {
                give_up(&own);
                return link.say(&Answer::Refused(refusal), WORD_LIMIT);
            }
        };
        let (id, memory) = (reception.image.id, reception.memory.clone());
        let received = link
            .say(&Answer::Done, WORD_LIMIT)
            .and_then(|()| reception.take(pair, link));
        let (answer, _lock) = received.inspect_err(|_| give_up(&own))?;
        let said = link.say(&answer, WORD_LIMIT);
        // Whatever it says then: that it goes is the sign.
        let _ = link
            .receiver
            .receive_before(Instant::now() + DECISION_LIMIT);
        dismiss(&own, &memory, id);
        said
    }
}

/// Everything that can be done before the guest is suspended.
fn begin(
    own: &DomainStore,
    pair: &str,
    session: Uuid,
    offer: &Offer,
) -> Result<Reception, Refusal> {
    check(offer)?;
    let memory = own.replica_memory();
    private_directory(memory.directory())?;
    // One that is received still is that of a connection which is as good as ended.
    let held = memory.lock(LockWait::AtMost(LOCK_LIMIT))?;
    let replica = {
        let _lock = lock(own)?;
        let (mut record, mut replica) = require_session(own, pair, session)?;
        if replica.pending.as_ref().is_some_and(|it| it.is_decided) {
            let what = "the checkpoint before is not completed";
            return Err(Error::new(ErrorKind::DomainState, what).into());
        }
        if replica.pending.take().is_some() {
            record.role = Role::Secondary(replica.clone());
            own.remember_replication(&record)?;
        }
        tidy(&memory, &replica)?;
        replica
    };
    let free = memory.free_bytes()?;
    if free < offer.at_most {
        let what = format!(
            "the memory of domain '{}' needs up to {} bytes here, and {free} are free",
            own.name(),
            offer.at_most
        );
        let error = Error::new(ErrorKind::NoSpace, what);
        return Err(error.hint("free some room in the secondary's store").into());
    }
    let configuration = configuration_here(own, &replica, offer)?;
    let id = SnapshotId::random();
    memory.create_snapshot_directory(id)?;
    let known = Known::load(&memory.packs_directory(), &Unobserved)?;
    let mut writer = Writer::create(&memory.partial_memory_path(id), id, known)?;
    writer.write(&memory::header(&configuration)?)?;
    let disks = replica.disks.iter().map(|target| DiskProof {
        target: target.clone(),
        kind: DiskKind::External,
        stamp: None,
    });
    Ok(Reception {
        own: own.clone(),
        session,
        image: ManagedImage {
            id,
            guest: offer.guest,
            guest_type: offer.guest_type,
            domain_uuid: offer.domain_uuid,
            saved_at: now(),
            at_boot: false,
            memory: None,
            disks: disks.collect(),
            seen_running: None,
        },
        at_most: offer.at_most,
        writer,
        memory,
        _lock: held,
    })
}

/// Refuses what no primary of ours would offer.
fn check(offer: &Offer) -> Result<()> {
    let invalid = |what: &str| Err(Error::new(ErrorKind::InvalidRequest, what));
    if offer.configuration.len() > CONFIGURATION_MAX {
        return invalid("the domain's configuration is too long");
    }
    if offer.guest == GuestState::Off {
        return invalid("a domain that is off has no memory");
    }
    Ok(())
}

/// The configuration with which the domain goes on here: its disks are those that are here.
fn configuration_here(own: &DomainStore, replica: &Replica, offer: &Offer) -> Result<String> {
    let identity = Identity {
        name: own.name(),
        uuid: offer.domain_uuid,
    };
    // What else is in it is looked at before it is used: the domain may never fail over.
    let image = |vdev: &str, path: &Path| {
        let here = replica.disks.iter().find(|disk| disk.vdev == vdev);
        here.map(Backing::from)
            .or_else(|| other_disk(offer, vdev, path))
    };
    let rewritten = rewrite(&offer.configuration, &identity, true, image);
    rewritten.map(|(text, _)| text).map_err(|error| {
        let what = "the configuration that comes with the memory is none for this host";
        Error::new(ErrorKind::InvalidRequest, what).because(error)
    })
}

/// A disk that the guest cannot write to is not replicated, and has to be here under the same name.
fn other_disk(offer: &Offer, vdev: &str, path: &Path) -> Option<Backing> {
    let value: serde_json::Value = serde_json::from_str(&offer.configuration).ok()?;
    let disks = crate::model::configuration::disks_of(&value).ok()?;
    let disk = disks.iter().find(|disk| disk.vdev() == vdev)?;
    let format = disk.format.as_deref().unwrap_or("raw");
    Some(Backing {
        image: path.into(),
        format: crate::model::disk::ImageFormat::of(format)?,
    })
}

impl Reception {
    /// Takes all of it, and remembers it as pending. The lock is held for as long as what is returned lives.
    fn take(mut self, pair: &str, link: &mut Link) -> io::Result<(Answer, DomainLock)> {
        let mut incoming = Incoming::new(self.at_most)?;
        let mut limit = SUSPEND_LIMIT;
        let mut failed = None;
        while let Some(bytes) = incoming.next(&mut link.receiver, limit)? {
            limit = PIECE_LIMIT;
            // What cannot be written is taken all the same: who sends it hears why at the end, and not that nobody is there.
            if failed.is_none() {
                failed = self.writer.write(bytes).err();
            }
        }
        let bytes = incoming.bytes();
        let Self {
            own,
            memory,
            session,
            mut image,
            writer,
            _lock: held,
            ..
        } = self;
        let id = image.id;
        let store = || -> Result<Answer, Refusal> {
            if let Some(error) = failed {
                return Err(error.into());
            }
            image.memory = Some(writer.finish()?.proof);
            memory.seal_memory(id)?;
            let _lock = lock(&own)?;
            let (mut record, mut replica) = require_session(&own, pair, session)?;
            replica.pending = Some(Box::new(Pending {
                image,
                is_decided: false,
            }));
            record.role = Role::Secondary(replica);
            own.remember_replication(&record)?;
            Ok(Answer::Stored { id, bytes })
        };
        Ok((store().unwrap_or_else(Answer::Refused), held))
    }
}

/// Writes down that a memory is to count with the checkpoint that is being made.
pub(super) fn decide(
    own: &DomainStore,
    mut record: ReplicationRecord,
    replica: &mut Replica,
    id: SnapshotId,
) -> Result<ReplicationRecord> {
    let pending = replica.pending.as_mut().filter(|it| it.image.id == id);
    let pending = pending.ok_or_else(|| {
        Error::new(
            ErrorKind::DomainState,
            format!("memory {id} of domain '{}' is not here", own.name()),
        )
    })?;
    pending.is_decided = true;
    record.role = Role::Secondary(replica.clone());
    own.remember_replication(&record)?;
    Ok(record)
}

/// Drops a memory that nobody has decided on, and everything that does not count. For the holder of the directory's lock.
fn dismiss(own: &DomainStore, memory: &DomainStore, id: SnapshotId) {
    let dismissed = || -> Result<()> {
        let _lock = lock(own)?;
        let (mut record, mut replica) = find(own)?;
        let is_it = |it: &Pending| it.image.id == id && !it.is_decided;
        if replica.pending.as_deref().is_some_and(is_it) {
            replica.pending = None;
            record.role = Role::Secondary(replica.clone());
            own.remember_replication(&record)?;
        }
        tidy(memory, &replica)
    };
    if let Err(error) = dismissed() {
        // The next one that is received does it.
        tracing::warn!("tidy up the memory of checkpoints: {}", error.report());
    }
}

/// Nothing came of what was to be received: what there is of it is removed.
fn give_up(own: &DomainStore) {
    // Nothing is said to be pending yet, so the record is as it was.
    let looked = lock(own).and_then(|held| Ok((held, find(own)?.1)));
    match looked {
        Ok((_held, replica)) => tidy_unless_busy(own, &replica),
        Err(error) => tracing::debug!("tidy up the memory of checkpoints: {}", error.report()),
    }
}

/// Removes all that the record does not name. Under the domain's lock, for the holder of the directory's.
fn tidy(memory: &DomainStore, replica: &Replica) -> Result<()> {
    let kept = replica.memory.as_ref().map(|image| image.id);
    let pending = replica.pending.as_ref().map(|pending| pending.image.id);
    for id in memory.memory_directories()? {
        if Some(id) != kept && Some(id) != pending {
            memory.remove_snapshot_directory(id)?;
        }
    }
    packed::collect(&memory.packed_images()?, &memory.packs_directory()).map(drop)
}

/// The same, under the domain's lock; while something is received, that does it.
pub(super) fn tidy_unless_busy(own: &DomainStore, replica: &Replica) {
    let memory = own.replica_memory();
    if !memory.directory().is_dir() {
        return;
    }
    let tidied = match memory.lock(LockWait::No) {
        Err(error) if error.kind() == ErrorKind::Locked => return,
        held => held.and_then(|_held| tidy(&memory, replica)),
    };
    if let Err(error) = tidied {
        tracing::warn!("tidy up the memory of checkpoints: {}", error.report());
    }
}

/// Makes a memory the saved state of the domain, from which it goes on: with its disks as they are, which nobody has open
/// any more. Returns the configuration with which it does. Doing it again, also after a part of it, leads to the same.
pub(super) fn hand_over(own: &DomainStore, mut image: ManagedImage) -> Result<String> {
    let (memory, id) = (own.replica_memory(), image.id);
    let moved = |from: &Path, to: &Path| {
        if !atomic::is_there(from) && atomic::is_there(to) {
            return Ok(());
        }
        let failed = |error| {
            Error::io(
                format!("move {} to {}", from.display(), to.display()),
                error,
            )
        };
        std::fs::rename(from, to).map_err(failed)?;
        [from, to].into_iter().try_for_each(atomic::sync_parent)
    };
    if atomic::is_there(&memory.memory_path(id)) {
        // The packs first: an image without them would be none.
        let needed = Traced::needs(&[(id, memory.memory_path(id))])?;
        private_directory(&own.packs_directory())?;
        for pack in needed.packs() {
            let in_packs = |store: &DomainStore| packed::path_of(&store.packs_directory(), pack);
            moved(&in_packs(&memory), &in_packs(own))?;
        }
    }
    moved(&memory.snapshot_directory(id), &own.snapshot_directory(id))?;
    let configuration = own.kept_in_store(id).configuration()?;
    for proof in &mut image.disks {
        QemuImg.require_closed(&proof.target.image)?;
        QemuImg.make_durable(&proof.target.image)?;
        proof.stamp = QemuImg.last_write(&proof.target.image);
    }
    let mut record = own.load()?;
    let before = record
        .managed
        .replace(image)
        .filter(|before| before.id != id);
    record.generation += 1;
    own.save(&record)?;
    if let Some(before) = before {
        // Of an earlier life of the domain here, on other disks.
        own.remove_snapshot_directory(before.id)?;
    }
    Ok(configuration)
}
