//! Jobs of QEMU's block layer: started under a name that is the image's own, so that whoever comes later,
//! after a crash too, finds the one that is there.

use super::qmp::{RUN_DIRECTORY, short};
use super::qmp_wire::{Command, Monitor};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{absent_is_fine, atomic};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Name of a job.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Id(String);

/// Merges a layer into one below it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct BlockCommit<'a> {
    pub(super) job_id: &'a Id,
    pub(super) device: &'a str,
    /// The layer; the disk itself, if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) top_node: Option<&'a str>,
    pub(super) base_node: &'a str,
    pub(super) auto_dismiss: bool,
}

impl Command for BlockCommit<'_> {
    const NAME: &'static str = "block-commit";
    type Answer = Value;
}

/// Copies what a layer lacks from those below it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct BlockStream<'a> {
    pub(super) job_id: &'a Id,
    pub(super) device: &'a str,
    /// Where it ends; at the bottom, if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) base_node: Option<&'a str>,
    /// What the image says then of the image below; as QEMU has that open, if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) backing_file: Option<&'a Path>,
    /// Most bytes per second; 0 for as many as can be.
    pub(super) speed: u64,
    pub(super) on_error: OnIoError,
    pub(super) auto_finalize: bool,
    pub(super) auto_dismiss: bool,
}

/// Copies a disk to another node, and from then on what is written to it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct BlockdevMirror<'a> {
    pub(super) job_id: &'a Id,
    pub(super) device: &'a str,
    pub(super) target: &'a str,
    /// `full`: all of the disk.
    pub(super) sync: &'static str,
    /// `write-blocking`: a write is over when both have it.
    pub(super) copy_mode: &'static str,
    pub(super) on_source_error: OnIoError,
    pub(super) on_target_error: OnIoError,
    pub(super) auto_finalize: bool,
    pub(super) auto_dismiss: bool,
}

impl Command for BlockdevMirror<'_> {
    const NAME: &'static str = "blockdev-mirror";
    type Answer = Value;
}

/// QEMU's `BlockdevOnError`, of which we use these.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnIoError {
    /// The job fails.
    Report,
    /// It stands still until it is told to go on.
    Stop,
}

impl Command for BlockStream<'_> {
    const NAME: &'static str = "block-stream";
    type Answer = Value;
}

#[derive(Serialize)]
struct QueryJobs {}

impl Command for QueryJobs {
    const NAME: &'static str = "query-jobs";
    type Answer = Vec<JobInfo>;
}

/// What we read of QEMU's `JobInfo`.
#[derive(Deserialize)]
pub(super) struct JobInfo {
    id: String,
    pub(super) status: Status,
    pub(super) error: Option<String>,
    #[serde(rename = "current-progress", default)]
    pub(super) done: u64,
    #[serde(rename = "total-progress", default)]
    pub(super) total: u64,
}

/// QEMU's `JobStatus`, as far as we act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// It stands still, because it was told to or by an error.
    Paused,
    Ready,
    /// It has done everything but its last act, which it waits to be told.
    Pending,
    Concluded,
    #[serde(other)]
    Busy,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It is at work.
    Copying,
    /// Everything is copied, and what is written meanwhile goes to both images, until it is told to complete.
    InStep,
    /// It is over, or there is none.
    Ended,
}

/// A word to a job under its id alone: `job-pause` and its kin.
macro_rules! words {
    ($($(#[$what:meta])* $command:ident = $name:literal;)*) => {$(
        $(#[$what])*
        #[derive(Serialize)]
        pub(super) struct $command<'a> {
            pub(super) id: &'a Id,
        }

        impl Command for $command<'_> {
            const NAME: &'static str = $name;
            type Answer = Value;
        }
    )*};
}

words! {
    /// Stand still.
    JobPause = "job-pause";
    /// Go on, also after an error.
    JobResume = "job-resume";
    /// Give up.
    JobCancel = "job-cancel";
    /// Do the last act.
    JobFinalize = "job-finalize";
    /// Go over to the image that is in step.
    JobComplete = "job-complete";
    /// It has ended; forget it.
    JobDismiss = "job-dismiss";
}

/// How fast a job may be.
#[derive(Serialize)]
pub(super) struct BlockJobSetSpeed<'a> {
    pub(super) device: &'a Id,
    pub(super) speed: u64,
}

impl Command for BlockJobSetSpeed<'_> {
    const NAME: &'static str = "block-job-set-speed";
    type Answer = Value;
}

/// What only block jobs have.
#[derive(Serialize)]
struct QueryBlockJobs {}

impl Command for QueryBlockJobs {
    const NAME: &'static str = "query-block-jobs";
    type Answer = Vec<Pace>;
}

/// Pace and troubles of a block job: what we read of QEMU's `BlockJobInfo`.
#[derive(Deserialize)]
pub(super) struct Pace {
    device: String,
    /// Most bytes per second; 0 for as many as can be.
    pub(super) speed: u64,
    /// `ok`, `nospace` or `failed`.
    #[serde(rename = "io-status")]
    pub(super) io_status: String,
    /// Whether it has yet to stand still, if it was told to.
    pub(super) busy: bool,
}

/// What the names of our jobs begin with, those of pulls too.
const PREFIX: &str = "xl-ext-";

/// What those of pulls begin with.
const PULL_PREFIX: &str = "xl-ext-pull-";

/// What those of mirrors begin with: one that failed stays in QEMU's list, as the sign of that, until its replication is
/// stopped. QEMU 7.2 bears that, unlike with pulls.
const MIRROR_PREFIX: &str = "xl-repl-";

/// Why pulls failed of which QEMU had to forget the jobs before anybody had recorded it: a file for each, which does not
/// outlive the host, as the jobs do not.
pub(super) struct Forgotten<'a>(&'a str);

impl Forgotten<'static> {
    /// Of this host.
    pub(super) const HERE: Self = Self(RUN_DIRECTORY);
}

impl Forgotten<'_> {
    fn path(&self, id: &Id) -> PathBuf {
        Path::new(self.0).join(format!("{}.failed", id.0))
    }

    fn keep(&self, id: &Id, why: &str) -> Result<()> {
        atomic::replace(&self.path(id), why.as_bytes())
    }

    /// Why a pull failed, if that is kept.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if it cannot be read.
    pub(super) fn find(&self, id: &Id) -> Result<Option<String>> {
        let why = atomic::read_own(&self.path(id))?;
        Ok(why.map(|why| String::from_utf8_lossy(&why).into_owned()))
    }

    /// It is recorded, or another one begins.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if it cannot be removed.
    pub(super) fn remove(&self, id: &Id) -> Result<()> {
        let path = self.path(id);
        absent_is_fine(std::fs::remove_file(&path))
            .map_err(|error| Error::io(format!("remove {}", path.display()), error))
    }
}

/// Removes jobs of ours that failed from QEMU's list. QEMU 7.2 dies of `query-named-block-nodes` while a `block-stream`
/// that failed is in it, as after a command that was killed meanwhile. Whoever waits for the job sees by the images that it
/// has not done its work; why a pull failed is kept ([`Forgotten`]).
///
/// # Errors
/// If QEMU refuses.
pub(super) fn dismiss_failed(monitor: &mut Monitor) -> Result<()> {
    let jobs = monitor.run(&QueryJobs {})?;
    for job in jobs.into_iter().filter(JobInfo::is_ours_and_failed) {
        let id = Id(job.id);
        tracing::warn!("QEMU's job {} failed: {:?}", id.0, job.error);
        // QEMU may die of one that stays: that matters more than why it failed.
        if let Some(why) = job.error.filter(|_| id.is_pull())
            && let Err(error) = Forgotten::HERE.keep(&id, &why)
        {
            tracing::warn!("{}", error.report());
        }
        id.dismiss(monitor)?;
    }
    Ok(())
}

impl JobInfo {
    fn is_ours_and_failed(&self) -> bool {
        self.id.starts_with(PREFIX) && self.status == Status::Concluded && self.error.is_some()
    }
}

impl Id {
    /// The job that works on an image.
    pub(super) fn of(image: &Path) -> Self {
        Self(format!("{PREFIX}{}", short(image)))
    }

    /// The job that pulls into an image.
    pub(super) fn of_pull(image: &Path) -> Self {
        Self(format!("{PULL_PREFIX}{}", short(image)))
    }

    /// The job that mirrors the disk of this virtual device.
    pub(super) fn of_mirror(vdev: &str) -> Self {
        Self(format!("{MIRROR_PREFIX}{vdev}"))
    }

    fn is_pull(&self) -> bool {
        self.0.starts_with(PULL_PREFIX)
    }

    /// How fast it may be, and what stands in its way, if it has not ended.
    pub(super) fn pace(&self, monitor: &mut Monitor) -> Result<Option<Pace>> {
        let jobs = monitor.run(&QueryBlockJobs {})?;
        Ok(jobs.into_iter().find(|job| job.device == self.0))
    }

    /// Removes a job that has ended from QEMU's list.
    pub(super) fn dismiss(&self, monitor: &mut Monitor) -> Result<()> {
        monitor.run(&JobDismiss { id: self }).map(drop)
    }

    /// Whether there is such a job that has not ended. One that has is removed from QEMU's list.
    pub(super) fn is_there(&self, monitor: &mut Monitor) -> Result<bool> {
        match self.look(monitor)? {
            None => Ok(false),
            Some(job) if job.status == Status::Concluded => {
                self.dismiss(monitor)?;
                Ok(false)
            }
            Some(_) => Ok(true),
        }
    }

    /// One look at the job. One that has ended is removed from QEMU's list.
    ///
    /// # Errors
    /// What the job ended with.
    pub(super) fn progress(&self, monitor: &mut Monitor) -> Result<Progress> {
        let Some(job) = self.look(monitor)? else {
            return Ok(Progress::Ended);
        };
        match job.status {
            Status::Busy | Status::Paused | Status::Pending => Ok(Progress::Copying),
            Status::Ready => Ok(Progress::InStep),
            Status::Concluded => {
                self.dismiss(monitor)?;
                match job.error {
                    None => Ok(Progress::Ended),
                    Some(why) => Err(Error::new(
                        ErrorKind::Toolstack,
                        format!("QEMU's job {} failed", self.0),
                    )
                    .because(why)),
                }
            }
        }
    }

    /// Lets a job end that is in step.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub(super) fn complete(&self, monitor: &mut Monitor) -> Result<()> {
        monitor.run(&JobComplete { id: self }).map(drop)
    }

    pub(super) fn look(&self, monitor: &mut Monitor) -> Result<Option<JobInfo>> {
        let jobs = monitor.run(&QueryJobs {})?;
        Ok(jobs.into_iter().find(|job| job.id == self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_we_do_not_know_is_one_to_wait_in() {
        let jobs: Vec<JobInfo> = serde_json::from_str(
            r#"[{"id":"a","status":"ready","type":"commit","current-progress":0,"total-progress":0},
                {"id":"b","status":"waiting"},
                {"id":"c","status":"concluded","error":"No space left on device"}]"#,
        )
        .unwrap();
        let statuses: Vec<_> = jobs.iter().map(|job| job.status).collect();
        assert_eq!(statuses, [Status::Ready, Status::Busy, Status::Concluded]);
        assert!(jobs[2].error.is_some());
    }

    #[test]
    fn why_a_pull_failed_outlives_its_job_until_it_is_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let kept = Forgotten(directory.path().to_str().unwrap());
        let [one, other] = ["/i/a", "/i/b"].map(|image| Id::of_pull(Path::new(image)));
        assert!(one.is_pull() && !Id::of(Path::new("/i/a")).is_pull());
        kept.remove(&one).unwrap();
        assert_eq!(kept.find(&one).unwrap(), None);
        kept.keep(&one, "Input/output error").unwrap();
        kept.keep(&one, "No space left on device").unwrap();
        let why = kept.find(&one).unwrap();
        assert_eq!(why.as_deref(), Some("No space left on device"));
        assert_eq!(kept.find(&other).unwrap(), None);
        kept.remove(&one).unwrap();
        assert_eq!(kept.find(&one).unwrap(), None);
    }

    #[test]
    fn only_jobs_of_ours_that_failed_are_removed_unasked() {
        let own = Id::of(Path::new("/i/a")).0;
        let job = |id: &str, status, error: Option<&str>| JobInfo {
            id: id.into(),
            status,
            error: error.map(Into::into),
            done: 0,
            total: 0,
        };
        let full = Some("No space left on device");
        assert!(job(&own, Status::Concluded, full).is_ours_and_failed());
        assert!(!job(&own, Status::Concluded, None).is_ours_and_failed());
        assert!(!job(&own, Status::Busy, full).is_ours_and_failed());
        assert!(!job("backup", Status::Concluded, full).is_ours_and_failed());
    }
}
