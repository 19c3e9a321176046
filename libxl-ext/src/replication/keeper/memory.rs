//! A checkpoint of memory and disks, as the primary makes it.
//!
//! ```text
//! guest       runs      | suspended                                          | runs
//! primary     offers    | sends the memory | drains the disks | asks         |
//! secondary   is ready  | stores it        |                  | decides, does| tidies up
//! ```
//! Whatever fails on the way, the guest goes on, and nothing that it writes then reaches the secondary: what that has is
//! of the instant of this checkpoint or of the one before.

use super::{Keeper, write_down};
use crate::error::{Error, ErrorKind, Result};
use crate::model::name::SnapshotId;
use crate::model::replica::Standing;
use crate::replication::link::Link;
use crate::replication::protocol::{Answer, Offer, Purpose, Refused};
use crate::replication::qdisk::{GuestMemory, both};
use crate::replication::relay::Carried;
use crate::replication::remote::{greeted, in_words, strange};
use crate::replication::transfer::{Outgoing, PIECE_LIMIT};
use std::time::{Duration, Instant};

/// How long the secondary may take to look at the memory that it has already.
const READY_LIMIT: Duration = Duration::from_secs(300);

/// How long it may take until what it has got is on the disk. That it is there at all, its pulse says.
const STORE_LIMIT: Duration = Duration::from_secs(120);

/// A memory on its way to the secondary. When it is dropped, the secondary drops it too, unless it counts by then.
struct Sending {
    link: Link,
    out: Outgoing,
    what: String,
    _carried: Carried,
}

impl Sending {
    fn failed(&self, error: std::io::Error) -> Error {
        Error::new(ErrorKind::Toolstack, self.what.clone()).because(in_words(error))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = self.out.send(bytes, &mut self.link.sender);
        // What is wrong over there is said at the end, which a peer that has gone never says.
        sent.map_err(|error| self.failed(error))
    }

    /// Waits until it is on the disk there.
    fn finish(&mut self) -> Result<SnapshotId> {
        let ended = self.out.end(&mut self.link.sender);
        let answered = ended.and_then(|()| self.link.hear(STORE_LIMIT));
        match answered.map_err(|error| self.failed(error))? {
            Answer::Stored { id, bytes } if bytes == self.out.bytes() => Ok(id),
            Answer::Refused(refusal) => Err(Refused::as_error(&refusal, &self.what)),
            _ => Err(strange()),
        }
    }
}

impl Keeper<'_> {
    /// Makes the present what the secondary keeps, memory and disks.
    ///
    /// # Errors
    /// Those of either side; the guest goes on.
    pub(super) fn checkpoint_with_memory(&mut self) -> Result<()> {
        let guest = self.setup.guest.with_memory().ok_or_else(|| {
            let what = "the memory of this guest cannot be taken";
            Error::new(ErrorKind::Unsupported, what)
        })?;
        let memory = guest.memory()?;
        let mut sending = self.offer(&memory)?;
        self.stand(Some(memory.standing))?;
        let begun = Instant::now();
        let suspended = guest.suspend(&memory, &mut |bytes| sending.append(bytes));
        let may_still = suspended.is_err();
        let since = suspended
            .as_ref()
            .map_or(begun, |since| since.unwrap_or(begun));
        let sent = begun.elapsed();
        let made = suspended.and_then(|_| {
            self.agreed.next_is_with(Some(sending.finish()?));
            let stored = begun.elapsed();
            self.disks.checkpoint_all()?;
            self.secondary.checkpoint_all()?;
            tracing::info!(
                "checkpoint: {} bytes of memory were sent after {sent:?} and stored after {stored:?}; it counts after {:?}",
                sending.out.bytes(),
                begun.elapsed()
            );
            Ok(())
        });
        let made = made.map_err(|error| {
            // The pulse knows better why nothing went any more.
            let error = self.tunnel.trouble().unwrap_or(error);
            self.tunnel.cut();
            error
        });
        let resumed = guest.go_on(memory.standing, may_still);
        self.pause = Some(since.elapsed());
        // One that does not go on is somebody else's to help, who has to know how.
        let stood = if resumed.is_ok() {
            self.stand(None)
        } else {
            Ok(())
        };
        both(made, resumed)?;
        stood?;
        self.memory_bytes = Some(sending.out.bytes());
        Ok(())
    }

    /// Tells the secondary what comes, and waits until it is ready: that is done while the guest runs.
    fn offer(&self, memory: &GuestMemory) -> Result<Sending> {
        let primary = &self.primary;
        let (session, heartbeat) = (primary.session, primary.pace.heartbeat());
        let domain = &self.setup.record.domain;
        let purpose = Purpose::Memory { session };
        let mut link = greeted(&primary.peer, &self.setup.key, domain, purpose, heartbeat)?;
        let what = format!("send the memory to the secondary {}", primary.peer);
        let failed =
            |error| Error::new(ErrorKind::Toolstack, what.clone()).because(in_words(error));
        let carried = self.tunnel.watch(&link).map_err(failed)?;
        let offer = Offer {
            configuration: memory.configuration.clone(),
            guest: memory.standing.guest,
            guest_type: memory.guest_type,
            domain_uuid: memory.uuid,
            at_most: memory.at_most,
        };
        let said = link.say(&offer, heartbeat);
        match said.and_then(|()| link.hear(READY_LIMIT)).map_err(failed)? {
            Answer::Done => {}
            Answer::Refused(refusal) => return Err(Refused::as_error(&refusal, &what)),
            _ => return Err(strange()),
        }
        link.sender.limit(PIECE_LIMIT).map_err(failed)?;
        let out = Outgoing::new().map_err(failed)?;
        Ok(Sending {
            link,
            out,
            what,
            _carried: carried,
        })
    }

    /// Writes down what is to be done for the guest to go on, or that it does.
    fn stand(&mut self, standing: Option<Standing>) -> Result<()> {
        self.primary.standing = standing;
        write_down(&self.setup, &self.primary)
    }
}
