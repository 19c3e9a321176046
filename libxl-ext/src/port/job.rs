//! Jobs of QEMU's block layer: started under a name that is the image's own, so that whoever comes later,
//! after a crash too, finds the one that is there.

use super::qmp_wire::{Command, Monitor};
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

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
    pub(super) auto_dismiss: bool,
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
struct JobInfo {
    id: String,
    status: Status,
    error: Option<String>,
}

/// QEMU's `JobStatus`, as far as we act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ready,
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

#[derive(Serialize)]
struct JobComplete<'a> {
    id: &'a Id,
}

impl Command for JobComplete<'_> {
    const NAME: &'static str = "job-complete";
    type Answer = Value;
}

#[derive(Serialize)]
struct JobDismiss<'a> {
    id: &'a Id,
}

impl Command for JobDismiss<'_> {
    const NAME: &'static str = "job-dismiss";
    type Answer = Value;
}

impl Id {
    /// The job that works on an image.
    pub(super) fn of(image: &Path) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_64(image.as_os_str().as_encoded_bytes());
        Self(format!("xl-ext-{hash:016x}"))
    }

    /// Whether there is such a job that has not ended. One that has is removed from QEMU's list.
    pub(super) fn is_there(&self, monitor: &mut Monitor) -> Result<bool> {
        match self.look(monitor)? {
            None => Ok(false),
            Some(job) if job.status == Status::Concluded => {
                monitor.run(&JobDismiss { id: self })?;
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
            Status::Busy => Ok(Progress::Copying),
            Status::Ready => Ok(Progress::InStep),
            Status::Concluded => {
                monitor.run(&JobDismiss { id: self })?;
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

    fn look(&self, monitor: &mut Monitor) -> Result<Option<JobInfo>> {
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
                {"id":"b","status":"pending"},
                {"id":"c","status":"concluded","error":"No space left on device"}]"#,
        )
        .unwrap();
        let statuses: Vec<_> = jobs.iter().map(|job| job.status).collect();
        assert_eq!(statuses, [Status::Ready, Status::Busy, Status::Concluded]);
        assert!(jobs[2].error.is_some());
    }
}
