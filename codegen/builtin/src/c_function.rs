//! The bodies of the C functions that are generated for each type.
//!
//! None of them unwinds into its C caller, whatever the code of a type does: a panic becomes the error
//! that the function has, or a value that holds nothing.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{mem, ptr};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::c_value::{CValue, c_string};
use crate::ffi::libxl_enum_string_table;

/// libxl's `ERROR_FAIL`.
const ERROR_FAIL: c_int = -3;
/// libxl's `ERROR_INVAL`.
const ERROR_INVAL: c_int = -6;

thread_local! {
    static CTX: Cell<*mut c_void> = const { Cell::new(ptr::null_mut()) };
}

/// Runs `body` with `ctx` as what [`current_ctx`] answers in this thread.
///
/// # Safety
/// `ctx` must be null or a `libxl_ctx *` that stays valid until `body` is done.
pub unsafe fn with_ctx<R>(ctx: *mut c_void, body: impl FnOnce() -> R) -> R {
    /// Puts the former one back, also when `body` panics.
    struct Restore(*mut c_void);

    impl Drop for Restore {
        fn drop(&mut self) {
            CTX.set(self.0);
        }
    }

    let _restore = Restore(CTX.replace(ctx));
    body()
}

/// The `libxl_ctx *` that the C function which is running was given, for imported types whose own C
/// functions want one. Null when there is none: `_init` and `_dispose` have no such argument.
pub fn current_ctx() -> *mut c_void {
    CTX.get()
}

/// Runs what may panic; `None` if it did. The panic hook has then told about it.
pub fn no_unwind<R>(body: impl FnOnce() -> R) -> Option<R> {
    // What `body` has left half done is not looked at again: each caller here overwrites it.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => Some(result),
        Err(payload) => {
            // To drop it could panic again.
            mem::forget(payload);
            None
        }
    }
}

/// `_init`; after a panic all bytes are zero.
///
/// # Safety
/// `p` must be null or point to memory for a value.
pub unsafe fn init<T: CValue + Default>(p: *mut T::C) {
    if !p.is_null() {
        let initial = no_unwind(T::init).unwrap_or_else(T::zeroed);
        // SAFETY: as the caller promises. What was there is not read.
        unsafe { p.write(initial) };
    }
}

/// `_dispose`: afterwards all bytes are zero, so that it can be repeated.
///
/// # Safety
/// `p` must be null or point to a value that was initialised.
pub unsafe fn dispose<T: CValue>(p: *mut T::C) {
    // SAFETY: as the caller promises.
    if let Some(c) = unsafe { p.as_mut() } {
        // SAFETY: as the caller promises. What a panic leaves is not freed, since that could be twice.
        no_unwind(|| unsafe { T::dispose(c) });
        *c = T::zeroed();
    }
}

/// `_copy`; after a panic all bytes of the copy are zero.
///
/// # Safety
/// Both must be null or point to values; `to` holds nothing.
pub unsafe fn copy<T: CValue>(to: *mut T::C, from: *const T::C) {
    // SAFETY: as the caller promises.
    if let (Some(to), Some(from)) = unsafe { (to.as_mut(), from.as_ref()) } {
        // SAFETY: as the caller promises.
        if no_unwind(|| unsafe { T::copy(from, to) }).is_none() {
            *to = T::zeroed();
        }
    }
}

/// `_to_json`: a string on C's heap, or null.
///
/// # Safety
/// `p` must be null or point to a value.
pub unsafe fn to_json<T: CValue + Serialize>(p: *const T::C) -> *mut c_char {
    // SAFETY: as the caller promises.
    let Some(c) = (unsafe { p.as_ref() }) else {
        return ptr::null_mut();
    };
    no_unwind(|| {
        // SAFETY: as the caller promises.
        let value = unsafe { T::read(c) }.ok()?;
        c_string(&text(&value)?).ok()
    })
    .flatten()
    .unwrap_or(ptr::null_mut())
}

/// JSON in the form that libxl gives it: indented by four, with a newline at the end.
fn text(value: &impl Serialize) -> Option<String> {
    let mut text = Vec::new();
    let indented = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, indented);
    value.serialize(&mut serializer).ok()?;
    text.push(b'\n');
    String::from_utf8(text).ok()
}

/// `_from_json`: zero or an error of libxl. After an error the value is as initialised.
///
/// # Safety
/// `p` must be null or point to memory for a value, `s` be null or point to a string.
pub unsafe fn from_json<T: CValue + DeserializeOwned>(
    p: *mut T::C,
    initial: impl FnOnce() -> T::C,
    s: *const c_char,
) -> c_int {
    if p.is_null() || s.is_null() {
        return ERROR_INVAL;
    }
    let initial = no_unwind(initial).unwrap_or_else(T::zeroed);
    // SAFETY: as the caller promises.
    unsafe { p.write(initial) };
    // SAFETY: as the caller promises.
    let text = unsafe { CStr::from_ptr(s) };
    let Some(c) = no_unwind(|| parse::<T>(text)).flatten() else {
        return ERROR_FAIL;
    };
    // SAFETY: as the caller promises.
    let mut before = mem::replace(unsafe { &mut *p }, c);
    // SAFETY: it was just initialised.
    no_unwind(|| unsafe { T::dispose(&mut before) });
    0
}

fn parse<T: CValue + DeserializeOwned>(text: &CStr) -> Option<T::C> {
    let value: T = serde_json::from_slice(text.to_bytes()).ok()?;
    let mut c = T::zeroed();
    if value.write(&mut c).is_err() {
        // SAFETY: `write` leaves what can be disposed.
        unsafe { T::dispose(&mut c) };
        return None;
    }
    Some(c)
}

/// `_to_string`: null for a number that is no value.
pub fn to_string(table: &[libxl_enum_string_table], value: c_int) -> *const c_char {
    table
        .iter()
        .take_while(|entry| !entry.s.is_null())
        .find(|entry| entry.v == value)
        .map_or(ptr::null(), |entry| entry.s)
}

/// `_from_string`: in upper or lower case; `ERROR_FAIL`, as from libxl, for an unknown name.
///
/// # Safety
/// `s` must be null or a string, `e` null or valid; the names of the table are strings.
pub unsafe fn from_string(
    table: &[libxl_enum_string_table],
    s: *const c_char,
    e: *mut c_int,
) -> c_int {
    if s.is_null() || e.is_null() {
        return ERROR_INVAL;
    }
    // SAFETY: as the caller promises.
    let name = unsafe { CStr::from_ptr(s) }.to_bytes();
    for entry in table.iter().take_while(|entry| !entry.s.is_null()) {
        // SAFETY: the tables are made of strings.
        if unsafe { CStr::from_ptr(entry.s) }
            .to_bytes()
            .eq_ignore_ascii_case(name)
        {
            // SAFETY: as the caller promises.
            unsafe { e.write(entry.v) };
            return 0;
        }
    }
    ERROR_FAIL
}
