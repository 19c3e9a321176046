//! The domain goes on here.

use super::admit::find;
use super::{FailedOver, Replicas, lock, memory};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::model::replica::{Replica, ReplicaState, ReplicationRecord, Role};
use crate::plan::now;

impl Replicas {
    /// Has the domain go on here: the primary is cut off, and the disks are set back to the last checkpoint and closed when
    /// it returns. If the checkpoint is of the memory too, that is a saved state then, from which the domain goes on. A
    /// failover that was interrupted goes on.
    ///
    /// # Errors
    /// [`ErrorKind::DomainState`] if there is no checkpoint to go on from, or it was done already;
    /// [`ErrorKind::NeedsRepair`] if the QEMU that kept the checkpoint is gone; [`ErrorKind::Corrupt`] if its memory is
    /// damaged.
    pub fn fail_over(&self, domain: &str, observer: &dyn Observer) -> Result<FailedOver> {
        self.take_over(domain, true, observer)
    }

    /// The same without the memory, whatever is the matter with it: the guest is to boot.
    ///
    /// # Errors
    /// As [`Replicas::fail_over`].
    pub fn fail_over_disks(&self, domain: &str, observer: &dyn Observer) -> Result<FailedOver> {
        self.take_over(domain, false, observer)
    }

    fn take_over(
        &self,
        domain: &str,
        with_memory: bool,
        observer: &dyn Observer,
    ) -> Result<FailedOver> {
        let own = self.store.domain(domain);
        let _lock = lock(&own)?;
        let (mut record, mut replica) = find(&own)?;
        let refuse = |what: String| Error::new(ErrorKind::DomainState, what);
        let remember = |record: &mut ReplicationRecord, replica: &Replica| {
            record.role = Role::Secondary(replica.clone());
            own.remember_replication(record)
        };
        let at = match replica.state {
            ReplicaState::Receiving => {
                return Err(refuse(format!(
                    "domain '{domain}' cannot go on here: there was no checkpoint yet"
                ))
                .hint("what its disks hold here is of no instant"));
            }
            ReplicaState::Stopped { .. } => {
                return Err(refuse(format!(
                    "the replication of domain '{domain}' to this host is stopped"
                ))
                .hint(
                    "the disks are those of the last checkpoint, but nobody is kept from going on at the other side: \
                     start the domain by a configuration file, if that is meant",
                ));
            }
            ReplicaState::FailedOver { .. } => {
                return Err(refuse(format!(
                    "domain '{domain}' has failed over to this host already"
                ))
                .hint("`xl list` shows whether it runs; `xl-ext start` starts it"));
            }
            ReplicaState::Replicating => now(),
            ReplicaState::FailingOver { at } | ReplicaState::Merged { at } => at,
        };
        if !matches!(replica.state, ReplicaState::Merged { .. }) {
            let mut secondary = self.adopt(&own, &replica)?;
            if !secondary.is_served() {
                return Err(Error::new(
                    ErrorKind::NeedsRepair,
                    format!("the QEMU that kept the last checkpoint of domain '{domain}' is gone"),
                )
                .hint(
                    "its disks here are of no instant, and what was kept cannot be put together; if the primary is there, \
                     `xl-ext replication-resume` on it copies everything again",
                ));
            }
            secondary.leave();
            if replica.state == ReplicaState::Replicating {
                if with_memory {
                    (record, replica) = self
                        .settled(&own, record, replica)
                        .map_err(|error| error.hint("--disks-only goes on without the memory"))?;
                }
                replica.pending = None;
                // Before anything else: from here on the primary has lost, whatever becomes of us.
                record.generation += 1;
                replica.state = ReplicaState::FailingOver { at };
                remember(&mut record, &replica)?;
            }
            observer.step("cut the primary off and set the disks back to the last checkpoint");
            let mut secondary = self.adopt(&own, &replica)?;
            secondary.set_back_durably()?;
            secondary.leave();
            replica.state = ReplicaState::Merged { at };
            remember(&mut record, &replica)?;
        }
        observer.step("close the disks");
        self.adopt(&own, &replica)?.let_go()?;
        let image = replica.memory.take().filter(|_| with_memory);
        let memory = image.map(|image| {
            observer.step("make the memory what the domain goes on from");
            memory::hand_over(&own, *image).map_err(|error| {
                error
                    .while_doing("the memory of the last checkpoint cannot be taken over")
                    .hint("--disks-only goes on without it: the guest boots then")
            })
        });
        let memory = memory.transpose()?;
        replica.state = ReplicaState::FailedOver { at };
        remember(&mut record, &replica)?;
        memory::tidy_unless_busy(&own, &replica);
        Ok(FailedOver {
            replica,
            generation: record.generation,
            at,
            memory,
        })
    }
}
