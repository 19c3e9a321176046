//! `libxl_device_disk` inside our types, by libxl's own functions: they know the fields of the libxl
//! that is installed, and which of them own memory.

use crate::model::disk::DeviceDisk;
use crate::port::libxl_sys as sys;
use libxl_idl_builtin::c_function::current_ctx;
use libxl_idl_builtin::c_value::c_string;
use libxl_idl_builtin::{CValue, CValueError};
use std::ffi::CStr;

fn ctx() -> *mut sys::libxl_ctx {
    current_ctx().cast()
}

// SAFETY: all bytes zero is what libxl_device_disk_dispose leaves: it holds nothing.
unsafe impl CValue for DeviceDisk {
    type C = sys::libxl_device_disk;

    unsafe fn read(c: &Self::C) -> Result<Self, CValueError> {
        let refused = |why: &str| CValueError::Foreign(format!("libxl_device_disk_to_json {why}"));
        // SAFETY: libxl only reads through the pointer, whatever its type says; the string that comes
        // back is malloc's.
        let json = unsafe { sys::libxl_device_disk_to_json(ctx(), (&raw const *c).cast_mut()) };
        if json.is_null() {
            return Err(refused("failed"));
        }
        // SAFETY: it is a C string.
        let disk = serde_json::from_slice(unsafe { CStr::from_ptr(json) }.to_bytes());
        // SAFETY: it is malloc's, and nobody else's.
        unsafe { sys::free(json.cast()) };
        disk.map_err(|error| refused(&format!("printed what cannot be read: {error}")))
    }

    fn write(&self, c: &mut Self::C) -> Result<(), CValueError> {
        // SAFETY: the pointer is to a whole struct that holds nothing.
        unsafe { sys::libxl_device_disk_init(c) };
        if *self == Self::default() {
            return Ok(());
        }
        if ctx().is_null() {
            // libxl would log through it that a value is not acceptable.
            return Err(CValueError::Foreign(
                "libxl_device_disk_from_json needs a ctx".into(),
            ));
        }
        let json = serde_json::to_string(self).map_err(|error| {
            CValueError::Foreign(format!("the disk cannot be printed: {error}"))
        })?;
        let text = c_string(&json)?;
        // SAFETY: the struct is initialised, the text is a C string.
        let rc = unsafe { sys::libxl_device_disk_from_json(ctx(), c, text) };
        // SAFETY: it is malloc's, and nobody else's.
        unsafe { sys::free(text.cast()) };
        match rc {
            0 => Ok(()),
            rc => Err(CValueError::Foreign(format!(
                "libxl_device_disk_from_json refused the disk with {rc}"
            ))),
        }
    }

    unsafe fn copy(from: &Self::C, to: &mut Self::C) {
        // SAFETY: both are valid, and `to` holds nothing.
        unsafe { sys::libxl_device_disk_copy(ctx(), to, from) };
    }

    unsafe fn dispose(c: &mut Self::C) {
        // SAFETY: as the caller promises.
        unsafe { sys::libxl_device_disk_dispose(c) };
    }
}
