//! Orders that are about pulls.

use super::protocol::{Answer, Call, Order, PullAnswer, PullEnded, PullStatus};
use crate::error::{ErrorKind, Result};
use crate::event::{Observer, Progress};
use crate::plan::{Increment, PullRequest};
use crate::snapshot::{Host, PullInfo, PullProgress};
use std::sync::atomic::{AtomicBool, Ordering};

/// Carries out an order, if it is one of these.
pub(super) fn carry_out(
    host: &Host,
    order: &Order,
    observer: &dyn Observer,
) -> Option<Result<Answer>> {
    let domain = &*order.domain;
    Some(match &order.call {
        Call::Pull { disk, increment } => {
            let request = PullRequest {
                disk: disk.clone(),
                increment: increment.map(|(bytes, cursor)| Increment {
                    bytes,
                    cursor: Some(cursor),
                }),
                ..PullRequest::default()
            };
            host.pull(domain, &request, observer)
                .and_then(|(done, info)| match done.left_over {
                    Some(error) => Err(error),
                    None => Ok(Answer::Pull(info.as_ref().map(answer))),
                })
        }
        Call::PullAbort { disk } => host
            .abort_pull(domain, disk, observer)
            .map(|_| Answer::Nothing),
        Call::PullInfo { disk } => host
            .pulls(domain, Some(disk), observer)
            .map(|infos| Answer::Pull(infos.first().map(answer))),
        Call::PullWatch { disk } => match host.watch_pull(domain, disk, observer) {
            Err(error) if error.kind() == ErrorKind::Aborted => Err(error),
            ended => Ok(Answer::PullEnded(told(domain, disk, ended))),
        },
        _ => return None,
    })
}

fn answer(info: &PullInfo) -> PullAnswer {
    let is_between = info.increments || info.state == PullProgress::Completed;
    PullAnswer {
        cursor: info.cursor,
        cur: if is_between { info.cursor } else { info.cur },
        end: info.last_cursor,
    }
}

fn told(domain: &str, disk: &str, ended: Result<PullInfo>) -> PullEnded {
    let (status, reason) = match ended {
        Err(error) => (PullStatus::Failed, Some(error.report())),
        Ok(info) => match info.state {
            PullProgress::Completed => (PullStatus::Completed, None),
            PullProgress::Aborted => (PullStatus::Aborted, None),
            PullProgress::Interrupted => (
                PullStatus::Failed,
                Some("the domain that it belonged to is gone; the next pull goes on".into()),
            ),
            _ => (PullStatus::Failed, info.reason),
        },
    };
    PullEnded {
        domain: domain.to_owned(),
        path: disk.to_owned(),
        status,
        reason,
    }
}

/// What is left to do of a pull that was started and goes on: its last act is ours.
pub struct Rest {
    host: Host,
    domain: String,
    disk: String,
}

impl Rest {
    /// That of an order that was carried out, if there is something.
    pub(super) fn of(host: Host, order: &Order, answer: &Answer) -> Option<Self> {
        let (Call::Pull { disk, increment }, Answer::Pull(Some(at))) = (&order.call, answer) else {
            return None;
        };
        let goes_on = increment.is_none() && at.cur < at.end;
        goes_on.then(|| Self {
            host,
            domain: order.domain.clone(),
            disk: disk.clone(),
        })
    }

    /// Waits until the pull is over, or `stop` is set: the next call for the domain does it then.
    pub fn wait(&self, stop: &AtomicBool) {
        let ended = self
            .host
            .wait_for_pull(&self.domain, &self.disk, &Stoppable(stop));
        if let Err(error) = ended {
            tracing::warn!("{}", error.report());
        }
    }
}

/// Looks for nothing but whether it is to stop.
struct Stoppable<'a>(&'a AtomicBool);

impl Observer for Stoppable<'_> {
    fn step(&self, _what: &str) {}
    fn progress(&self, _progress: Progress) {}
    fn note(&self, _text: &str) {}
    fn wants_abort(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::path::Path;

    #[test]
    fn the_event_tells_each_end_apart_and_why_it_failed() {
        let full = "No space left on device";
        let info = |state| PullInfo {
            domain: "g".into(),
            vdev: "xvda".into(),
            image: Path::new("/i/a").into(),
            base: None,
            state,
            cur: 1,
            end: 2,
            cursor: 0,
            last_cursor: 2,
            bandwidth: 0,
            increments: false,
            on_error: crate::model::pull::OnError::Fail,
            reason: (state == PullProgress::Failed).then(|| full.into()),
            began_at: 0,
            ended_at: None,
        };
        let of = |state| {
            let told = told("g", "/i/a", Ok(info(state)));
            assert_eq!((&*told.domain, &*told.path), ("g", "/i/a"));
            (told.status, told.reason)
        };
        assert_eq!(of(PullProgress::Completed), (PullStatus::Completed, None));
        assert_eq!(of(PullProgress::Aborted), (PullStatus::Aborted, None));
        let (status, why) = of(PullProgress::Failed);
        assert_eq!((status, why.as_deref()), (PullStatus::Failed, Some(full)));
        let (status, why) = of(PullProgress::Interrupted);
        assert_eq!(status, PullStatus::Failed);
        assert!(why.is_some_and(|why| why.contains("next pull goes on")));
        let gone = Error::new(ErrorKind::NoSuchDomain, "no domain 'g'");
        let told = told("g", "/i/a", Err(gone));
        assert_eq!(told.status, PullStatus::Failed);
        assert!(told.reason.is_some_and(|why| why.contains("no domain 'g'")));
    }
}
