//! libxl's log and progress, by way of a `xentoollog_logger` of our own.

use super::libxl_sys as sys;
use crate::event::{Observer, Progress};
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_int, c_ulong};
use std::time::Instant;

/// How the message ends by which libxl says that a guest stands still (`suspend_common_wait_guest_check`, the
/// same from 4.5 to 4.20). It is only for a figure that people read.
const SUSPENDED: &str = "guest has suspended";

/// Longest log message that is kept, in bytes.
const MESSAGE_MAX: usize = 1024;

/// How many error messages are kept to explain a failure.
const ERRORS_KEPT: usize = 8;

/// A logger that collects errors and hands progress on. libxl sees the first field.
#[repr(C)]
pub(super) struct Logger {
    vtable: sys::xentoollog_logger,
    errors: RefCell<Vec<String>>,
    suspended: Cell<Option<Instant>>,
    observer: Cell<Option<&'static dyn Observer>>,
}

impl Logger {
    pub(super) fn new() -> Self {
        Self {
            vtable: sys::xentoollog_logger {
                vmessage: Some(message),
                progress: Some(progress),
                destroy: None,
            },
            errors: RefCell::new(Vec::new()),
            suspended: Cell::new(None),
            observer: Cell::new(None),
        }
    }

    /// The error messages since the last call, oldest first.
    pub(super) fn take_errors(&self) -> Vec<String> {
        self.errors.take()
    }

    /// When libxl saw a guest suspended, if it did so since the last call.
    pub(super) fn take_suspended(&self) -> Option<Instant> {
        self.suspended.take()
    }

    /// Hands progress to `observer` while `work` runs.
    pub(super) fn observed<T>(&self, observer: &dyn Observer, work: impl FnOnce() -> T) -> T {
        /// Forgets the observer also when `work` unwinds.
        struct Forget<'a>(&'a Cell<Option<&'static dyn Observer>>);
        impl Drop for Forget<'_> {
            fn drop(&mut self) {
                self.0.set(None);
            }
        }
        // SAFETY: only the lifetime changes; `Forget` clears the pointer before `observer` can end.
        let erased =
            unsafe { std::mem::transmute::<&dyn Observer, &'static dyn Observer>(observer) };
        self.observer.set(Some(erased));
        let _forget = Forget(&self.observer);
        work()
    }
}

unsafe extern "C" fn message(
    logger: *mut sys::xentoollog_logger,
    level: sys::xentoollog_level,
    errno: c_int,
    context: *const c_char,
    format: *const c_char,
    arguments: *mut sys::__va_list_tag,
) {
    let mut buffer = [0_u8; MESSAGE_MAX];
    // SAFETY: libxl passes a format with the arguments that belong to it, and we pass the size of the
    // buffer, which vsnprintf ends with a NUL.
    unsafe {
        sys::vsnprintf(
            buffer.as_mut_ptr().cast(),
            MESSAGE_MAX as _,
            format,
            arguments,
        );
    }
    let mut text = CStr::from_bytes_until_nul(&buffer)
        .map(|text| text.to_string_lossy().trim_end().to_owned())
        .unwrap_or_default();
    if errno >= 0 {
        text = format!("{text}: {}", std::io::Error::from_raw_os_error(errno));
    }
    let context = if context.is_null() {
        "libxl".to_owned()
    } else {
        // SAFETY: a context that is not null is a C string of libxl's.
        unsafe { CStr::from_ptr(context) }
            .to_string_lossy()
            .into_owned()
    };
    // SAFETY: libxl passes the logger that we gave it, which is the first field of a `Logger` that lives as
    // long as the context.
    let logger = unsafe { &*logger.cast::<Logger>() };
    if text.ends_with(SUSPENDED) {
        logger.suspended.set(Some(Instant::now()));
    }
    if level >= sys::xentoollog_level_XTL_ERROR {
        tracing::error!(target: "libxl", "{context}: {text}");
        let mut errors = logger.errors.borrow_mut();
        if errors.len() < ERRORS_KEPT {
            errors.push(text);
        }
    } else if level >= sys::xentoollog_level_XTL_WARN {
        tracing::warn!(target: "libxl", "{context}: {text}");
    } else {
        tracing::debug!(target: "libxl", "{context}: {text}");
    }
}

unsafe extern "C" fn progress(
    logger: *mut sys::xentoollog_logger,
    _context: *const c_char,
    _doing_what: *const c_char,
    _percent: c_int,
    done: c_ulong,
    total: c_ulong,
) {
    // SAFETY: as in `message`.
    let logger = unsafe { &*logger.cast::<Logger>() };
    if let Some(observer) = logger.observer.get() {
        observer.progress(Progress {
            done,
            total,
            bytes: false,
        });
    }
}
