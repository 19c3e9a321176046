//! How an operation tells its caller what it is doing, and how the caller tells it to stop.

use serde::{Deserialize, Serialize};

/// Progress of a part of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Units done: bytes where `bytes` is set, steps otherwise.
    pub done: u64,
    /// Units in all; 0 where it is not known.
    pub total: u64,
    /// Whether the units are bytes.
    pub bytes: bool,
}

/// Whoever watches an operation. Every call comes on the thread that runs the operation, but
/// [`Observer::progress`] and [`Observer::wants_abort`] also come from the one that copies memory.
pub trait Observer: Sync {
    /// A step begins. `what` is a sentence for a person.
    fn step(&self, what: &str);

    /// A step goes on.
    fn progress(&self, progress: Progress);

    /// Something that the user should know and that is no failure.
    fn note(&self, text: &str);

    /// Whether the caller wants the operation to stop. It is asked where stopping leaves everything
    /// as it was.
    fn wants_abort(&self) -> bool;
}

/// An observer that wants everything to stop.
#[cfg(test)]
pub(crate) struct Impatient;

#[cfg(test)]
impl Observer for Impatient {
    fn step(&self, _what: &str) {}
    fn progress(&self, _progress: Progress) {}
    fn note(&self, _text: &str) {}
    fn wants_abort(&self) -> bool {
        true
    }
}

/// An observer that looks for nothing but whether it was told to stop.
#[cfg(test)]
#[derive(Clone, Default)]
pub(crate) struct Stop(pub(crate) std::sync::Arc<std::sync::atomic::AtomicBool>);

#[cfg(test)]
impl Observer for Stop {
    fn step(&self, _what: &str) {}
    fn progress(&self, _progress: Progress) {}
    fn note(&self, _text: &str) {}
    fn wants_abort(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// An observer that looks away.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn step(&self, _what: &str) {}
    fn progress(&self, _progress: Progress) {}
    fn note(&self, _text: &str) {}
    fn wants_abort(&self) -> bool {
        false
    }
}
