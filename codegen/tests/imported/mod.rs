//! The types that the recorded outputs import.

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::ptr;

use libxl_idl_builtin::c_function::current_ctx;
use libxl_idl_builtin::{CValue, CValueError};
use serde::{Deserialize, Serialize};

thread_local! {
    /// The ctx at the last call.
    pub(crate) static CTX: Cell<*mut c_void> = const { Cell::new(ptr::null_mut()) };
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct DeviceDisk {
    pub(crate) vdev: String,
}

#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub(crate) struct libxl_device_disk {
    vdev: *mut c_char,
}

// SAFETY: null is valid and holds nothing.
unsafe impl CValue for DeviceDisk {
    type C = libxl_device_disk;

    unsafe fn read(c: &Self::C) -> Result<Self, CValueError> {
        CTX.set(current_ctx());
        // SAFETY: as the caller promises.
        let vdev = unsafe { <Option<String>>::read(&c.vdev) }?;
        Ok(Self {
            vdev: vdev.unwrap_or_default(),
        })
    }

    fn write(&self, c: &mut Self::C) -> Result<(), CValueError> {
        CTX.set(current_ctx());
        // What was initialised holds nothing, so that it can be initialised again.
        let vdev = (!self.vdev.is_empty()).then(|| self.vdev.clone());
        vdev.write(&mut c.vdev)
    }

    unsafe fn copy(from: &Self::C, to: &mut Self::C) {
        CTX.set(current_ctx());
        // SAFETY: as the caller promises.
        unsafe { <Option<String>>::copy(&from.vdev, &mut to.vdev) };
    }

    unsafe fn dispose(c: &mut Self::C) {
        // SAFETY: as the caller promises.
        unsafe { <Option<String>>::dispose(&mut c.vdev) };
    }
}
