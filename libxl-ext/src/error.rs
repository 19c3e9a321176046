//! One error type: a stable kind that callers match on, a context that says what failed on what, an
//! optional way out for the user, and the cause.
//!
//! `Display` prints the context alone and never repeats the cause; [`Error::report`] prints the whole
//! chain. [`ErrorKind::libxl_code`] is the one place where a kind becomes libxl's `ERROR_*`.

use crate::port::libxl_sys as sys;
use std::error::Error as StdError;
use std::fmt::Write as _;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it was. Callers decide on this, never on the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A request that can never succeed as it was given (a bad name, contradictory flags).
    InvalidRequest,
    /// No domain and no stored snapshots under the given name or domid.
    NoSuchDomain,
    /// The domain has no snapshot of the given name.
    NoSuchSnapshot,
    /// The name of a new snapshot is taken.
    SnapshotExists,
    /// The domain is in a state in which the operation is impossible (domain 0, dying, crashed), or what is
    /// replicated is (running, failed over).
    DomainState,
    /// The domain did not answer a suspend request in time.
    GuestTimeout,
    /// The operation is not available for this disk, guest type or configuration.
    Unsupported,
    /// The file system has no room for what is to be written.
    NoSpace,
    /// Another operation holds the lock of the domain, or another call has the replication states.
    Locked,
    /// The domain is no longer what the plan was made for: somebody else changed it.
    Stale,
    /// A file of ours is damaged, or an image is not what its record says.
    Corrupt,
    /// A file of ours was written by a newer version of this project.
    NewerVersion,
    /// The operating system refused a file operation.
    Io,
    /// libxl, QEMU, xenstored, qemu-img or xl reported a failure.
    Toolstack,
    /// An earlier operation could not be undone; a person has to act.
    NeedsRepair,
    /// The caller asked for the operation to stop.
    Aborted,
}

impl ErrorKind {
    /// The value of libxl's `libxl_error` enumeration that C callers get for this kind.
    pub const fn libxl_code(self) -> i32 {
        match self {
            Self::InvalidRequest | Self::SnapshotExists => sys::libxl_error_ERROR_INVAL,
            Self::NoSuchDomain => sys::libxl_error_ERROR_DOMAIN_NOTFOUND,
            Self::NoSuchSnapshot => sys::libxl_error_ERROR_NOTFOUND,
            Self::DomainState | Self::Stale => sys::libxl_error_ERROR_NOT_READY,
            Self::GuestTimeout => sys::libxl_error_ERROR_GUEST_TIMEDOUT,
            Self::Unsupported => sys::libxl_error_ERROR_NI,
            Self::Locked => sys::libxl_error_ERROR_LOCK_FAIL,
            Self::NewerVersion => sys::libxl_error_ERROR_VERSION,
            Self::NeedsRepair => sys::libxl_error_ERROR_BADFAIL,
            Self::Aborted => sys::libxl_error_ERROR_ABORTED,
            Self::NoSpace | Self::Corrupt | Self::Io | Self::Toolstack => {
                sys::libxl_error_ERROR_FAIL
            }
        }
    }
}

/// A failure: kind, context, way out, cause.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    kind: ErrorKind,
    context: String,
    hint: Option<String>,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `context` says what failed and on what.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            hint: None,
            source: None,
        }
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// A failed file operation. Lack of room becomes [`ErrorKind::NoSpace`]; an error of ours, which came through
    /// [`std::io::Read`], keeps its kind.
    pub fn io(context: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        let source = match source.into().downcast::<Self>() {
            Ok(ours) => return ours.while_doing(context),
            Err(source) => source,
        };
        let full = matches!(
            source.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        );
        let kind = if full {
            ErrorKind::NoSpace
        } else {
            ErrorKind::Io
        };
        Self::new(kind, context).because(source)
    }

    /// The kind, for callers that decide on it.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the user can do, if anything is known.
    pub fn way_out(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The cause at the bottom, or the context where there is none: what a place has room for that is told for what else.
    pub fn root(&self) -> String {
        let mut cause: &dyn StdError = self;
        while let Some(below) = cause.source() {
            cause = below;
        }
        cause.to_string()
    }

    /// The same failure seen from one level up: `context` goes in front, the kind is kept.
    #[must_use]
    pub fn while_doing(self, context: impl Into<String>) -> Self {
        Self {
            kind: self.kind,
            context: context.into(),
            hint: None,
            source: Some(self.into()),
        }
    }

    /// An error of the report that another process made of its own.
    pub fn reported(kind: ErrorKind, report: &str) -> Self {
        match report.split_once("\n  ") {
            Some((context, hint)) => Self::new(kind, context).hint(hint),
            None => Self::new(kind, report),
        }
    }

    /// The context, every cause below it and every way out, as the command line prints them.
    pub fn report(&self) -> String {
        let mut text = self.context.clone();
        let mut hints: Vec<&str> = self.way_out().into_iter().collect();
        let mut cause = self.source();
        while let Some(error) = cause {
            let _ = write!(text, ": {error}");
            if let Some(hint) = error.downcast_ref::<Self>().and_then(Self::way_out) {
                hints.push(hint);
            }
            cause = error.source();
        }
        for hint in hints {
            let _ = write!(text, "\n  {hint}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_names_every_level_once_and_keeps_the_kind() {
        let error = Error::io("write /x/memory", std::io::Error::from_raw_os_error(28))
            .hint("free some room under /x")
            .while_doing("snapshot 'a' of domain 'g1' was not created");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(
            error.report(),
            "snapshot 'a' of domain 'g1' was not created: write /x/memory: \
             No space left on device (os error 28)\n  free some room under /x"
        );
        assert_eq!(error.root(), "No space left on device (os error 28)");
        assert_eq!(Error::new(ErrorKind::Io, "alone").root(), "alone");
    }

    #[test]
    fn every_kind_has_a_negative_libxl_code() {
        for kind in [
            ErrorKind::NoSpace,
            ErrorKind::Locked,
            ErrorKind::NeedsRepair,
        ] {
            assert!(kind.libxl_code() < 0);
        }
    }
}
