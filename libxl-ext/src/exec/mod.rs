//! Carrying out a plan: journal the intent, do the steps, take them back on an error, and after a crash
//! finish what had committed and take back what had not.

mod disks;
mod engine;
mod fault;
mod journal;
mod open_twice;
mod perform;
mod pull;
mod recover;
#[cfg(test)]
pub(crate) mod tests;

pub use engine::{Outcome, run};
pub(crate) use journal::in_progress;
#[cfg(fuzzing)]
pub(crate) use journal::read_back;
pub use recover::{Recovered, recover};
