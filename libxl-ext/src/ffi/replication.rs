//! The calls on replication, after QEMU's `replication.h`, and an application's operations as
//! [`ReplicationOps`].

use super::context::Context;
use super::header::{libxl_replication_ops, libxl_replication_state};
use super::log::Log;
use super::{Ctx, argument, guard};
use crate::error::{Error, ErrorKind, Result};
use crate::port::libxl_sys as sys;
use crate::replication::{Mode, Registry, ReplicationOps, StateId};
use crate::types::ffi::libxl_replication_mode;
use std::error::Error as StdError;
use std::ffi::{c_int, c_void};

/// What a function of the application's returned instead of 0.
#[derive(Debug, thiserror::Error)]
enum Returned {
    /// Its caller gets it as it is.
    #[error("the application's {function} returned {code}")]
    Error { function: &'static str, code: c_int },
    /// Its caller could not tell it from a success of another call.
    #[error("the application's {function} returned {code}, which is neither 0 nor an ERROR_*")]
    Nonsense { function: &'static str, code: c_int },
}

impl Returned {
    fn check(function: &'static str, code: c_int) -> Result<()> {
        let returned = match code {
            0 => return Ok(()),
            ..0 => Self::Error { function, code },
            1.. => Self::Nonsense { function, code },
        };
        Err(Error::new(
            ErrorKind::Toolstack,
            "an operation of the application failed",
        )
        .because(returned))
    }

    /// The application's own code, if that is where an error comes from.
    fn code_of(error: &Error) -> Option<c_int> {
        let first: &(dyn StdError + 'static) = error;
        std::iter::successors(Some(first), |error| (*error).source()).find_map(|error| match error
            .downcast_ref(
        )? {
            Self::Error { code, .. } => Some(*code),
            Self::Nonsense { .. } => None,
        })
    }
}

/// The application's functions for one state.
struct Functions {
    ctx: Ctx,
    opaque: *mut c_void,
    start: unsafe extern "C" fn(*mut sys::libxl_ctx, *mut c_void, libxl_replication_mode) -> c_int,
    stop: unsafe extern "C" fn(*mut sys::libxl_ctx, *mut c_void, bool) -> c_int,
    checkpoint: unsafe extern "C" fn(*mut sys::libxl_ctx, *mut c_void) -> c_int,
    get_error: unsafe extern "C" fn(*mut sys::libxl_ctx, *mut c_void) -> c_int,
}

// SAFETY: the opaque is only given back to the application, on the thread with which it calls.
unsafe impl Send for Functions {}

impl Functions {
    fn new(ctx: Ctx, ops: &libxl_replication_ops, opaque: *mut c_void) -> Result<Self> {
        let missing = |member| {
            let why = format!("the member {member} of the replication's ops is NULL");
            Error::new(ErrorKind::InvalidRequest, why)
                .hint("each operation has to be there; one that has nothing to do returns 0")
        };
        Ok(Self {
            ctx,
            opaque,
            start: ops.start.ok_or_else(|| missing("start"))?,
            stop: ops.stop.ok_or_else(|| missing("stop"))?,
            checkpoint: ops.checkpoint.ok_or_else(|| missing("checkpoint"))?,
            get_error: ops.get_error.ok_or_else(|| missing("get_error"))?,
        })
    }
}

impl ReplicationOps for Functions {
    fn start(&mut self, mode: Mode) -> Result<()> {
        let mode = mode.as_raw().cast_unsigned();
        // SAFETY: the application keeps the opaque valid until the state is removed, and the ctx is valid
        // while a call runs.
        Returned::check("start", unsafe {
            (self.start)(self.ctx.0, self.opaque, mode)
        })
    }

    fn checkpoint(&mut self) -> Result<()> {
        // SAFETY: as above.
        Returned::check("checkpoint", unsafe {
            (self.checkpoint)(self.ctx.0, self.opaque)
        })
    }

    fn error(&mut self) -> Result<()> {
        // SAFETY: as above.
        Returned::check("get_error", unsafe {
            (self.get_error)(self.ctx.0, self.opaque)
        })
    }

    fn stop(&mut self, failover: bool) -> Result<()> {
        // SAFETY: as above.
        Returned::check("stop", unsafe {
            (self.stop)(self.ctx.0, self.opaque, failover)
        })
    }
}

/// Makes a call to all states of a ctx. An application's own code is returned as it is, which an
/// [`ErrorKind`] could not carry.
fn to_all(ctx: *mut sys::libxl_ctx, call: impl FnOnce(&Registry) -> Result<()>) -> c_int {
    guard(Ctx(ctx), || {
        let ctx = argument::ctx(ctx)?;
        let Err(error) = call(Context::of(ctx).replication()) else {
            return Ok(0);
        };
        let Some(code) = Returned::code_of(&error) else {
            return Err(error);
        };
        Log::of(ctx).error(&error);
        Ok(code)
    })
}

/// The handle of a state. It is a number that C takes for a pointer: nobody follows it, so one that is not known,
/// or not any more, does no harm.
fn handle(id: StateId) -> *mut libxl_replication_state {
    std::ptr::without_provenance_mut(id.number())
}

/// `libxl_replication_new`
///
/// # Safety
/// As the header says: the pointers are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_replication_new(
    ctx: *mut sys::libxl_ctx,
    ops: *const libxl_replication_ops,
    opaque: *mut c_void,
    rs_out: *mut *mut libxl_replication_state,
) -> c_int {
    guard(Ctx(ctx), || {
        // SAFETY: the caller promises that it is null or valid.
        let rs_out = unsafe { argument::out(rs_out, "rs_out") }?;
        *rs_out = std::ptr::null_mut();
        let ctx = argument::ctx(ctx)?;
        // SAFETY: as above.
        let ops = unsafe { ops.as_ref() }.ok_or_else(|| {
            Error::new(ErrorKind::InvalidRequest, "the replication's ops are NULL")
        })?;
        let functions = Functions::new(ctx, ops, opaque)?;
        let id = StateId::unused();
        // C names no states; what it knows one by is the handle.
        let name = id.to_string();
        Context::of(ctx)
            .replication()
            .insert(id, name, Box::new(functions))?;
        *rs_out = handle(id);
        Ok(0)
    })
}

/// `libxl_replication_remove`
///
/// # Safety
/// As the header says: the ctx is null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_replication_remove(
    ctx: *mut sys::libxl_ctx,
    rs: *mut libxl_replication_state,
) -> c_int {
    guard(Ctx(ctx), || {
        let ctx = argument::ctx(ctx)?;
        let id = StateId::of_number(rs.addr()).ok_or_else(|| {
            Error::new(ErrorKind::InvalidRequest, "the replication state is NULL")
        })?;
        Context::of(ctx).replication().remove(id)?;
        Ok(0)
    })
}

/// `libxl_replication_start_all`
///
/// # Safety
/// As the header says: the ctx is null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_replication_start_all(
    ctx: *mut sys::libxl_ctx,
    mode: libxl_replication_mode,
) -> c_int {
    to_all(ctx, |registry| {
        let mode = Mode::try_from(mode.cast_signed()).map_err(|error| {
            Error::new(
                ErrorKind::InvalidRequest,
                "the replication has no such mode",
            )
            .because(error)
        })?;
        registry.start_all(mode)
    })
}

/// `libxl_replication_do_checkpoint_all`
///
/// # Safety
/// As the header says: the ctx is null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_replication_do_checkpoint_all(ctx: *mut sys::libxl_ctx) -> c_int {
    to_all(ctx, Registry::checkpoint_all)
}

/// `libxl_replication_get_error_all`
///
/// # Safety
/// As the header says: the ctx is null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_replication_get_error_all(ctx: *mut sys::libxl_ctx) -> c_int {
    to_all(ctx, Registry::error_all)
}

/// `libxl_replication_stop_all`
///
/// # Safety
/// As the header says: the ctx is null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_replication_stop_all(
    ctx: *mut sys::libxl_ctx,
    failover: bool,
) -> c_int {
    to_all(ctx, |registry| registry.stop_all(failover))
}
