//! The calls that an event loop makes.

use super::context::Context;
use super::operation::ResultTo;
use super::{Ctx, argument, guard};
use crate::port::libxl_sys as sys;
use crate::types::{ExtEvent, ffi};
use crate::{Error, ErrorKind, Result};
use libxl_idl_builtin::CValue;
use std::ffi::{c_char, c_int};

/// `libxl_ext_event_fd`
///
/// # Safety
/// As the header says: the ctx is null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_ext_event_fd(ctx: *mut sys::libxl_ctx) -> c_int {
    guard(Ctx(ctx), || Context::of(argument::ctx(ctx)?).event_fd())
}

/// `libxl_ext_event_check`
///
/// # Safety
/// As the header says: the pointers are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_ext_event_check(
    ctx: *mut sys::libxl_ctx,
    event_r: *mut *mut ffi::libxl_ext_event,
) -> c_int {
    guard(Ctx(ctx), || {
        // SAFETY: the caller promises that it is null or valid.
        let event_r = unsafe { argument::out(event_r, "event_r") }?;
        hand_out(Context::of(argument::ctx(ctx)?).check(), event_r)
    })
}

/// `libxl_ext_event_wait`
///
/// # Safety
/// As the header says: the pointers are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_ext_event_wait(
    ctx: *mut sys::libxl_ctx,
    event_r: *mut *mut ffi::libxl_ext_event,
) -> c_int {
    guard(Ctx(ctx), || {
        // SAFETY: the caller promises that it is null or valid.
        let event_r = unsafe { argument::out(event_r, "event_r") }?;
        hand_out(Context::of(argument::ctx(ctx)?).wait()?, event_r)
    })
}

/// Gives an event to C, which frees it by `libxl_ext_event_free`.
fn hand_out(event: Option<ExtEvent>, to: &mut *mut ffi::libxl_ext_event) -> Result<c_int> {
    *to = std::ptr::null_mut();
    let Some(event) = event else {
        return Ok(sys::libxl_error_ERROR_NOT_READY);
    };
    let mut c = ExtEvent::zeroed();
    if let Err(error) = event.write(&mut c) {
        // SAFETY: it was written in part.
        unsafe { ExtEvent::dispose(&mut c) };
        return Err(Error::new(ErrorKind::Toolstack, "describe an event").because(error));
    }
    // SAFETY: memory for one, which is written before it is read.
    *to = unsafe { libc::calloc(1, size_of::<ffi::libxl_ext_event>()).cast() };
    // SAFETY: null, or the memory from above.
    match unsafe { to.as_mut() } {
        Some(event) => *event = c,
        None => std::alloc::handle_alloc_error(std::alloc::Layout::new::<ffi::libxl_ext_event>()),
    }
    Ok(0)
}

/// `libxl_ext_event_free`
///
/// # Safety
/// As the header says: the event is null or came from this library, and is freed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_ext_event_free(
    _ctx: *mut sys::libxl_ctx,
    event: *mut ffi::libxl_ext_event,
) {
    // Events may outlive their ctx.
    guard(Ctx(std::ptr::null_mut()), || {
        // SAFETY: the caller promises that it is null or valid.
        if let Some(content) = unsafe { event.as_mut() } {
            // SAFETY: it was written by `hand_out`.
            unsafe { ExtEvent::dispose(content) };
        }
        // SAFETY: null, or from `hand_out`'s calloc.
        unsafe { libc::free(event.cast()) };
        Ok(0)
    });
}

/// `libxl_ext_ao_abort`
///
/// # Safety
/// As the header says: the pointers are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_ext_ao_abort(
    ctx: *mut sys::libxl_ctx,
    how: *const sys::libxl_asyncop_how,
) -> c_int {
    guard(Ctx(ctx), || {
        // SAFETY: the caller promises that it is null or valid.
        let how = unsafe { how.as_ref() }.map(ResultTo::new);
        Ok(Context::of(argument::ctx(ctx)?).abort(how.as_ref()))
    })
}

/// `libxl_ext_ctx_release`
///
/// # Safety
/// As the header says: the ctx is null or valid, and no other thread is in a call with it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_ext_ctx_release(ctx: *mut sys::libxl_ctx) {
    guard(Ctx(ctx), || {
        Context::release(argument::ctx(ctx)?);
        Ok(0)
    });
}

/// `libxl_ext_set_store`
///
/// # Safety
/// As the header says: the ctx is null or valid, the directory null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_ext_set_store(
    ctx: *mut sys::libxl_ctx,
    directory: *const c_char,
) -> c_int {
    guard(Ctx(ctx), || {
        let ctx = argument::ctx(ctx)?;
        // SAFETY: the caller promises that it is null or a string.
        Context::of(ctx).set_store(unsafe { argument::directory(directory) }?);
        Ok(0)
    })
}
