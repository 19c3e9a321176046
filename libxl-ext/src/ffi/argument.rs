//! What C passes in, checked before anything is done.

use super::Ctx;
use crate::error::{Error, ErrorKind, Result};
use crate::port::libxl_sys as sys;
use std::ffi::{CStr, OsStr, c_char, c_uint};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

fn invalid(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidRequest, why)
}

/// The ctx, which is needed for everything.
pub(super) fn ctx(pointer: *mut sys::libxl_ctx) -> Result<Ctx> {
    if pointer.is_null() {
        return Err(invalid("the ctx is NULL"));
    }
    Ok(Ctx(pointer))
}

/// A text that must be given; `what` says what it names.
///
/// # Safety
/// The pointer is null or points to a C string.
pub(super) unsafe fn text(pointer: *const c_char, what: &str) -> Result<String> {
    // SAFETY: as the caller promises.
    let text = unsafe { optional_text(pointer, what) }?;
    text.ok_or_else(|| invalid(format!("{what} is NULL")))
}

/// A text that may be left out.
///
/// # Safety
/// As for [`text`].
pub(super) unsafe fn optional_text(pointer: *const c_char, what: &str) -> Result<Option<String>> {
    // SAFETY: as the caller promises.
    unsafe { libxl_idl_builtin::c_value::text(pointer) }
        .map_err(|error| invalid(format!("{what} is not acceptable")).because(error))
}

/// Flags, which must be among the known ones.
pub(super) fn flags(given: c_uint, known: c_uint, call: &str) -> Result<()> {
    match given & !known {
        0 => Ok(()),
        unknown => Err(invalid(format!("{call} has no flags {unknown:#x}"))),
    }
}

/// The name of a domain, and of something of its, which is `what`.
///
/// # Safety
/// As for [`text`].
pub(super) unsafe fn named(
    domain: *const c_char,
    name: *const c_char,
    what: &str,
) -> Result<(String, String)> {
    // SAFETY: as the caller promises.
    unsafe { Ok((text(domain, "the domain's name")?, text(name, what)?)) }
}

/// What an out-pointer points to.
///
/// # Safety
/// The pointer is null or valid for writing.
pub(super) unsafe fn out<'a, T>(pointer: *mut T, what: &str) -> Result<&'a mut T> {
    // SAFETY: as the caller promises.
    unsafe { pointer.as_mut() }.ok_or_else(|| invalid(format!("{what} is NULL")))
}

/// A directory that is given by its whole path.
///
/// # Safety
/// As for [`text`].
pub(super) unsafe fn directory(pointer: *const c_char) -> Result<Option<PathBuf>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller promises.
    let bytes = unsafe { CStr::from_ptr(pointer) }.to_bytes();
    let path = Path::new(OsStr::from_bytes(bytes));
    if path.to_str().is_none() {
        return Err(invalid(format!(
            "the directory '{}' is not named in UTF-8",
            path.display()
        )));
    }
    if !path.is_absolute() {
        return Err(invalid(format!(
            "the directory '{}' is not given by an absolute path",
            path.display()
        )));
    }
    Ok(Some(path.to_owned()))
}
