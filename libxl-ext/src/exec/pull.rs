//! What the steps of a pull do.

use super::perform::{Measured, Performer};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Progress;
use crate::model::below::below;
use crate::model::disk::ImageFormat;
use crate::model::domain::{DomainLife, DomainState};
use crate::model::layer::{Backing, Layer};
use crate::model::pull::{CHUNK, ONE_CHUNK, Pull, PullState};
use crate::model::record::DomainRecord;
use crate::plan::{PullChange, PullStep};
use crate::port::{PullJob, PullJobState, Word, Worker};
use std::time::{Duration, Instant};

/// Between two looks at a job.
const LOOK_EVERY: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 10 });

/// How often the domain is looked for while its disk is worked on because it is off, in looks at the job.
const DOMAIN_EVERY: u32 = 10;

/// How long a chunk may take before its word is said again.
const LOST_AFTER: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 100 });

/// Between two looks at a job that waits after each chunk: its length decides how fast an increment can be.
const CHUNK_EVERY: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 1 });

/// How far a pull is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pulled {
    /// Up to which byte of the disk everything is there.
    position: u64,
    /// Whether that is all.
    all: bool,
}

impl Performer<'_> {
    pub(super) fn pull(&self, step: &PullStep, measured: &mut Measured) -> Result<()> {
        let pulls = &self.ports.pulls;
        match step {
            PullStep::Start {
                life, pull, anew, ..
            } => {
                self.require_there(*life)?;
                let by = Worker::Qemu(*life);
                let image = &pull.disk.image;
                match pulls.look(&by, image)? {
                    // A step that is done again finds it.
                    Some(job) if !is_over(&job) => {
                        pulls.tell(&by, image, Word::Speed(pull.first_speed()))?;
                        pulls.tell(&by, image, Word::GoOn)
                    }
                    Some(_) if *anew => {
                        pulls.tell(&by, image, Word::Dismiss)?;
                        pulls.start(&by, pull)
                    }
                    Some(_) => Ok(()),
                    None => pulls.start(&by, pull),
                }
            }
            PullStep::Await { life, pull, until } => {
                self.wait_for_bytes(&Worker::Qemu(*life), pull, *until)
            }
            PullStep::Hold { life, pull } => {
                let (by, image) = (Worker::Qemu(*life), &pull.disk.image);
                if self.look(*life)?.is_none() {
                    return Ok(());
                }
                pulls.tell(&by, image, Word::Hold)?;
                if let Some(job) = pulls.look(&by, image)? {
                    measured.pulled = Some(Pulled {
                        position: job.done.max(pull.position).min(pull.size),
                        all: false,
                    });
                }
                Ok(())
            }
            PullStep::GoOn { life, pull, speed } => {
                let (by, image) = (Worker::Qemu(*life), &pull.disk.image);
                if self.look(*life)?.is_none() {
                    return Ok(());
                }
                pulls.tell(&by, image, Word::Speed(*speed))?;
                pulls.tell(&by, image, Word::GoOn)
            }
            PullStep::End { life, pull } => {
                let (by, image) = (Worker::Qemu(*life), &pull.disk.image);
                if self.look(*life)?.is_none() {
                    return Ok(());
                }
                pulls.tell(&by, image, Word::Cancel)?;
                pulls.tell(&by, image, Word::Dismiss)
            }
            PullStep::CopyOff { pull, chain, until } => {
                measured.pulled = Some(self.copy_off(pull, chain, *until)?);
                Ok(())
            }
            PullStep::Complete { life, pull } => self.complete_pull(*life, pull),
            PullStep::Release { pull, images } => {
                self.release_images(pull, images);
                Ok(())
            }
        }
    }

    /// Whoever has suspended a domain may be about to give its disks to another QEMU.
    fn require_there(&self, life: DomainLife) -> Result<()> {
        match self.look(life)? {
            Some(view) if view.state == DomainState::Suspended => Err(Error::new(
                ErrorKind::DomainState,
                format!("domain {} is suspended", life.domid),
            )
            .hint("its disks are not pulled until it goes on; give the command again then")),
            Some(_) => Ok(()),
            None => Err(Error::new(
                ErrorKind::Stale,
                format!("domain {} is no longer there", life.domid),
            )),
        }
    }

    /// Waits until a job has dealt with the bytes of a disk up to `until`. If that is not the end, it goes beyond by
    /// two chunks at most, and by what it need not copy, however rarely we come to look at it: it copies chunk by chunk,
    /// each on our word ([`Chunks`]).
    fn wait_for_bytes(&self, by: &Worker, pull: &Pull, until: u64) -> Result<()> {
        let pulls = &self.ports.pulls;
        let image = &pull.disk.image;
        let mut looks = 0_u32;
        let mut chunks = (until < pull.size).then(|| Chunks::new(pull.bandwidth));
        let mut whole = chunks.is_none().then_some(pull.bandwidth);
        loop {
            if let Worker::Qemu(life) = by {
                self.require_there(*life)?;
            }
            let job = pulls.look(by, image)?.ok_or_else(|| {
                let disk = &pull.disk;
                Error::new(
                    ErrorKind::Stale,
                    format!("QEMU has no job for {disk} any more"),
                )
            })?;
            self.observer.progress(Progress {
                done: job.done.min(until),
                total: until,
                bytes: true,
            });
            match job.state {
                PullJobState::Copied => return Ok(()),
                PullJobState::Running | PullJobState::Held if job.done >= until => return Ok(()),
                PullJobState::Held => pulls.tell(by, image, Word::GoOn)?,
                PullJobState::Running => {}
                PullJobState::Stalled | PullJobState::Cancelled | PullJobState::Ended => {
                    return match failure(pull, &job) {
                        Some(error) => Err(error),
                        None => Ok(()),
                    };
                }
            }
            if let Some(speed) = whole.take().or_else(|| chunks.as_mut()?.next(job.done)) {
                pulls.tell(by, image, Word::Speed(speed))?;
            }
            if self.observer.wants_abort() {
                return Err(Error::new(ErrorKind::Aborted, "stopped on request"));
            }
            looks += 1;
            let is_off = matches!(by, Worker::Daemon(_));
            if is_off && looks.is_multiple_of(DOMAIN_EVERY) && self.find_by_name()?.is_some() {
                return Err(Error::new(
                    ErrorKind::Stale,
                    format!("domain '{}' was started in the meantime", self.plan.domain),
                )
                .hint("what was pulled stays; the next pull goes on with it"));
            }
            std::thread::sleep(chunks.as_ref().map_or(LOOK_EVERY, Chunks::look_every));
        }
    }

    /// The disk of a domain that is off, which nobody else has open: a QEMU of ours copies.
    fn copy_off(&self, pull: &Pull, chain: &[Backing], until: Option<u64>) -> Result<Pulled> {
        let pulls = &self.ports.pulls;
        let image = &pull.disk.image;
        let directory = pulls.directory(self.store.directory());
        let server = pulls.serve(&directory, chain)?;
        let by = Worker::Daemon(directory);
        pulls.start(&by, pull)?;
        self.wait_for_bytes(&by, pull, until.unwrap_or(pull.size))?;
        // An instant later it may have come to the end, and have been told to end by somebody.
        let job = pulls.look(&by, image)?;
        if let Some(error) = job.as_ref().and_then(|job| failure(pull, job)) {
            return Err(error);
        }
        let all = job
            .as_ref()
            .is_some_and(|job| job.state == PullJobState::Copied);
        let done = job.map_or(0, |job| job.done);
        pulls.tell(&by, image, Word::Cancel)?;
        let file = self.ports.images.open_to_sync(image)?;
        server.end()?;
        file.sync()?;
        self.ports.images.make_durable(image)?;
        if all {
            self.require_all_there(pull)?;
        }
        Ok(Pulled {
            position: if all {
                pull.size
            } else {
                done.max(pull.position).min(pull.size)
            },
            all,
        })
    }

    /// Looks at the image file itself, from outside, whether it has everything: QEMU tells nobody of a flush that failed.
    fn require_all_there(&self, pull: &Pull) -> Result<()> {
        let extents = self.ports.images.extents(&pull.chain())?;
        if pull.has_all(&extents) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Toolstack,
            format!("the pull of {} is not completed", pull.disk),
        )
        .because("not all of it is on the disk")
        .hint("its file system may be full or damaged; what was pulled stays, and the image stands on the others still"))
    }

    fn complete_pull(&self, life: Option<DomainLife>, pull: &Pull) -> Result<()> {
        let images = &self.ports.images;
        let image = &pull.disk.image;
        let there = match life {
            Some(life) => self.look(life)?,
            None => None,
        };
        if let Some(view) = there {
            // Opened before the flush: what fails to be written from then on is said by this one's fsync.
            let file = images.open_to_sync(image)?;
            let is_all_there = || {
                file.sync()?;
                self.require_all_there(pull)
            };
            self.ports.pulls.complete(view.life, pull, &is_all_there)?;
            return images.make_durable(image);
        }
        let facts = images
            .facts(image, ImageFormat::Qcow2)?
            .ok_or_else(|| Error::new(ErrorKind::Io, format!("{} is not there", pull.disk)))?;
        if facts.stands_on(pull.onto.as_ref()) {
            return images.make_durable(image);
        }
        // Where the domain was to complete it, and is gone, its job is gone too, and not all may be there.
        if life.is_some() {
            return Err(Error::new(
                ErrorKind::Stale,
                format!(
                    "the domain ended before the pull of {} was completed",
                    pull.disk
                ),
            )
            .hint("give the command again: it goes on with what was pulled"));
        }
        if below(image, &facts)?.as_ref() != pull.from.first() {
            let disk = &pull.disk;
            return Err(Error::new(
                ErrorKind::Stale,
                format!("{disk} is not the image any more that everything was copied to"),
            )
            .hint("give the command again: it goes on with what is there"));
        }
        self.require_all_there(pull)?;
        // Only the header is changed: nothing is read from below any more.
        let layer = Layer {
            vdev: pull.disk.vdev.clone(),
            image: image.clone(),
            backing: pull.from.first().cloned(),
            below_written: None,
            base: Backing::from(&pull.disk),
            active: true,
            merging: None,
        };
        images.rebase_layer(&layer, pull.onto.as_ref(), false)
    }
}

/// The words that make a job copy a chunk each. At a few bytes per second a job copies one chunk ([`CHUNK`]) and then sleeps
/// for hours, which a word that it may be faster ends (QEMU's `block_job_set_speed`, and `ratelimit_calculate_delay`).
struct Chunks {
    speed: u64,
    /// So that the bandwidth is kept.
    between: Duration,
    /// When the last word was said, and how far the job was then.
    said: Option<(Instant, u64)>,
}

impl Chunks {
    fn new(bandwidth: u64) -> Self {
        let millis = (CHUNK * 1000).checked_div(bandwidth).unwrap_or(0);
        Self {
            speed: ONE_CHUNK,
            between: Duration::from_millis(millis),
            said: None,
        }
    }

    /// The speed to tell the job now, in bytes per second, if it is time for another chunk. While it copies one, a word
    /// is lost on it.
    fn next(&mut self, done: u64) -> Option<u64> {
        if let Some((at, was)) = self.said {
            let wait = if done == was {
                LOST_AFTER
            } else {
                Duration::ZERO
            };
            if at.elapsed() < wait.max(self.between) {
                return None;
            }
        }
        self.said = Some((Instant::now(), done));
        self.speed += 1;
        Some(self.speed)
    }

    fn look_every(&self) -> Duration {
        if self.between.is_zero() {
            CHUNK_EVERY
        } else {
            LOOK_EVERY
        }
    }
}

fn is_over(job: &PullJob) -> bool {
    matches!(job.state, PullJobState::Cancelled | PullJobState::Ended)
}

/// Why a job does not go on, if it does not.
fn failure(pull: &Pull, job: &PullJob) -> Option<Error> {
    let disk = &pull.disk;
    let (what, why) = match (job.state, &job.error) {
        (PullJobState::Cancelled, _) => {
            return Some(Error::new(
                ErrorKind::Aborted,
                format!("the pull of {disk} was ended by somebody else"),
            ));
        }
        (PullJobState::Stalled, why) => ("stands still", why.as_ref()),
        (PullJobState::Ended, Some(why)) => ("failed", Some(why)),
        _ => return None,
    };
    let why = why.map_or("for a reason that QEMU does not tell", |why| why);
    Some(failed(pull, what, why))
}

/// A pull that came to grief, in words.
fn failed(pull: &Pull, what: &str, why: &str) -> Error {
    let is_full = why.contains("No space left on device");
    let kind = if is_full {
        ErrorKind::NoSpace
    } else {
        ErrorKind::Toolstack
    };
    Error::new(kind, format!("the pull of {} {what}", pull.disk))
        .because(why)
        .hint("what was pulled until then stays; give the command again when the cause is removed")
}

/// What a change of a pull makes of the record.
pub(super) fn apply(record: &mut DomainRecord, change: &PullChange, pulled: Option<Pulled>) {
    match change {
        PullChange::Begun { pull } => record.begin_pull(pull),
        PullChange::Advanced { pull } => {
            let mut pull = pull.clone();
            let is_off = pull.life.is_none();
            if let Some(pulled) = pulled {
                pull.position = pulled.position;
                pull.state = match (pulled.all, is_off) {
                    (true, _) => PullState::Copied,
                    (false, true) => PullState::Interrupted,
                    (false, false) => PullState::Held,
                };
            }
            record.begin_pull(&pull);
        }
        PullChange::Ended {
            pull,
            state,
            reason,
            at,
        } => {
            let mut ended = pull.clone();
            ended.state = *state;
            ended.reason.clone_from(reason);
            ended.ended_at = Some(*at);
            if *state == PullState::Completed {
                ended.position = ended.size;
                record.pulled(&ended.disk.image, ended.onto.as_ref());
            }
            record.begin_pull(&ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_told_to_be_faster_for_each_chunk_as_often_as_the_bandwidth_lets_it() {
        let mut all = Chunks::new(0);
        assert_eq!((all.next(0), all.next(CHUNK)), (Some(2), Some(3)));
        let mut slow = Chunks::new(1);
        assert_eq!(slow.between, Duration::from_secs(CHUNK));
        assert_eq!((slow.next(0), slow.next(CHUNK)), (Some(2), None));
    }
}
