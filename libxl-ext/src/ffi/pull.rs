//! The calls that pull, after libvirt's proposal of block pull, version 4.

use super::context::Context;
use super::header::libxl_ext_asyncprogress_how;
use super::operation::{Fill, ResultTo};
use super::snapshot::begin;
use super::{Ctx, argument, guard};
use crate::agent::protocol::{Answer, Call, PullAnswer};
use crate::error::{Error, ErrorKind, Result};
use crate::port::libxl_sys as sys;
use crate::types::ffi::{self, LIBXL_DOMAIN_BLOCK_PULL_CONTINUOUS};
use std::ffi::{c_char, c_int, c_uint};

/// Bytes of the disk that one increment is. V4 leaves it to the implementation.
const INCREMENT: u64 = 16 << 20;

/// `libxl_domain_block_pull`
///
/// # Safety
/// As the header says: the pointers are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_domain_block_pull(
    ctx: *mut sys::libxl_ctx,
    domname: *const c_char,
    path: *const c_char,
    cursor: *mut u64,
    flags: c_uint,
    ao_how: *const sys::libxl_asyncop_how,
    aop_progress_how: *const libxl_ext_asyncprogress_how,
) -> c_int {
    guard(Ctx(ctx), || {
        let ctx = argument::ctx(ctx)?;
        let continuous = LIBXL_DOMAIN_BLOCK_PULL_CONTINUOUS;
        argument::flags(flags, continuous, "libxl_domain_block_pull")?;
        // SAFETY: the caller promises null or strings.
        let (domain, disk) = unsafe { argument::named(domname, path, "the disk") }?;
        let (increment, fill) = if flags & continuous != 0 {
            (None, None)
        } else {
            // SAFETY: the caller promises null or a valid pointer.
            let cursor = unsafe { argument::out(cursor, "the cursor") }?;
            (Some((INCREMENT, *cursor)), Some(Fill::Cursor(cursor)))
        };
        let call = Call::Pull { disk, increment };
        // SAFETY: the caller promises null or valid pointers.
        unsafe { begin(ctx, domain, call, ao_how, aop_progress_how, fill) }
    })
}

/// `libxl_domain_block_pull_abort`
///
/// # Safety
/// As the header says: the pointers are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_domain_block_pull_abort(
    ctx: *mut sys::libxl_ctx,
    domname: *const c_char,
    path: *const c_char,
    flags: c_uint,
) -> c_int {
    guard(Ctx(ctx), || {
        let ctx = argument::ctx(ctx)?;
        argument::flags(flags, 0, "libxl_domain_block_pull_abort")?;
        // SAFETY: the caller promises null or strings.
        let (domain, disk) = unsafe { argument::named(domname, path, "the disk") }?;
        let ended = Context::of(ctx).call(domain, Call::PullAbort { disk }, None)?;
        Ok(ended.code)
    })
}

/// `libxl_domain_get_block_pull_info`
///
/// # Safety
/// As the header says: the pointers are null or valid, the struct was initialised.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_domain_get_block_pull_info(
    ctx: *mut sys::libxl_ctx,
    domname: *const c_char,
    path: *const c_char,
    info: *mut ffi::libxl_domain_block_pull_info,
    flags: c_uint,
) -> c_int {
    guard(Ctx(ctx), || {
        let ctx = argument::ctx(ctx)?;
        argument::flags(flags, 0, "libxl_domain_get_block_pull_info")?;
        // SAFETY: the caller promises null or strings.
        let (domain, disk) = unsafe { argument::named(domname, path, "the disk") }?;
        // SAFETY: the caller promises null or a valid struct.
        let info = unsafe { argument::out(info, "info") }?;
        let shown = disk.clone();
        let ended = Context::of(ctx).call(domain, Call::PullInfo { disk }, None)?;
        match ended.answer {
            Some(Answer::Pull(Some(PullAnswer { cur, end, .. }))) => {
                (info.cur, info.end) = (cur, end);
                Ok(0)
            }
            Some(_) => Err(Error::new(
                ErrorKind::NoSuchSnapshot,
                format!("nothing was pulled into {shown}"),
            )),
            None => Ok(ended.code),
        }
    })
}

/// `libxl_ext_evenable_block_pull`
///
/// # Safety
/// As the header says: the pointers are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_ext_evenable_block_pull(
    ctx: *mut sys::libxl_ctx,
    domname: *const c_char,
    path: *const c_char,
    flags: c_uint,
    how: *const libxl_ext_asyncprogress_how,
) -> c_int {
    guard(Ctx(ctx), || {
        let ctx = argument::ctx(ctx)?;
        argument::flags(flags, 0, "libxl_ext_evenable_block_pull")?;
        // SAFETY: the caller promises null or strings.
        let (domain, disk) = unsafe { argument::named(domname, path, "the disk") }?;
        // SAFETY: the caller promises null or a valid struct.
        let to = ResultTo::BlockPull(unsafe { asked(how) }?);
        Context::of(ctx).start(domain, Call::PullWatch { disk }, to, None, None)?;
        Ok(0)
    })
}

/// `libxl_ext_evdisable_block_pull`
///
/// # Safety
/// As the header says: the pointers are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_ext_evdisable_block_pull(
    ctx: *mut sys::libxl_ctx,
    how: *const libxl_ext_asyncprogress_how,
) -> c_int {
    guard(Ctx(ctx), || {
        let ctx = argument::ctx(ctx)?;
        // SAFETY: the caller promises null or a valid struct.
        let to = ResultTo::BlockPull(unsafe { asked(how) }?);
        Ok(Context::of(ctx).disable(&to))
    })
}

/// Who is to hear of the end of a pull.
///
/// # Safety
/// The pointer is null or valid.
unsafe fn asked(how: *const libxl_ext_asyncprogress_how) -> Result<libxl_ext_asyncprogress_how> {
    // SAFETY: as the caller promises.
    unsafe { how.as_ref() }.copied().ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidRequest,
            "nobody is said to tell: how is NULL",
        )
    })
}
