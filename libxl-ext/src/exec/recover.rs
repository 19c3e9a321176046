//! After a crash: look at the journal that an earlier process left, and end what it began.

use super::fault::{self, Stage, Way};
use super::journal::Journal;
use super::perform::{Measured, Performer};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::plan::{Memory, Operation, Plan, Step};
use crate::port::Ports;
use crate::store::{DomainLock, DomainStore};
use std::cell::Cell;

/// What recovery did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// There was nothing to do.
    Nothing,
    /// An operation that had committed was finished.
    Finished(String),
    /// An operation that had not committed was taken back.
    TakenBack(String),
}

/// Ends the operation that an earlier process left unfinished: what had passed its point of no return is
/// finished, everything else is taken back. Doing it again, also after a crash of its own, is fine.
///
/// # Errors
/// [`ErrorKind::NeedsRepair`] if a step cannot be done; the journal stays for the next attempt.
pub fn recover(
    ports: &Ports,
    store: &DomainStore,
    _lock: &DomainLock,
    observer: &dyn Observer,
) -> Result<Recovered> {
    store.remove_temporaries()?;
    let Some((mut journal, progress)) = Journal::left_over(store)? else {
        return Ok(Recovered::Nothing);
    };
    let plan = &progress.plan;
    let performer = Performer {
        ports,
        store,
        observer,
        plan,
        may_still_suspend: true,
        killed_at: progress.written,
        images_are_ours: Cell::new(false),
        is_announced: Cell::new(true),
        has_written: Cell::new(false),
    };
    let what = plan.title_within_domain();
    let no_return = plan.point_of_no_return();
    let (is_final, from) = if plan.is_final_once_started() {
        // What was not let run, since it could not be written down that it is, was being taken back.
        let is_begun = progress.begun >= Some(no_return) && progress.undoing.is_none();
        (is_begun, no_return)
    } else {
        // The commit itself may have been done without its entry: it is not done again.
        (performer.committed()?, no_return + 1)
    };
    if is_final {
        let from = progress.done.max(from);
        let finished = finish(&performer, &mut journal, plan, from);
        return match finished {
            Ok(()) => journal.close().map(|()| Recovered::Finished(what)),
            Err((step, error))
                if plan.operation == Operation::SnapshotDelete
                    && error.kind() != ErrorKind::NeedsRepair
                    && !step.must_be_finished() =>
            {
                // The record says so too, and the user can give the command again.
                if let Err(close) = journal.close() {
                    tracing::warn!("{}", close.report());
                }
                observer.note(&format!("{what} is not finished: {}", error.report()));
                Ok(Recovered::Nothing)
            }
            Err((_, error)) => Err(stuck(&what, "finished", error)),
        };
    }
    let (last, skip) = match (progress.undoing, progress.begun) {
        (Some(undoing), _) => undoing,
        (None, Some(begun)) => (begun, 0),
        (None, None) => return journal.close().map(|()| Recovered::Nothing),
    };
    performer
        .take_back(&mut journal, last, skip)
        .and_then(|()| journal.close())
        .map_err(|error| stuck(&what, "taken back", error))?;
    performer.withdraw_progress();
    if let Some(loss) = performer.destroyed(last).and_then(Memory::loss) {
        observer.note(&format!("{what}: {loss}"));
    }
    Ok(Recovered::TakenBack(what))
}

/// Does the rest; an error comes with its step.
fn finish<'a>(
    performer: &Performer<'_>,
    journal: &mut Journal,
    plan: &'a Plan,
    from: usize,
) -> std::result::Result<(), (&'a Step, Error)> {
    for (at, step) in plan.steps.iter().enumerate().skip(from) {
        fault::at_step(Way::Finish, at, step, Stage::Next);
        performer
            .perform(step, &mut Measured::default())
            .map_err(|error| (step, error))?;
        fault::at_step(Way::Finish, at, step, Stage::Performed);
        journal.moves_on(performer.has_written.get());
        journal.done(at).map_err(|error| (step, error))?;
        fault::at_step(Way::Finish, at, step, Stage::Done);
    }
    performer.withdraw_progress();
    Ok(())
}

fn stuck(what: &str, how: &str, error: Error) -> Error {
    Error::new(
        ErrorKind::NeedsRepair,
        format!("{what} was interrupted and cannot be {how}"),
    )
    .because(error)
    .hint("remove what stands in the way; the next command for this domain goes on with it")
}
