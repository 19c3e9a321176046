//! Named points at which a test kills the process, as a crash would. Only the feature `fault-points` puts them
//! into a program; without it nothing of them is compiled.
//!
//! `XL_EXT_FAULT=NAME[:N]` kills the process by SIGKILL when it passes the point the first or Nth time, and
//! `XL_EXT_FAULT_LOG=FILE` appends the name of each point that is passed, so that a test learns which there are.
//! A name is what is done (`do`, `finish` or `undo`), the number of the step within that, the step's own name, and
//! how far it is: `do-3-save-memory-begun`.

use crate::plan::Step;

/// What the steps are done for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// The operation itself.
    Do,
    /// Recovery of an operation that had committed.
    Finish,
    /// Taking back, after an error or by recovery.
    Undo,
}

/// How far a step is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    /// Nothing of it is in the journal.
    Next,
    /// The journal says that it begins.
    Begun,
    /// It was done, and the journal does not say so yet.
    Performed,
    /// The journal says that it was done.
    Done,
}

/// Step `at` of the way is at this stage.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub(super) const fn at_step(_way: Way, _at: usize, _step: &Step, _stage: Stage) {}

/// The journal as a whole: `opened`, `closing` or `closed`.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub(super) const fn at_journal(_stage: &str) {}

#[cfg(feature = "fault-points")]
pub(super) use compiled_in::{at_journal, at_step};

#[cfg(feature = "fault-points")]
mod compiled_in {
    use super::{Stage, Step, Way};
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};

    pub(crate) fn at_step(way: Way, at: usize, step: &Step, stage: Stage) {
        let way = format!("{way:?}").to_lowercase();
        let stage = format!("{stage:?}").to_lowercase();
        point(&format!("{way}-{at}-{}-{stage}", kind(step)));
    }

    pub(crate) fn at_journal(stage: &str) {
        point(&format!("journal-{stage}"));
    }

    /// As the journal calls it.
    fn kind(step: &Step) -> String {
        let step = serde_json::to_value(step).expect("a step goes into the journal");
        step["do"]
            .as_str()
            .expect("steps are told apart")
            .to_owned()
    }

    fn point(name: &str) {
        if let Some(file) = std::env::var_os("XL_EXT_FAULT_LOG") {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.create(true).append(true).open(file).unwrap();
            writeln!(file, "{name}").unwrap();
        }
        if let Ok(wanted) = std::env::var("XL_EXT_FAULT")
            && is_time(&wanted, name)
        {
            let this = rustix::process::getpid();
            rustix::process::kill_process(this, rustix::process::Signal::KILL).unwrap();
            unreachable!("nobody outlives SIGKILL");
        }
    }

    fn is_time(wanted: &str, name: &str) -> bool {
        static PASSED: AtomicUsize = AtomicUsize::new(0);
        let (wanted, nth) = wanted.split_once(':').unwrap_or((wanted, "1"));
        let nth: usize = nth.parse().expect("XL_EXT_FAULT=NAME[:N]");
        wanted == name && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == nth
    }
}
