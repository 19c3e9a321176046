//! Writing to a file system that may be full. Each call of ours that takes room passes here, so that tests find out
//! what happens when it is the one for which there is none.

use std::fs::File;
use std::io::{self, Write as _};

/// Writes all of `bytes`; a part of them is written when there is no room for more.
///
/// # Errors
/// What the file system says.
pub(crate) fn write_all(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    if let Err(full) = needed() {
        file.write_all(&bytes[..bytes.len() / 2])?;
        return Err(full);
    }
    file.write_all(bytes)
}

/// A name is about to be made, for which a directory may have to grow.
///
/// # Errors
/// Only in tests.
pub(crate) fn needed() -> io::Result<()> {
    let room = Ok(());
    #[cfg(test)]
    let room = room.and_then(|()| tests::count());
    room
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;
    use std::io;

    /// Where the room ends.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct End {
        /// So many calls succeed before.
        pub(crate) after: usize,
        /// Whether all that follow fail too, and not that one alone.
        pub(crate) for_good: bool,
    }

    thread_local! {
        static END: Cell<Option<End>> = const { Cell::new(None) };
        static CALLS: Cell<usize> = const { Cell::new(0) };
    }

    /// From now on this thread has no more room than that.
    pub(crate) fn ends(end: End) {
        CALLS.set(0);
        END.set(Some(end));
    }

    /// There is room again. Returns whether some call had none.
    pub(crate) fn is_back() -> bool {
        END.take().is_some_and(|end| CALLS.get() > end.after)
    }

    pub(super) fn count() -> io::Result<()> {
        let Some(end) = END.get() else { return Ok(()) };
        let call = CALLS.replace(CALLS.get() + 1);
        if call == end.after || end.for_good && call > end.after {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        Ok(())
    }
}
