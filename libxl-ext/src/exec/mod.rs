//! Carrying out a plan: journal the intent, do the steps, take them back on an error, and after a crash
//! finish what had committed and take back what had not.

mod commit;
mod disks;
mod engine;
mod fault;
mod journal;
mod open_twice;
mod perform;
mod pull;
mod recover;
mod release;
mod restore;
mod stamps;
mod suspension;
#[cfg(test)]
pub(crate) mod tests;

pub use engine::{Outcome, run};
#[cfg(fuzzing)]
pub(crate) use journal::read_back;
pub(crate) use journal::{domain_in_progress, in_progress};
pub use recover::{Recovered, recover};
pub(crate) use suspension::Suspension;
