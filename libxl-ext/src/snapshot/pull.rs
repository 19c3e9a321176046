//! Pulls: what goes on is in the record and in QEMU, so whoever comes by later sees it, and does what is left to do.

use super::{Done, Host};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Observer, Progress};
use crate::exec;
use crate::model::disk::ImageFormat;
use crate::model::layer::Backing;
use crate::model::pull::{OnError, Pull, PullState};
use crate::observe::{self, Target, resolve};
use crate::plan::{self, Fresh, PullEnd, PullRequest, Request};
use crate::port::{PullJob, PullJobState, Word, Worker};
use crate::store::{DomainLock, LockWait};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// Between two looks at a job that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 200 });

/// How long another operation may take that is in the way of a word on the end of a pull.
const LOCK_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 60 });

/// How often one that is copied is tried to be completed.
const COPIED_LOOKS: usize = 100;

/// How a pull goes, or went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PullInfo {
    /// The domain.
    pub domain: String,
    /// The disk's virtual device.
    pub vdev: String,
    /// The disk's image.
    pub image: Box<Path>,
    /// What it stands on in the end; none for nothing.
    pub base: Option<Backing>,
    /// How far it is.
    pub state: PullProgress,
    /// Bytes of the disk that are dealt with.
    pub cur: u64,
    /// Bytes of the disk.
    pub end: u64,
    /// What the next increment begins with.
    pub cursor: u64,
    /// The cursor at the end.
    pub last_cursor: u64,
    /// Most bytes per second that are copied; 0 for as many as can be.
    pub bandwidth: u64,
    /// Whether it goes on only by increments.
    pub increments: bool,
    /// What becomes of it if something cannot be read or written.
    pub on_error: OnError,
    /// Why it failed, or what it waits for.
    pub reason: Option<String>,
    /// When it began, in seconds since 1970-01-01 00:00 UTC.
    pub began_at: u64,
    /// When it ended, in the same.
    pub ended_at: Option<u64>,
}

/// How far a pull is, with what QEMU tells beside the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PullProgress {
    /// QEMU copies.
    Running,
    /// It stands still until the next increment.
    Paused,
    /// It stands still because of an error.
    Stalled,
    /// Everything is copied, and it is about to be completed.
    Copied,
    /// The QEMU that worked on it is gone; the next pull goes on with it.
    Interrupted,
    /// Nothing of it is left to do.
    Completed,
    /// QEMU gave up.
    Failed,
    /// Somebody ended it.
    Aborted,
}

impl PullProgress {
    /// As it is written in JSON and in xenstore.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stalled => "stalled",
            Self::Copied => "copied",
            Self::Interrupted => "interrupted",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }

    /// Whether nobody works on it any more.
    pub const fn is_over(self) -> bool {
        matches!(
            self,
            Self::Interrupted | Self::Completed | Self::Failed | Self::Aborted
        )
    }
}

impl PullInfo {
    fn new(domain: &str, pull: &Pull, job: Option<&PullJob>) -> Self {
        let state = match (pull.state, job.map(|job| job.state)) {
            (PullState::Completed, _) => PullProgress::Completed,
            (PullState::Failed, _) => PullProgress::Failed,
            (PullState::Aborted, _) => PullProgress::Aborted,
            (PullState::Interrupted, _) => PullProgress::Interrupted,
            (PullState::Copied, _) | (_, Some(PullJobState::Copied | PullJobState::Ended)) => {
                PullProgress::Copied
            }
            (_, Some(PullJobState::Stalled)) => PullProgress::Stalled,
            (_, Some(PullJobState::Cancelled)) => PullProgress::Aborted,
            (PullState::Held, _) | (_, Some(PullJobState::Held)) => PullProgress::Paused,
            (PullState::UnderWay, _) => PullProgress::Running,
        };
        let done = job.map_or(0, |job| job.done);
        let is_all = matches!(state, PullProgress::Completed | PullProgress::Copied);
        Self {
            domain: domain.to_owned(),
            vdev: pull.disk.vdev.clone(),
            image: pull.disk.image.clone(),
            base: pull.onto.clone(),
            state,
            cur: if is_all {
                pull.size
            } else {
                done.max(pull.position).min(pull.size)
            },
            end: pull.size,
            cursor: pull.cursor(pull.position),
            last_cursor: pull.last_cursor(),
            // The limit of an increment is its own, and changes all the time.
            bandwidth: match job {
                Some(job) if !pull.increments => job.speed,
                _ => pull.bandwidth,
            },
            increments: pull.increments,
            on_error: pull.on_error,
            reason: job
                .and_then(|job| job.error.clone())
                .or_else(|| pull.reason.clone()),
            began_at: pull.began_at,
            ended_at: pull.ended_at,
        }
    }
}

impl Host {
    /// Pulls what a disk lacks from the images below it. All of it is QEMU's to do while the domain goes on, and the call
    /// returns when it has begun; an increment, and what belongs to a domain that is off, are done when it returns. Where
    /// nothing is to be pulled, there is no pull.
    ///
    /// # Errors
    /// The refusals of the planner ([`plan::PullRequest`]). What was pulled when something fails stays, and the next call
    /// goes on with it.
    pub fn pull(
        &self,
        domain: &str,
        request: &PullRequest,
        observer: &dyn Observer,
    ) -> Result<(Done, Option<PullInfo>)> {
        let whole = Request::Pull(request.clone());
        let (target, lock) = self.open(domain, &whole, observer)?;
        let plan = self.plan_for(&target, &whole)?;
        let done = self.carry_out(&target, &lock, plan, observer)?;
        self.settle_pulls(&target, &lock, observer);
        let record = target.store.load()?;
        let found = find(&record.pulls, &request.disk).cloned();
        let info = found
            .map(|pull| self.seen(&target.look_again(&self.ports)?, &pull))
            .transpose()?;
        if let Some(info) = &info {
            self.post_pull(info);
        }
        Ok((Done { record, ..done }, info))
    }

    /// How the last pulls of a domain's disks go, or went; of one disk, if it is said which. What is left to do of one that
    /// has come to its end is done first.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchDomain`], or what the store and QEMU report.
    pub fn pulls(
        &self,
        domain: &str,
        disk: Option<&str>,
        observer: &dyn Observer,
    ) -> Result<Vec<PullInfo>> {
        let target = resolve(&self.ports, &self.store, domain, self.naming)?;
        // The lock is in nobody's way as long as there is nothing to do under it.
        let is_due = target.store.has_journal() || self.is_one_over(&target)?;
        let target = match is_due.then(|| target.store.lock(LockWait::No)) {
            None => target,
            Some(Ok(lock)) => {
                self.recover_locked(&target, &lock, observer)?;
                target.look_again(&self.ports)?
            }
            // Whoever holds it does what is left to do.
            Some(Err(error)) if error.kind() == ErrorKind::Locked => target,
            Some(Err(error)) => return Err(error),
        };
        let record = target.store.load()?;
        let asked = |pull: &&Pull| disk.is_none_or(|disk| is_named(pull, disk));
        let pulls = record.pulls.iter().filter(asked);
        let mut infos = pulls
            .map(|pull| self.seen(&target, pull))
            .collect::<Result<Vec<_>>>()?;
        infos.extend(self.copied_off(&target, disk)?);
        Ok(infos)
    }

    /// Waits until nobody works on the pull of a disk any more, and returns how it ended.
    ///
    /// # Errors
    /// As [`Host::pulls`]; [`ErrorKind::InvalidRequest`] if there was none; [`ErrorKind::Aborted`] if the observer does not
    /// want to wait any longer: the pull goes on.
    pub fn wait_for_pull(
        &self,
        domain: &str,
        disk: &str,
        observer: &dyn Observer,
    ) -> Result<PullInfo> {
        let found = self.pulls(domain, Some(disk), observer)?;
        if found.is_empty() {
            return Err(no_pull(domain, disk));
        }
        // Nobody is there to go on with what stands still.
        let is_still =
            |info: &PullInfo| matches!(info.state, PullProgress::Stalled | PullProgress::Paused);
        self.watch_until(domain, disk, observer, is_still)
    }

    /// Waits until the pull of a disk is over that has begun, or will; whoever may go on with it meanwhile.
    ///
    /// # Errors
    /// As [`Host::wait_for_pull`], but that there need not be one yet.
    pub fn watch_pull(
        &self,
        domain: &str,
        disk: &str,
        observer: &dyn Observer,
    ) -> Result<PullInfo> {
        self.watch_until(domain, disk, observer, |_| false)
    }

    fn watch_until(
        &self,
        domain: &str,
        disk: &str,
        observer: &dyn Observer,
        is_enough: impl Fn(&PullInfo) -> bool,
    ) -> Result<PullInfo> {
        let mut copied = 0;
        let mut told = None;
        loop {
            let mut found = self.pulls(domain, Some(disk), observer)?;
            let Some(info) = found.pop() else {
                abort_wanted(domain, disk, observer)?;
                std::thread::sleep(LOOK_EVERY);
                continue;
            };
            if told.as_ref() != Some(&info) {
                self.post_pull(&info);
                told = Some(info.clone());
            }
            observer.progress(Progress {
                done: info.cur,
                total: info.end,
                bytes: true,
            });
            if info.state.is_over() || is_enough(&info) {
                return Ok(info);
            }
            copied += usize::from(info.state == PullProgress::Copied);
            if copied > COPIED_LOOKS {
                return Err(Error::new(
                    ErrorKind::NeedsRepair,
                    format!("the pull of {disk} has copied everything, and cannot be completed"),
                ));
            }
            abort_wanted(domain, disk, observer)?;
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Ends the pull of a disk. What was pulled until then stays in the image, which stands on the others still. One that
    /// is over is no error; it is returned how it ended.
    ///
    /// # Errors
    /// As [`Host::pulls`]; [`ErrorKind::InvalidRequest`] if there was none.
    pub fn abort_pull(
        &self,
        domain: &str,
        disk: &str,
        observer: &dyn Observer,
    ) -> Result<PullInfo> {
        let target = resolve(&self.ports, &self.store, domain, self.naming)?;
        let lock = match target.store.lock(LockWait::No) {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::Locked => {
                // Who works on it has the lock, and hears of this.
                self.say(&target, disk, Word::Cancel)?;
                target.store.lock(LockWait::AtMost(LOCK_LIMIT))?
            }
            Err(error) => return Err(error),
        };
        self.recover_locked(&target, &lock, observer)?;
        let target = target.look_again(&self.ports)?;
        let record = target.store.load()?;
        let pull = find(&record.pulls, disk).ok_or_else(|| no_pull(domain, disk))?;
        if pull.can_go_on() && pull.state != PullState::Failed {
            self.end_pull(&target, &lock, pull, &PullEnd::Aborted, observer)?;
        }
        let record = target.store.load()?;
        let pull = find(&record.pulls, disk).ok_or_else(|| no_pull(domain, disk))?;
        let info = self.seen(&target, pull)?;
        self.post_pull(&info);
        Ok(info)
    }

    /// Sets how many bytes per second the pull of a disk copies at most; 0 for as many as can be.
    ///
    /// # Errors
    /// As [`Host::pulls`]; [`ErrorKind::InvalidRequest`] if nobody works on one.
    pub fn set_pull_speed(&self, domain: &str, disk: &str, bandwidth: u64) -> Result<()> {
        let target = resolve(&self.ports, &self.store, domain, self.naming)?;
        if self.say(&target, disk, Word::Speed(bandwidth))? {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("nobody pulls {disk} of domain '{domain}' now"),
        )
        .hint("`xl-ext block-pull --bandwidth` sets it for one that begins or goes on"))
    }

    /// Says something to the job of a disk, wherever it is. Returns whether there is one.
    fn say(&self, target: &Target, disk: &str, word: Word) -> Result<bool> {
        let pulls = &self.ports.pulls;
        let record = target.store.load()?;
        let known = find(&record.pulls, disk).filter(|pull| pull.is_under_way());
        if let (Some(pull), Some(view)) = (known, target.view)
            && pull.life == Some(view.life)
        {
            let by = Worker::Qemu(view.life);
            let job = pulls.look(&by, &pull.disk.image)?;
            if job.is_some_and(|job| is_at_work(&job)) {
                pulls.tell(&by, &pull.disk.image, word)?;
                return Ok(true);
            }
        }
        let Some((pull, by)) = self.off_job(target, Some(disk))? else {
            return Ok(false);
        };
        pulls.tell(&by, &pull.disk.image, word)?;
        Ok(true)
    }

    /// What a command that holds the lock copies for a domain that is off: of that only its journal tells.
    fn off_job(&self, target: &Target, disk: Option<&str>) -> Result<Option<(Pull, Worker)>> {
        if target.view.is_some() {
            return Ok(None);
        }
        let Some(plan) = exec::in_progress(&target.store)? else {
            return Ok(None);
        };
        let pull = plan.copied_off();
        let pull = pull.filter(|pull| disk.is_none_or(|disk| is_named(pull, disk)));
        let directory = self.ports.pulls.directory(target.store.directory());
        Ok(pull.map(|pull| (pull.clone(), Worker::Daemon(directory))))
    }

    fn copied_off(&self, target: &Target, disk: Option<&str>) -> Result<Option<PullInfo>> {
        let Some((pull, by)) = self.off_job(target, disk)? else {
            return Ok(None);
        };
        // It may have just begun, or ended.
        let job = self
            .ports
            .pulls
            .look(&by, &pull.disk.image)
            .unwrap_or_default();
        Ok(job.map(|job| PullInfo::new(&target.name, &pull, Some(&job))))
    }

    /// A pull with what QEMU tells of it.
    fn seen(&self, target: &Target, pull: &Pull) -> Result<PullInfo> {
        let job = self.job(target, pull)?;
        Ok(PullInfo::new(&target.name, pull, job.as_ref()))
    }

    fn job(&self, target: &Target, pull: &Pull) -> Result<Option<PullJob>> {
        match (pull.is_under_way(), pull.life, target.view) {
            (true, Some(life), Some(view)) if life == view.life => {
                self.ports.pulls.look(&Worker::Qemu(life), &pull.disk.image)
            }
            _ => Ok(None),
        }
    }

    /// Does what is left to do of pulls that have come to their end, or whose domain has. What cannot be done now is said,
    /// and left for the next command: nothing that it is in the way of is done meanwhile.
    pub(super) fn settle_pulls(&self, target: &Target, lock: &DomainLock, observer: &dyn Observer) {
        if let Err(error) = self.try_settle_pulls(target, lock, observer) {
            observer.note(&error.report());
        }
    }

    fn try_settle_pulls(
        &self,
        target: &Target,
        lock: &DomainLock,
        observer: &dyn Observer,
    ) -> Result<()> {
        // One that cannot be read is somebody else's matter.
        let Ok(record) = target.store.load() else {
            return Ok(());
        };
        if !record.pulls.iter().any(Pull::is_under_way) {
            return Ok(());
        }
        let target = target.clone().look_again(&self.ports)?;
        for pull in record.pulls.iter().filter(|pull| pull.is_under_way()) {
            if let Some(how) = self.how_ended(&target, pull)? {
                self.end_pull(&target, lock, pull, &how, observer)?;
            }
        }
        Ok(())
    }

    /// Whether the record speaks of a pull as under way that is not any more.
    fn is_one_over(&self, target: &Target) -> Result<bool> {
        let record = target.store.load()?;
        for pull in record.pulls.iter().filter(|pull| pull.is_under_way()) {
            if self.how_ended(target, pull)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How a pull ended, if it has.
    fn how_ended(&self, target: &Target, pull: &Pull) -> Result<Option<PullEnd>> {
        let is_its_qemu = target.view.is_some_and(|view| pull.life == Some(view.life));
        let job = match self.job(target, pull) {
            Ok(job) => job,
            // A domain that is going away takes its QEMU along first.
            Err(error) if is_its_qemu => {
                tracing::warn!("{}", error.report());
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        match job.map(|job| (job.state, job.error)) {
            Some((PullJobState::Copied, _)) => return Ok(Some(PullEnd::Copied)),
            Some((PullJobState::Cancelled, _)) => return Ok(Some(PullEnd::Aborted)),
            Some((PullJobState::Ended, Some(why))) => return Ok(Some(PullEnd::Failed(why))),
            Some((PullJobState::Running | PullJobState::Held | PullJobState::Stalled, _)) => {
                return Ok(None);
            }
            Some((PullJobState::Ended, None)) | None => {}
        }
        // Somebody let it end, or it was completed and could not be recorded: the image itself tells.
        let facts = self
            .ports
            .images
            .facts(&pull.disk.image, ImageFormat::Qcow2);
        let is_done = facts?.is_some_and(|facts| facts.stands_on(pull.onto.as_ref()));
        let is_copied = pull.state == PullState::Copied && target.view.is_none();
        Ok(Some(if is_done || is_copied {
            PullEnd::Copied
        } else {
            PullEnd::Interrupted
        }))
    }

    fn end_pull(
        &self,
        target: &Target,
        lock: &DomainLock,
        pull: &Pull,
        how: &PullEnd,
        observer: &dyn Observer,
    ) -> Result<()> {
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

    /// Tells other tools how a pull goes. Failures to do so are of no consequence.
    fn post_pull(&self, info: &PullInfo) {
        let value = format!("{} {} {}", info.cur, info.end, info.state.as_str());
        let posted = self
            .ports
            .toolstack
            .domid_of(&info.domain)
            .and_then(|domid| match domid {
                Some(domid) => {
                    let node = format!("pull/{}", info.vdev);
                    self.ports.board.post(domid, &node, &value)
                }
                None => Ok(()),
            });
        if let Err(error) = posted {
            tracing::warn!("post in xenstore: {}", error.report());
        }
    }
}

/// How a pull ended, in words.
fn told(info: &PullInfo) -> String {
    let PullInfo { vdev, image, .. } = info;
    let image = image.display();
    match (info.state, &info.base) {
        (PullProgress::Completed, None) => {
            format!("{vdev} ({image}) is pulled: it stands on nothing now")
        }
        (PullProgress::Completed, Some(base)) => {
            let base = base.image.display();
            format!("{vdev} ({image}) is pulled: it stands on {base} now")
        }
        (state, _) => {
            let why = info.reason.as_ref().map(|why| format!(": {why}"));
            format!(
                "the pull of {vdev} ({image}) is {}{}; what was pulled until then stays",
                state.as_str(),
                why.unwrap_or_default()
            )
        }
    }
}

fn is_at_work(job: &PullJob) -> bool {
    !matches!(job.state, PullJobState::Cancelled | PullJobState::Ended)
}

fn is_named(pull: &Pull, disk: &str) -> bool {
    pull.disk.vdev == disk || &*pull.disk.image == Path::new(disk)
}

fn find<'a>(pulls: &'a [Pull], disk: &str) -> Option<&'a Pull> {
    pulls.iter().find(|pull| is_named(pull, disk))
}

fn abort_wanted(domain: &str, disk: &str, observer: &dyn Observer) -> Result<()> {
    if !observer.wants_abort() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Aborted,
        format!("nobody waits any more for the end of the pull of {disk}, which goes on"),
    )
    .hint(format!("`xl-ext block-pull-abort {domain} {disk}` ends it")))
}

fn no_pull(domain: &str, disk: &str) -> Error {
    Error::new(
        ErrorKind::InvalidRequest,
        format!("nothing was pulled into {disk} of domain '{domain}'"),
    )
}
