//! The bodies of the C functions that are generated for each type.

use std::ffi::{CStr, c_char, c_int};
use std::{mem, ptr};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::c_value::{CValue, c_string};
use crate::ffi::libxl_enum_string_table;

/// libxl's `ERROR_FAIL`.
const ERROR_FAIL: c_int = -3;
/// libxl's `ERROR_INVAL`.
const ERROR_INVAL: c_int = -6;

/// `_init`
///
/// # Safety
/// `p` must be null or point to memory for a value.
pub unsafe fn init<T: CValue + Default>(p: *mut T::C) {
    if !p.is_null() {
        // SAFETY: as the caller promises. What was there is not read.
        unsafe { p.write(T::init()) };
    }
}

/// `_dispose`: afterwards all bytes are zero, so that it can be repeated.
///
/// # Safety
/// `p` must be null or point to a value that was initialised.
pub unsafe fn dispose<T: CValue>(p: *mut T::C) {
    // SAFETY: as the caller promises.
    if let Some(c) = unsafe { p.as_mut() } {
        // SAFETY: as the caller promises.
        unsafe { T::dispose(c) };
        *c = T::zeroed();
    }
}

/// `_copy`
///
/// # Safety
/// Both must be null or point to values; `to` holds nothing.
pub unsafe fn copy<T: CValue>(to: *mut T::C, from: *const T::C) {
    // SAFETY: as the caller promises.
    if let (Some(to), Some(from)) = unsafe { (to.as_mut(), from.as_ref()) } {
        // SAFETY: as the caller promises.
        unsafe { T::copy(from, to) };
    }
}

/// `_to_json`: a string on C's heap, or null.
///
/// # Safety
/// `p` must be null or point to a value.
pub unsafe fn to_json<T: CValue + Serialize>(p: *const T::C) -> *mut c_char {
    // SAFETY: as the caller promises.
    let value = unsafe { p.as_ref().map(|c| T::read(c)) };
    let Some(Ok(value)) = value else {
        return ptr::null_mut();
    };
    let mut text = Vec::new();
    let indented = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, indented);
    if value.serialize(&mut serializer).is_err() {
        return ptr::null_mut();
    }
    text.push(b'\n');
    String::from_utf8(text)
        .ok()
        .and_then(|text| c_string(&text).ok())
        .unwrap_or(ptr::null_mut())
}

/// `_from_json`: zero or an error of libxl. After an error the value is as initialised.
///
/// # Safety
/// `p` must point to memory for a value, `s` to a string.
pub unsafe fn from_json<T: CValue + DeserializeOwned>(
    p: *mut T::C,
    initial: T::C,
    s: *const c_char,
) -> c_int {
    if p.is_null() || s.is_null() {
        return ERROR_INVAL;
    }
    // SAFETY: as the caller promises.
    unsafe { p.write(initial) };
    // SAFETY: as the caller promises.
    let text = unsafe { CStr::from_ptr(s) };
    let Ok(value) = serde_json::from_slice::<T>(text.to_bytes()) else {
        return ERROR_FAIL;
    };
    let mut c = T::zeroed();
    if value.write(&mut c).is_err() {
        // SAFETY: `write` leaves what can be disposed.
        unsafe { T::dispose(&mut c) };
        return ERROR_FAIL;
    }
    // SAFETY: as the caller promises.
    let mut before = mem::replace(unsafe { &mut *p }, c);
    // SAFETY: it was just initialised.
    unsafe { T::dispose(&mut before) };
    0
}

/// `_to_string`: null for a number that is no value.
pub fn to_string(table: &[libxl_enum_string_table], value: c_int) -> *const c_char {
    table
        .iter()
        .take_while(|entry| !entry.s.is_null())
        .find(|entry| entry.v == value)
        .map_or(ptr::null(), |entry| entry.s)
}

/// `_from_string`: in upper or lower case; `ERROR_INVAL` for an unknown name.
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
    ERROR_INVAL
}
