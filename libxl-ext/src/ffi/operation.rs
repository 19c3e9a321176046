//! What an operation owes its caller: reports of progress, a result, and the log's lines on the way.

use super::Ctx;
use super::header::libxl_ext_asyncprogress_how;
use super::log::Log;
use crate::agent::protocol::{Answer, Level, PullStatus, Report};
use crate::event::Progress;
use crate::port::libxl_sys as sys;
use crate::types::{
    BlockPullStatus, DomainSnapshot, ExtEvent, ExtEventU, ExtEventUBlockPull,
    ExtEventUOperationComplete, ExtEventUOperationProgress, ffi,
};
use libxl_idl_builtin::CValue;
use libxl_idl_builtin::c_function::with_ctx;
use std::ffi::{c_int, c_void};

// SAFETY: the pointers are only given back to the application, on the thread that asks for it.
unsafe impl Send for libxl_ext_asyncprogress_how {}

impl libxl_ext_asyncprogress_how {
    /// Whether both tell the same place.
    fn is(&self, other: &Self) -> bool {
        let is_callback = match (self.callback, other.callback) {
            (Some(a), Some(b)) => std::ptr::fn_addr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        is_callback && self.for_event == other.for_event && self.for_callback == other.for_callback
    }
}

/// To whom an asynchronous operation's result goes: what a `libxl_asyncop_how` says.
#[derive(Clone, Copy, Debug)]
pub(super) enum ResultTo {
    Callback(
        unsafe extern "C" fn(*mut sys::libxl_ctx, c_int, *mut c_void),
        *mut c_void,
    ),
    Event(sys::libxl_ev_user),
    /// The end of a pull goes to whoever wanted to hear of it.
    BlockPull(libxl_ext_asyncprogress_how),
}

// SAFETY: as for `libxl_ext_asyncprogress_how`.
unsafe impl Send for ResultTo {}

impl ResultTo {
    pub(super) fn new(how: &sys::libxl_asyncop_how) -> Self {
        match how.callback {
            // SAFETY: with a callback the application has set this member of the union; any bytes are
            // a pointer that is not followed here.
            Some(callback) => Self::Callback(callback, unsafe { how.u.for_callback }),
            // SAFETY: without, it has set this one; any bytes are a number.
            None => Self::Event(unsafe { how.u.for_event }),
        }
    }

    /// Whether both came from the same `how`, as `libxl_ao_abort` compares them.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Callback(a, x), Self::Callback(b, y)) => std::ptr::fn_addr_eq(*a, *b) && x == y,
            (Self::Event(a), Self::Event(b)) => a == b,
            (Self::BlockPull(a), Self::BlockPull(b)) => a.is(b),
            _ => false,
        }
    }
}

/// What of the caller's is filled in when the operation has succeeded.
#[derive(Clone, Copy)]
pub(super) enum Fill {
    /// The snapshot that was created.
    Snapshot(*mut ffi::libxl_domain_snapshot),
    /// The number of the domain that was started.
    Domid(*mut u32),
    /// Where a pull goes on.
    Cursor(*mut u64),
}

// SAFETY: the caller has promised to leave it alone until the operation completes, and it is filled on
// the thread to which the completion is delivered.
unsafe impl Send for Fill {}

impl Fill {
    fn with(self, ctx: Ctx, answer: &Answer) {
        match (self, answer) {
            (Self::Snapshot(place), Answer::Created(snapshot)) => {
                Self::with_snapshot(place, ctx, snapshot);
            }
            (Self::Domid(place), Answer::Started(domid)) => {
                // SAFETY: the caller keeps it valid until the operation completes.
                if let Some(place) = unsafe { place.as_mut() } {
                    *place = *domid;
                }
            }
            (Self::Cursor(place), Answer::Pull(Some(at))) => {
                // SAFETY: as above.
                if let Some(place) = unsafe { place.as_mut() } {
                    *place = at.cursor;
                }
            }
            _ => {}
        }
    }

    fn with_snapshot(place: *mut ffi::libxl_domain_snapshot, ctx: Ctx, snapshot: &DomainSnapshot) {
        let mut filled = DomainSnapshot::zeroed();
        // SAFETY: the ctx is valid while a call runs.
        let written = unsafe { with_ctx(ctx.0.cast(), || snapshot.write(&mut filled)) };
        // SAFETY: the caller keeps the struct valid until the operation completes.
        let Some(place) = (unsafe { place.as_mut() }) else {
            return;
        };
        let mut old = match written {
            Ok(()) => std::mem::replace(place, filled),
            Err(error) => {
                Log::of(ctx).write(
                    Level::Warn,
                    &format!("the snapshot was created, but cannot be described: {error}"),
                );
                filled
            }
        };
        // SAFETY: either the caller's former content, or what was written only in part.
        unsafe { DomainSnapshot::dispose(&mut old) };
    }
}

/// How an operation ended.
#[derive(Debug, PartialEq)]
pub(super) struct Ended {
    /// 0 or an `ERROR_*`.
    pub(super) code: c_int,
    /// What it brought.
    pub(super) answer: Option<Answer>,
}

/// Something that is due to be delivered to the application.
pub(super) struct Due {
    /// The number of the operation that it is about.
    pub(super) operation: u64,
    pub(super) what: What,
}

pub(super) enum What {
    /// A line for its log.
    Log(Level, String),
    /// Progress.
    Progress {
        to: libxl_ext_asyncprogress_how,
        step: String,
        progress: Progress,
    },
    /// A result, and what to fill before it.
    Result {
        to: ResultTo,
        ended: Ended,
        fill: Option<Fill>,
    },
}

impl What {
    /// Whether delivering it means to return an event.
    pub(super) fn is_event(&self) -> bool {
        match self {
            Self::Log(..) => false,
            Self::Progress { to, .. } => to.callback.is_none(),
            Self::Result { to, .. } => match to {
                ResultTo::Event(_) => true,
                ResultTo::Callback(..) => false,
                ResultTo::BlockPull(how) => how.callback.is_none(),
            },
        }
    }

    /// Delivers it by a call, or returns the event to be delivered. No lock may be held.
    pub(super) fn deliver(self, ctx: Ctx) -> Option<ExtEvent> {
        match self {
            Self::Log(level, text) => {
                Log::of(ctx).write(level, &text);
                None
            }
            Self::Progress { to, step, progress } => {
                let event = progress_event(&to, step, progress);
                tell(ctx, &to, event)
            }
            Self::Result { to, ended, fill } => {
                ended.fill(ctx, fill);
                match to {
                    ResultTo::Callback(callback, for_callback) => {
                        // SAFETY: the application has given this callback for this argument.
                        unsafe { callback(ctx.0, ended.code, for_callback) };
                        None
                    }
                    ResultTo::Event(for_user) => Some(ExtEvent {
                        for_user,
                        u: ExtEventU::OperationComplete(ExtEventUOperationComplete {
                            rc: ended.code,
                        }),
                    }),
                    ResultTo::BlockPull(how) => tell(ctx, &how, pull_event(&how, ended)),
                }
            }
        }
    }
}

/// Gives an event to a callback, or returns it to be delivered.
fn tell(ctx: Ctx, to: &libxl_ext_asyncprogress_how, event: ExtEvent) -> Option<ExtEvent> {
    let Some(callback) = to.callback else {
        return Some(event);
    };
    let mut c = ExtEvent::zeroed();
    if event.write(&mut c).is_ok() {
        // SAFETY: the application has given this callback for this argument.
        unsafe { callback(ctx.0, &raw const c, to.for_callback) };
    }
    // SAFETY: it was written above, wholly or in part.
    unsafe { ExtEvent::dispose(&mut c) };
    None
}

/// An agent that could not find out how a pull ended has said why in the log.
fn pull_event(to: &libxl_ext_asyncprogress_how, ended: Ended) -> ExtEvent {
    let told = match ended.answer {
        Some(Answer::PullEnded(told)) => Some(told),
        _ => None,
    };
    let status = match told.as_ref().map(|told| told.status) {
        Some(PullStatus::Completed) => BlockPullStatus::Completed,
        Some(PullStatus::Aborted) => BlockPullStatus::Aborted,
        Some(PullStatus::Failed) | None => BlockPullStatus::Failed,
    };
    let (domain, path, reason) = match told {
        Some(told) => (Some(told.domain), Some(told.path), told.reason),
        None => (None, None, Some("nobody waits for its end any more".into())),
    };
    ExtEvent {
        for_user: to.for_event,
        u: ExtEventU::BlockPull(ExtEventUBlockPull {
            domain,
            path,
            status: Some(status),
            reason,
        }),
    }
}

fn progress_event(to: &libxl_ext_asyncprogress_how, step: String, progress: Progress) -> ExtEvent {
    ExtEvent {
        for_user: to.for_event,
        u: ExtEventU::OperationProgress(ExtEventUOperationProgress {
            step: Some(step),
            done: progress.done,
            total: progress.total,
            bytes: progress.bytes,
        }),
    }
}

impl Ended {
    /// The end of an agent that did not say how it ended.
    pub(super) fn unexplained() -> (What, Self) {
        let text = "the process of the operation ended in the middle of it; \
                    the next call for this domain takes back what was begun";
        (
            What::Log(Level::Error, text.into()),
            Self {
                code: sys::libxl_error_ERROR_FAIL,
                answer: None,
            },
        )
    }

    /// Fills in what is the caller's, if the operation brought what belongs there.
    pub(super) fn fill(&self, ctx: Ctx, place: Option<Fill>) {
        if let (Some(place), Some(answer)) = (place, &self.answer) {
            place.with(ctx, answer);
        }
    }
}

/// What a report means to the application.
pub(super) enum Meaning {
    /// Something to deliver.
    Due(What),
    /// Something that nobody wants to hear.
    Nothing,
    /// The end, and a line for the log.
    End(Option<What>, Ended),
}

/// Understands a report.
pub(super) fn meaning(report: Report, progress_to: Option<libxl_ext_asyncprogress_how>) -> Meaning {
    match report {
        Report::Log(level, text) => Meaning::Due(What::Log(level, text)),
        Report::Progress(step, progress) => match progress_to {
            Some(to) => Meaning::Due(What::Progress { to, step, progress }),
            None => Meaning::Nothing,
        },
        Report::Done(answer) => Meaning::End(
            None,
            Ended {
                code: 0,
                answer: Some(answer),
            },
        ),
        Report::Failed(code, text) => Meaning::End(
            Some(What::Log(Level::Error, text)),
            Ended {
                // An agent that failed with success would be believed.
                code: if code < 0 {
                    code
                } else {
                    sys::libxl_error_ERROR_FAIL
                },
                answer: None,
            },
        ),
    }
}
