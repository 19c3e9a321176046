//! What is left to do of a pull once it has ended, and how that is known.

use super::super::Host;
use super::info::{PullInfo, told};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Observer, Unobserved};
use crate::exec;
use crate::model::below::below;
use crate::model::disk::{ImageFacts, ImageFormat};
use crate::model::domain::DomainState;
use crate::model::pull::{Extent, Pull, PullState};
use crate::observe::{self, Target};
use crate::plan::{self, Fresh, PullEnd};
use crate::port::{PullJob, PullJobState};
use crate::store::DomainLock;
use std::collections::BTreeMap;
use std::path::Path;

/// Pulls that could not be settled, each with what stands in the way.
pub(crate) type Unsettled = Vec<(Pull, Error)>;

/// What QEMU says of pulls, by their images.
pub(super) type Jobs = BTreeMap<Box<Path>, Option<PullJob>>;

impl Host {
    /// Does what is left to do of pulls that have come to their end, or whose domain has. What cannot be done now is said,
    /// and left for the next command: nothing that it is in the way of is done meanwhile.
    pub(crate) fn settle_pulls(
        &self,
        target: &Target,
        lock: &DomainLock,
        observer: &dyn Observer,
    ) -> Unsettled {
        // One that cannot be read is somebody else's matter.
        let Ok(record) = target.store.load() else {
            return Vec::new();
        };
        let under_way = record.pulls.into_iter().filter(Pull::is_under_way);
        let mut unsettled = Vec::new();
        for pull in under_way {
            // What an operation could not take back is gone on with first, and only its journal knows how.
            if target.store.has_journal() {
                break;
            }
            if let Err(error) = self.settle_pull(target, lock, &pull, observer) {
                observer.note(&error.report());
                unsettled.push((pull, error));
            }
        }
        unsettled
    }

    fn settle_pull(
        &self,
        target: &Target,
        lock: &DomainLock,
        pull: &Pull,
        observer: &dyn Observer,
    ) -> Result<()> {
        let target = target.clone().look_again(&self.ports)?;
        // Another QEMU may be about to have the image.
        let view = target.view.filter(|view| pull.life == Some(view.life));
        if view.is_some_and(|view| view.state == DomainState::Suspended) {
            return Ok(());
        }
        match self.how_ended(&target, pull)? {
            (_, Some(how)) => self.end_pull(&target, lock, pull, &how, observer),
            (_, None) => Ok(()),
        }
    }

    /// What QEMU says of the pulls that the record speaks of as under way, by their images; none if one of them is not any
    /// more.
    pub(super) fn all_under_way(&self, target: &Target) -> Result<Option<Jobs>> {
        let record = target.store.load()?;
        let mut jobs = Jobs::new();
        for pull in record.pulls.iter().filter(|pull| pull.is_under_way()) {
            match self.how_ended(target, pull)? {
                (job, None) => jobs.insert(pull.disk.image.clone(), job),
                (_, Some(_)) => return Ok(None),
            };
        }
        Ok(Some(jobs))
    }

    /// What QEMU says of a pull, and how that ended, if it has.
    fn how_ended(
        &self,
        target: &Target,
        pull: &Pull,
    ) -> Result<(Option<PullJob>, Option<PullEnd>)> {
        let is_its_qemu = target.view.is_some_and(|view| pull.life == Some(view.life));
        let job = match self.job(target, pull) {
            Ok(job) => job,
            // A domain that is going away takes its QEMU along first.
            Err(error) if is_its_qemu => {
                tracing::warn!("{}", error.report());
                return Ok((None, None));
            }
            Err(error) => return Err(error),
        };
        let end = match job.as_ref().map(|job| (job.state, &job.error)) {
            Some((PullJobState::Copied, _)) => Some(PullEnd::Copied),
            Some((PullJobState::Cancelled, _)) => Some(PullEnd::Aborted),
            Some((PullJobState::Ended, Some(why))) => Some(PullEnd::Failed(why.clone())),
            Some((PullJobState::Running | PullJobState::Held | PullJobState::Stalled, _)) => None,
            Some((PullJobState::Ended, None)) | None => Some(self.how_left(target, pull)?),
        };
        Ok((job, end))
    }

    /// How a pull ended of which QEMU has no job any more, or one of which it says nothing.
    fn how_left(&self, target: &Target, pull: &Pull) -> Result<PullEnd> {
        // Somebody let it end, or it was completed and could not be recorded: the image itself tells.
        let image = &pull.disk.image;
        let facts = self.ports.images.facts(image, ImageFormat::Qcow2)?;
        let Some(facts) = facts else {
            return Ok(PullEnd::Interrupted);
        };
        let is_copied = pull.state == PullState::Copied && target.view.is_none();
        let is_done = facts.stands_on(pull.onto.as_ref())
            || (is_copied && self.is_all_there(pull, &facts)?);
        Ok(if is_done {
            PullEnd::Copied
        } else {
            PullEnd::Interrupted
        })
    }

    fn is_all_there(&self, pull: &Pull, facts: &ImageFacts) -> Result<bool> {
        let all = |extents: Vec<Extent>| pull.has_all(&extents);
        Ok(stands_as_before(pull, facts) && self.ports.images.extents(&pull.chain()).map(all)?)
    }

    /// The pull with how far it is, which nobody can ask QEMU for once it has ended. Between two increments that is known,
    /// and the caller has the cursor of it.
    fn measured(&self, target: &Target, pull: &Pull, how: &PullEnd) -> Pull {
        let mut pull = pull.clone();
        if pull.increments || *how == PullEnd::Copied {
            return pull;
        }
        let job = self.job(target, &pull).unwrap_or_else(|error| {
            tracing::warn!("{}", error.report());
            None
        });
        // Of one that QEMU had to forget nothing but the reason is known.
        let reached = match job.filter(|job| job.total > 0) {
            Some(job) => Ok(job.done),
            None => self.is_there_up_to(&pull),
        };
        match reached {
            Ok(reached) => pull.position = reached.max(pull.position).min(pull.size),
            // Only what is told of it is less exact.
            Err(error) => tracing::warn!("{}", error.report()),
        }
        pull
    }

    /// How far the image itself shows a pull to be.
    fn is_there_up_to(&self, pull: &Pull) -> Result<u64> {
        let facts = self
            .ports
            .images
            .facts(&pull.disk.image, ImageFormat::Qcow2)?;
        if !facts.is_some_and(|facts| stands_as_before(pull, &facts)) {
            return Ok(0);
        }
        let extents = self.ports.images.extents(&pull.chain())?;
        Ok(pull.has_up_to(&extents))
    }

    pub(super) fn end_pull(
        &self,
        target: &Target,
        lock: &DomainLock,
        pull: &Pull,
        how: &PullEnd,
        observer: &dyn Observer,
    ) -> Result<()> {
        let pull = &self.measured(target, pull, how);
        let record = target.store.load()?;
        let mut inventory = observe::of_record(target, record);
        if pull.release_base {
            inventory.claimed = observe::claimed(&target.store);
        }
        let lives = target.view.map(|view| view.life);
        let its_own = lives.filter(|life| pull.life == Some(*life));
        let plan = plan::end_pull(&inventory, pull, how, its_own, &Fresh::now());
        plan::check(&plan, &inventory)?;
        let outcome = exec::run(&plan, &self.ports, &target.store, lock, observer)?;
        if let Some(error) = outcome.left_over {
            observer.note(&error.report());
        }
        let record = target.store.load()?;
        if let Some(pull) = record.pull_of(&pull.disk.image) {
            let info = PullInfo::new(&target.name, pull, None);
            self.post_pull(&info);
            observer.note(&told(&info));
        }
        Ok(())
    }

    /// Keeps for whoever asks later why a pull came to nothing of which nothing is left but what was copied: an increment, or
    /// one of a domain that is off, is taken back as a whole. `before` is what the record said of it until then. That it
    /// cannot be kept is of no consequence: the caller hears the error itself.
    pub(super) fn record_failure(
        &self,
        target: &Target,
        lock: &DomainLock,
        (pull, before): (&Pull, Option<&Pull>),
        error: &Error,
        observer: &dyn Observer,
    ) {
        let how = match error.kind() {
            // These say that it cannot be done now, and not that it was tried.
            ErrorKind::Stale
            | ErrorKind::DomainState
            | ErrorKind::Locked
            | ErrorKind::InvalidRequest
            | ErrorKind::Unsupported => return,
            ErrorKind::Aborted if observer.wants_abort() => return,
            ErrorKind::Aborted => PullEnd::Aborted,
            _ => PullEnd::Failed(error.root()),
        };
        if target.store.has_journal() {
            return;
        }
        let recorded = target.clone().look_again(&self.ports).and_then(|target| {
            let record = target.store.load()?;
            let known = record.pull_of(&pull.disk.image);
            // One that stands still goes on; of one that has ended QEMU told meanwhile.
            if known.is_some_and(Pull::is_under_way) || known != before {
                return Ok(());
            }
            self.end_pull(&target, lock, pull, &how, &Unobserved)
        });
        if let Err(error) = recorded {
            tracing::warn!("{}", error.report());
        }
    }
}

/// Whether the image is the one still that was pulled into: the user may have made another of its name.
fn stands_as_before(pull: &Pull, facts: &ImageFacts) -> bool {
    below(&pull.disk.image, facts).is_ok_and(|below| below.as_ref() == pull.from.first())
}
