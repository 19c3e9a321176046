//! What the steps of a pull do.

use super::perform::{Measured, Performer};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Progress;
use crate::model::below::below;
use crate::model::disk::ImageFormat;
use crate::model::domain::DomainLife;
use crate::model::layer::{Backing, Layer};
use crate::model::pull::{CHUNK, Pull, PullState};
use crate::model::record::DomainRecord;
use crate::plan::{PullChange, PullStep};
use crate::port::{PullJob, PullJobState, Word, Worker};
use std::time::{Duration, Instant};

/// Between two looks at a job. What it copies meanwhile is what it may be late by.
const LOOK_EVERY: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 10 });

/// How often the domain is looked for while its disk is worked on because it is off, in looks at the job.
const DOMAIN_EVERY: u32 = 10;

/// A look and what goes with it takes no less, whatever the clock says.
const LOOK_LEAST: Duration = Duration::from_millis(50);

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

    fn require_there(&self, life: DomainLife) -> Result<()> {
        match self.look(life)? {
            Some(_) => Ok(()),
            None => Err(Error::new(
                ErrorKind::Stale,
                format!("domain {} is no longer there", life.domid),
            )),
        }
    }

    /// Waits until a job has dealt with the bytes of a disk up to `until`, which it then goes beyond by as little as can be.
    fn wait_for_bytes(&self, by: &Worker, pull: &Pull, until: u64) -> Result<()> {
        let pulls = &self.ports.pulls;
        let image = &pull.disk.image;
        let mut looks = 0_u32;
        let mut limit = None;
        let mut looked = Instant::now();
        loop {
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
            let wanted = if until < pull.size {
                speed_for(until - job.done, looked.elapsed(), pull.bandwidth)
            } else {
                pull.bandwidth
            };
            if limit.replace(wanted) != Some(wanted) {
                pulls.tell(by, image, Word::Speed(wanted))?;
            }
            looked = Instant::now();
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
            std::thread::sleep(LOOK_EVERY);
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

/// How fast a job may be, in bytes per second, that has so many bytes left and is looked at so often: until the next look it
/// copies no more than half of that, and no less than QEMU copies at a time.
fn speed_for(left: u64, between: Duration, bandwidth: u64) -> u64 {
    let millis = u64::try_from(between.max(LOOK_LEAST).as_millis()).unwrap_or(u64::MAX);
    let speed = (left / 2).max(CHUNK).saturating_mul(1000) / millis;
    match bandwidth {
        0 => speed.max(1),
        bandwidth => bandwidth.min(speed.max(1)),
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
    fn the_nearer_the_end_of_an_increment_and_the_rarer_the_looks_the_slower_it_is() {
        let (often, rarely) = (Duration::ZERO, Duration::from_millis(500));
        let mib = 1 << 20;
        assert_eq!(speed_for(8 * mib, often, 0), 80 * mib);
        assert_eq!(speed_for(8 * mib, rarely, 0), 8 * mib);
        assert_eq!(speed_for(1, rarely, 0), 2 * CHUNK);
        assert_eq!(speed_for(8 * mib, often, mib), mib);
        assert_eq!(speed_for(1, often, 1 << 30), 20 * CHUNK);
    }
}
