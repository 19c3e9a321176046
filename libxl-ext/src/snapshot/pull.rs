//! Pulls: what goes on is in the record and in QEMU, so whoever comes by later sees it, and does what is left to do.

mod aside;
mod info;
mod looks;
mod settle;

pub use info::{PullInfo, PullProgress};

use super::{Done, Host};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Observer, Progress};
use crate::exec;
use crate::model::pull::{Pull, PullState};
use crate::observe::{Target, resolve};
use crate::plan::{PullEnd, PullRequest, Request};
use crate::port::{PullJob, PullJobState, Word, Worker};
use crate::store::LockWait;
use looks::Looks;
pub(crate) use settle::Unsettled;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two looks at a job that is waited for, at least.
const LOOK_EVERY: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 200 });

/// And at most.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 3000 });

/// How long another operation may take that is in the way of a word on the end of a pull.
const LOCK_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 60 });

/// How long whoever does what is left to do of a pull may take before it is told how that is without it.
const SETTLE_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 10 });

/// How often one that has come to its end is tried to be completed.
const SETTLINGS: usize = 100;

/// What a look at the pulls of a domain showed.
struct Looked {
    infos: Vec<PullInfo>,
    /// Those that were tried to be settled in vain.
    unsettled: Unsettled,
    /// What the record says of them.
    recorded: Vec<Pull>,
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
        let pull = plan.pulled().cloned();
        let before = pull.as_ref().map(|pull| recorded(&target, pull));
        let before = before.transpose()?.flatten();
        let carried_out = self.carry_out(&target, &lock, plan, observer);
        self.settle_pulls(&target, &lock, observer);
        let done = match (carried_out, pull) {
            (Ok(done), _) => done,
            (Err(error), None) => return Err(error),
            (Err(error), Some(pull)) => {
                let pull = (&pull, before.as_ref());
                self.record_failure(&target, &lock, pull, &error, observer);
                return Err(error);
            }
        };
        let record = target.store.load()?;
        let found = find(&record.pulls, &request.disk).cloned();
        let target = target.look_again(&self.ports)?;
        let info = found.map(|pull| self.seen(&target, &pull));
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
        let looked = self.look_at_pulls(domain, disk, observer)?;
        Ok(looked.infos)
    }

    /// The same, with what else was seen.
    fn look_at_pulls(
        &self,
        domain: &str,
        disk: Option<&str>,
        observer: &dyn Observer,
    ) -> Result<Looked> {
        let target = resolve(&self.ports, &self.store, domain, self.naming)?;
        let mut unsettled = Vec::new();
        // The lock is in nobody's way as long as there is nothing to do under it.
        let jobs = if target.store.has_journal() {
            None
        } else {
            self.all_under_way(&target)?
        };
        let is_due = jobs.is_none();
        // What the record says is not so any more, and whoever waits for the pull is about to say what is.
        let wait = if is_due && has_lost_its_domain(&target)? {
            LockWait::AtMost(SETTLE_LIMIT)
        } else {
            LockWait::No
        };
        let target = match is_due.then(|| target.store.lock(wait)) {
            None => target,
            Some(Ok(lock)) => {
                unsettled = self.recover_locked(&target, &lock, observer)?;
                target.look_again(&self.ports)?
            }
            // Whoever holds it so long does what is left to do in the end.
            Some(Err(error)) if error.kind() == ErrorKind::Locked => target,
            Some(Err(error)) => return Err(error),
        };
        let record = target.store.load()?;
        let off = self.off_job(&target, disk)?;
        let is_off = |pull: &&Pull| {
            let is_it = |(off, _): &(Pull, Worker)| {
                off.disk.vdev == pull.disk.vdev || off.disk.image == pull.disk.image
            };
            off.as_ref().is_some_and(is_it)
        };
        let asked = |pull: &&Pull| disk.is_none_or(|disk| is_named(pull, disk));
        // Each look takes QEMU's time.
        let jobs = jobs.unwrap_or_default();
        let seen = |pull: &Pull| match jobs.get(&pull.disk.image) {
            Some(job) => PullInfo::new(&target.name, pull, job.as_ref()),
            None => self.seen(&target, pull),
        };
        let pulls = record.pulls.iter().filter(asked);
        let mut infos: Vec<_> = pulls.filter(|pull| !is_off(pull)).map(seen).collect();
        infos.extend(off.as_ref().map(|(pull, by)| {
            // It may have just begun, or ended, and have nobody who answers.
            let looked = self.ports.pulls.look(by, &pull.disk.image);
            PullInfo::new(&target.name, pull, looked.unwrap_or_default().as_ref())
        }));
        Ok(Looked {
            infos,
            unsettled,
            recorded: record.pulls,
        })
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
        // Nobody is there to go on with what stands still. What goes on by itself does so again once its domain does.
        let is_still = |info: &PullInfo| match info.state {
            PullProgress::Stalled => true,
            PullProgress::Paused => info.increments,
            _ => false,
        };
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
        let mut failed = 0;
        let mut told = None;
        let mut looks = Looks::new(LOOK_EVERY, LOOK_AT_LEAST_EVERY);
        loop {
            let began = Instant::now();
            let Looked {
                mut infos,
                unsettled,
                recorded,
            } = self.look_at_pulls(domain, Some(disk), observer)?;
            let Some(info) = infos.pop() else {
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
            // Another command may hold the lock for as long as it likes: only what was tried counts.
            let is_it = |(pull, _): &(Pull, Error)| pull.disk.image == info.image;
            if let Some((_, error)) = unsettled.into_iter().find(is_it) {
                failed += 1;
                if failed > SETTLINGS {
                    return Err(Error::new(
                        ErrorKind::NeedsRepair,
                        format!("the pull of {disk} has come to its end, and cannot be completed"),
                    )
                    .because(error)
                    .hint("remove what stands in the way; the next command for this domain goes on with it"));
                }
            }
            let pause = looks.pause((began, Instant::now()), info.cur, info.end);
            let is_it = |pull: &&Pull| pull.disk.image == info.image && pull.is_under_way();
            let pull = recorded.iter().find(is_it);
            self.wait_beside((domain, pull), disk, pause, observer)?;
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
        let info = self.seen(&target, pull);
        self.post_pull(&info);
        Ok(info)
    }

    /// Sets how many bytes per second the pull of a disk copies at most; 0 for as many as can be.
    ///
    /// # Errors
    /// As [`Host::pulls`]; [`ErrorKind::InvalidRequest`] if nobody works on one.
    pub fn set_pull_speed(&self, domain: &str, disk: &str, bandwidth: u64) -> Result<()> {
        let target = resolve(&self.ports, &self.store, domain, self.naming)?;
        let record = target.store.load()?;
        let known = find(&record.pulls, disk).filter(|pull| pull.is_under_way());
        if known.is_some_and(|pull| pull.increments) {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("{disk} of domain '{domain}' is pulled by increments, each with a speed of its own"),
            )
            .hint("`xl-ext block-pull --step SIZE --bandwidth BYTES` sets it for the next one"));
        }
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

    /// A pull with what QEMU tells of it, if it answers: a domain that is going away takes its QEMU along first.
    fn seen(&self, target: &Target, pull: &Pull) -> PullInfo {
        let job = self.job(target, pull).unwrap_or_else(|error| {
            tracing::warn!("{}", error.report());
            None
        });
        PullInfo::new(&target.name, pull, job.as_ref())
    }

    fn job(&self, target: &Target, pull: &Pull) -> Result<Option<PullJob>> {
        match (pull.is_under_way(), pull.life, target.view) {
            (true, Some(life), Some(view)) if life == view.life => {
                self.ports.pulls.look(&Worker::Qemu(life), &pull.disk.image)
            }
            _ => Ok(None),
        }
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

/// What the record says of the pull of the same image.
fn recorded(target: &Target, pull: &Pull) -> Result<Option<Pull>> {
    let record = target.store.load()?;
    Ok(record.pull_of(&pull.disk.image).cloned())
}

/// Whether the QEMU is gone that worked on a pull of the record's.
fn has_lost_its_domain(target: &Target) -> Result<bool> {
    let now = target.view.map(|view| view.life);
    let record = target.store.load()?;
    let is_lost = |pull: &Pull| pull.is_under_way() && pull.life.is_some() && pull.life != now;
    Ok(record.pulls.iter().any(is_lost))
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
