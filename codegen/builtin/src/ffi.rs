//! C mirrors of the types that come with libxl, under their C names.
#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

/// `libxl_domid`
pub type libxl_domid = u32;
/// `libxl_devid`
pub type libxl_devid = c_int;
/// `libxl_ev_user`
pub type libxl_ev_user = u64;
/// `libxl_mac`
pub type libxl_mac = [u8; 6];
/// `libxl_hwcap`
pub type libxl_hwcap = [u32; 8];
/// `libxl_string_list`: ends with a null pointer.
pub type libxl_string_list = *mut *mut c_char;
/// `libxl_key_value_list`: keys and values in turn, ends with a null pointer for a key.
pub type libxl_key_value_list = *mut *mut c_char;
/// `libxl_cpuid_policy_list`: points to what only libxl knows.
pub type libxl_cpuid_policy_list = *mut c_void;

/// `libxl_defbool`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct libxl_defbool {
    /// Negative: false, zero: default, positive: true.
    pub val: c_int,
}

/// `libxl_uuid`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct libxl_uuid {
    /// The bytes, in the order in which they are printed.
    pub uuid: [u8; 16],
}

/// `libxl_bitmap`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct libxl_bitmap {
    /// Bytes in the map.
    pub size: u32,
    /// The bits, the lowest first.
    pub map: *mut u8,
}

/// `libxl_ms_vm_genid`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct libxl_ms_vm_genid {
    /// The identifier.
    pub bytes: [u8; 16],
}

/// `libxl_ev_link`: the entry in a list of libxl.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct libxl_ev_link {
    /// The next entry.
    pub tqe_next: *mut c_void,
    /// What points to this entry.
    pub tqe_prev: *mut *mut c_void,
}

/// `libxl_enum_string_table`: one entry of an enumeration's table of names.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct libxl_enum_string_table {
    /// The name; null in the last entry.
    pub s: *const c_char,
    /// The value.
    pub v: c_int,
}

// SAFETY: the tables are constant and their names are static.
unsafe impl Sync for libxl_enum_string_table {}

impl Default for libxl_bitmap {
    fn default() -> Self {
        Self {
            size: 0,
            map: ptr::null_mut(),
        }
    }
}

impl Default for libxl_ev_link {
    fn default() -> Self {
        Self {
            tqe_next: ptr::null_mut(),
            tqe_prev: ptr::null_mut(),
        }
    }
}
