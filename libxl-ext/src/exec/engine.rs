//! The engine: one plan from its first step to its last, or back.

use super::fault::{self, Stage, Way};
use super::journal::Journal;
use super::perform::{Measured, Performer};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::plan::{Memory, Operation, Plan, StoreChange};
use crate::port::Ports;
use crate::store::{DomainLock, DomainStore};
use std::cell::Cell;
use std::cmp::Ordering;
use std::time::Duration;

/// How an operation ended that did what it should.
#[derive(Debug)]
pub struct Outcome {
    /// What went wrong after the operation was completed, in what only tidies up.
    pub left_over: Option<Error>,
    /// How long the guest stood still, if it did, and libxl told since when.
    pub pause: Option<Duration>,
}

/// Carries out `plan`. The lock says that nobody else works on the domain.
///
/// # Errors
/// The error of the step that failed; everything is then as it was before. If that could not be brought
/// about, [`ErrorKind::NeedsRepair`] says what is left to do; the journal stays for recovery.
pub fn run(
    plan: &Plan,
    ports: &Ports,
    store: &DomainStore,
    _lock: &DomainLock,
    observer: &dyn Observer,
) -> Result<Outcome> {
    let mut journal = Journal::create(store, plan)?;
    let performer = Performer {
        ports,
        store,
        observer,
        plan,
        may_still_suspend: false,
        killed_at: None,
        is_announced: Cell::new(false),
        images_are_ours: Cell::new(false),
        has_written: Cell::new(false),
    };
    let mut measured = Measured::default();
    let (no_loss, no_return) = (plan.point_of_no_loss(), plan.point_of_no_return());
    for (at, step) in plan.steps.iter().enumerate() {
        if !step.is_brief() {
            performer.post_progress(at);
        }
        let (mut begun, mut performed) = (false, false);
        let result = abort_wanted(observer, at <= no_loss)
            .inspect(|()| fault::at_step(Way::Do, at, step, Stage::Next))
            .and_then(|()| {
                // Past that, recovery does all that is left, begun or not.
                let is_sure = plan.is_final_once_started() && at > no_return;
                if step.needs_no_word() || is_sure {
                    journal.note(at)
                } else {
                    journal.begin(at)
                }
            })
            .inspect(|()| begun = true)
            .inspect(|()| fault::at_step(Way::Do, at, step, Stage::Begun))
            .and_then(|()| performer.perform(step, &mut measured))
            .inspect(|()| performed = true)
            .inspect(|()| fault::at_step(Way::Do, at, step, Stage::Performed))
            .and_then(|()| journal.done(at))
            .inspect(|()| fault::at_step(Way::Do, at, step, Stage::Done));
        let Err(error) = result else { continue };
        // A commit that failed may have happened all the same, when only its flush did not.
        let committed = match at.cmp(&no_return) {
            Ordering::Less => Ok(false),
            Ordering::Equal if plan.is_final_once_started() => Ok(begun),
            Ordering::Equal => performer.committed(),
            Ordering::Greater => Ok(true),
        };
        return match committed {
            Ok(false) => Err(give_up(plan, at, error, journal, &performer)),
            Ok(true) => {
                // What was done, and could not be written down, is for recovery as after a kill.
                let must_be_finished = performed || step.must_be_finished();
                finish_later(plan, must_be_finished, journal, error, &performer).map(|outcome| {
                    Outcome {
                        pause: measured.pause,
                        ..outcome
                    }
                })
            }
            Err(unknown) => Err(in_doubt(plan, &error, unknown)),
        };
    }
    performer.withdraw_progress();
    Ok(Outcome {
        left_over: journal.close().err(),
        pause: measured.pause,
    })
}

fn abort_wanted(observer: &dyn Observer, harmless: bool) -> Result<()> {
    if harmless && observer.wants_abort() {
        return Err(Error::new(ErrorKind::Aborted, "stopped on request"));
    }
    Ok(())
}

/// Takes everything back and says so; keeps the first error.
fn give_up(
    plan: &Plan,
    at: usize,
    error: Error,
    mut journal: Journal,
    performer: &Performer<'_>,
) -> Error {
    let performer = Performer {
        // libxl lost patience, but the guest may still have the request.
        may_still_suspend: error.kind() == ErrorKind::GuestTimeout,
        is_announced: performer.is_announced.clone(),
        images_are_ours: Cell::new(false),
        has_written: Cell::new(false),
        ..*performer
    };
    let undone = performer
        .take_back(&mut journal, at, 0)
        .and_then(|()| journal.close());
    performer.withdraw_progress();
    match undone {
        Ok(()) => error.while_doing(format!(
            "{} failed, and domain '{}', its disks and its snapshots {}",
            plan.title_within_domain(),
            plan.domain,
            aftermath(&performer, at)
        )),
        Err(undo) => Error::new(
            ErrorKind::NeedsRepair,
            format!(
                "{} failed ({}), and could not be taken back completely",
                plan.title_within_domain(),
                error.report()
            ),
        )
        .because(undo)
        .hint("remove what stands in the way; the next command for this domain goes on with it"),
    }
}

/// What was brought about by taking everything back, if the step `at` had begun.
fn aftermath(performer: &Performer<'_>, at: usize) -> String {
    match performer.destroyed(at).map(Memory::loss) {
        None => "are as they were".to_owned(),
        Some(None) => "are as they were, under a new domid".to_owned(),
        Some(Some(loss)) => format!("are as they were, but that {loss}"),
    }
}

/// The operation is completed; only tidying up failed.
fn finish_later(
    plan: &Plan,
    must_be_finished: bool,
    journal: Journal,
    error: Error,
    performer: &Performer<'_>,
) -> Result<Outcome> {
    performer.withdraw_progress();
    if plan.operation == Operation::SnapshotDelete {
        if error.kind() == ErrorKind::NeedsRepair || must_be_finished {
            // The journal stays: it knows how to go on.
            return Err(Error::new(
                ErrorKind::NeedsRepair,
                format!("{}, is done only in part", plan.title()),
            )
            .because(error)
            .hint(
                "remove what stands in the way; the next command for this domain goes on with it",
            ));
        }
        // Now it is known that nobody but us wrote to what the merges wrote to.
        if let Err(unknown) = performer.commit(&StoreChange::Stopped, &Measured::default()) {
            tracing::warn!("{}", unknown.report());
        }
        // The record says that the deletion has begun: giving the command again finishes it.
        if let Err(close) = journal.close() {
            tracing::warn!("{}", close.report());
        }
        return Err(error
            .while_doing(format!("{}, is done only in part", plan.title()))
            .hint("give the command again when the cause is removed"));
    }
    Ok(Outcome {
        left_over: Some(error),
        pause: None,
    })
}

/// Nobody can say whether the operation committed: neither way is taken.
fn in_doubt(plan: &Plan, error: &Error, unknown: Error) -> Error {
    Error::new(
        ErrorKind::NeedsRepair,
        format!(
            "{} failed ({}), and it cannot be seen how far it got",
            plan.title_within_domain(),
            error.report()
        ),
    )
    .because(unknown)
    .hint("remove what stands in the way; the next command for this domain goes on")
}
