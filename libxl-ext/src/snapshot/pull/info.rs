//! What is told of a pull: the record, with what QEMU says beside it.

use crate::model::layer::Backing;
use crate::model::pull::{OnError, Pull, PullState};
use crate::port::{PullJob, PullJobState};
use serde::Serialize;
use std::path::Path;

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
    pub(super) fn new(domain: &str, pull: &Pull, job: Option<&PullJob>) -> Self {
        let state = match (pull.state, job.map(|job| job.state)) {
            (PullState::Completed, _) => PullProgress::Completed,
            (PullState::Failed, _) => PullProgress::Failed,
            (PullState::Aborted, _) => PullProgress::Aborted,
            (PullState::Interrupted, _) => PullProgress::Interrupted,
            (_, Some(PullJobState::Ended)) if job.is_some_and(|job| job.error.is_some()) => {
                PullProgress::Failed
            }
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

/// How a pull ended, in words.
pub(super) fn told(info: &PullInfo) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pull::tests::pull;

    #[test]
    fn a_job_that_ended_with_an_error_has_failed() {
        let full = "No space left on device";
        let mut job = PullJob {
            state: PullJobState::Ended,
            done: 1,
            total: 2,
            speed: 0,
            error: Some(full.into()),
        };
        let pull = pull("/i/a", &["/i/b"]);
        let info = PullInfo::new("g", &pull, Some(&job));
        let told = (info.state, info.reason.as_deref());
        assert_eq!(told, (PullProgress::Failed, Some(full)));
        job.error = None;
        let info = PullInfo::new("g", &pull, Some(&job));
        assert_eq!(info.state, PullProgress::Copied);
    }
}
