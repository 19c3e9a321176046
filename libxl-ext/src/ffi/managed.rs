//! The calls on saved domains, after libvirt's managed save.

use super::context::Context;
use super::header::libxl_ext_asyncprogress_how;
use super::operation::Fill;
use super::snapshot::begin;
use super::{Ctx, argument, guard};
use crate::agent::protocol::{Answer, Call};
use crate::error::Result;
use crate::port::libxl_sys as sys;
use std::ffi::{c_char, c_int, c_uint};

/// `libxl_domain_managed_save`
///
/// # Safety
/// As the header says: the pointers are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_domain_managed_save(
    ctx: *mut sys::libxl_ctx,
    domname: *const c_char,
    flags: c_uint,
    ao_how: *const sys::libxl_asyncop_how,
    aop_progress_how: *const libxl_ext_asyncprogress_how,
) -> c_int {
    guard(Ctx(ctx), || {
        let ctx = argument::ctx(ctx)?;
        // SAFETY: the caller promises null or a string.
        let domain = unsafe { named(domname, flags, "libxl_domain_managed_save") }?;
        // SAFETY: the caller promises null or valid pointers.
        unsafe {
            begin(
                ctx,
                domain,
                Call::ManagedSave,
                ao_how,
                aop_progress_how,
                None,
            )
        }
    })
}

/// `libxl_domain_has_managed_save_image`
///
/// # Safety
/// As the header says: the pointers are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_domain_has_managed_save_image(
    ctx: *mut sys::libxl_ctx,
    domname: *const c_char,
    flags: c_uint,
) -> c_int {
    guard(Ctx(ctx), || {
        let ctx = argument::ctx(ctx)?;
        // SAFETY: the caller promises null or a string.
        let domain = unsafe { named(domname, flags, "libxl_domain_has_managed_save_image") }?;
        let ended = Context::of(ctx).call(domain, Call::HasManagedSaveImage, None)?;
        Ok(match ended.answer {
            Some(Answer::IsSaved(true)) => 1,
            _ => ended.code,
        })
    })
}

/// `libxl_domain_managed_save_remove`
///
/// # Safety
/// As the header says: the pointers are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_domain_managed_save_remove(
    ctx: *mut sys::libxl_ctx,
    domname: *const c_char,
    flags: c_uint,
    ao_how: *const sys::libxl_asyncop_how,
    aop_progress_how: *const libxl_ext_asyncprogress_how,
) -> c_int {
    guard(Ctx(ctx), || {
        let ctx = argument::ctx(ctx)?;
        // SAFETY: the caller promises null or a string.
        let domain = unsafe { named(domname, flags, "libxl_domain_managed_save_remove") }?;
        let call = Call::ManagedSaveRemove;
        // SAFETY: the caller promises null or valid pointers.
        unsafe { begin(ctx, domain, call, ao_how, aop_progress_how, None) }
    })
}

/// `libxl_domain_managed_start`
///
/// # Safety
/// As the header says: the pointers are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_domain_managed_start(
    ctx: *mut sys::libxl_ctx,
    domname: *const c_char,
    domid_r: *mut u32,
    flags: c_uint,
    ao_how: *const sys::libxl_asyncop_how,
    aop_progress_how: *const libxl_ext_asyncprogress_how,
) -> c_int {
    guard(Ctx(ctx), || {
        let ctx = argument::ctx(ctx)?;
        // SAFETY: the caller promises null or a string.
        let domain = unsafe { named(domname, flags, "libxl_domain_managed_start") }?;
        // SAFETY: the caller promises null or a valid pointer.
        let domid = unsafe { argument::out(domid_r, "domid_r") }?;
        let fill = Some(Fill::Domid(domid));
        // SAFETY: the caller promises null or valid pointers.
        unsafe {
            begin(
                ctx,
                domain,
                Call::ManagedStart,
                ao_how,
                aop_progress_how,
                fill,
            )
        }
    })
}

/// The name of a domain; there are no flags yet.
///
/// # Safety
/// The pointer is null or points to a string.
unsafe fn named(domain: *const c_char, flags: c_uint, call: &str) -> Result<String> {
    argument::flags(flags, 0, call)?;
    // SAFETY: as the caller promises.
    unsafe { argument::text(domain, "the domain's name") }
}
