//! The C API: what `include/libxl_ext.h` declares, beside what is generated for the types.
//!
//! | module | |
//! |---|---|
//! | [`snapshot`] | the calls on snapshots |
//! | [`managed`] | the calls on saved domains |
//! | [`replication`] | the calls on replication, and an application's operations as those of Rust |
//! | [`event`] | completion, progress, abort: what an event loop needs |
//! | [`context`] | what is known of a ctx: where its snapshots are, its operations |
//! | [`delivery`] | what is due to be delivered, the descriptor to poll |
//! | [`operation`] | one operation: started, watched, ended |
//! | [`agent`] | the process in which it runs, and the socket to it |
//! | [`spawn`] | starting that process so that it is nobody's child |
//! | [`argument`] | what C passes in, checked |
//! | [`header`] | what the header declares, read back |
//! | [`disk`] | `libxl_device_disk`, by libxl's own functions |
//! | [`log`] | the ctx's own logger |
//!
//! No function lets a panic out ([`guard`]), and none holds a lock while it calls the application.

mod agent;
mod argument;
mod context;
mod delivery;
mod disk;
pub mod event;
pub mod header;
mod log;
pub mod managed;
mod operation;
pub mod pull;
pub mod replication;
pub mod snapshot;
mod spawn;

use crate::error::{Error, ErrorKind, Result};
use crate::port::libxl_sys as sys;
use log::Log;
use std::cell::RefCell;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

/// A ctx of the application. Only its address is known here, and it stays valid while a call of the
/// application's runs, or until `libxl_ext_ctx_release`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ctx(*mut sys::libxl_ctx);

// SAFETY: libxl allows a ctx to be used on any thread.
unsafe impl Send for Ctx {}
// SAFETY: and also on several at once.
unsafe impl Sync for Ctx {}

thread_local! {
    /// How the panic that is being caught on this thread was described; `None` outside of [`guard`].
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs the body of a C function: an error is logged and becomes its code, so does a panic.
fn guard(ctx: Ctx, body: impl FnOnce() -> Result<c_int>) -> c_int {
    let _uncancelled = Uncancelled::begin();
    let error = match no_panic(body) {
        Ok(Ok(code)) => return code,
        Ok(Err(error)) => error,
        Err(panic) => Error::new(ErrorKind::Toolstack, panic)
            .while_doing("libxl-ext met a fault of its own; please report it"),
    };
    // Nothing is left to be done about a log that panics.
    let _ = no_panic(|| Log::of(ctx).error(&error));
    error.kind().libxl_code()
}

/// As long as it lives the thread is not cancelled (`pthread_cancel`): that unwinds, which no Rust code
/// may be met by.
struct Uncancelled(c_int);

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, before: *mut c_int) -> c_int;
}

/// glibc's and musl's value.
const PTHREAD_CANCEL_DISABLE: c_int = 1;

impl Uncancelled {
    fn begin() -> Self {
        let mut before = 0;
        // SAFETY: the place for the former state is ours.
        unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &raw mut before) };
        Self(before)
    }
}

impl Drop for Uncancelled {
    fn drop(&mut self) {
        // SAFETY: null says that the state is not of interest.
        unsafe { pthread_setcancelstate(self.0, std::ptr::null_mut()) };
    }
}

/// Runs what may panic, and describes the panic.
fn no_panic<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    // No `Once`: a fork could leave it locked.
    static HOOKED: AtomicBool = AtomicBool::new(false);
    if !HOOKED.swap(true, Ordering::Relaxed) {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let ours = PANIC.try_with(|text| match text.try_borrow_mut().as_deref_mut() {
                Ok(Some(text)) => {
                    *text = panic.to_string();
                    true
                }
                _ => false,
            });
            if ours != Ok(true) {
                others(panic);
            }
        }));
    }
    let outer = PANIC.replace(Some(String::new()));
    let result = catch_unwind(AssertUnwindSafe(body));
    let description = PANIC.replace(outer).unwrap_or_default();
    result.map_err(|payload| {
        // To drop it could panic again.
        std::mem::forget(payload);
        description
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_says_where_it_was() {
        let text = no_panic(|| panic!("lost {}", "count")).unwrap_err();
        assert!(
            text.contains("lost count") && text.contains("ffi/mod.rs"),
            "{text}"
        );
        let nobody = Ctx(std::ptr::null_mut());
        assert_eq!(
            guard(nobody, || panic!("again")),
            sys::libxl_error_ERROR_FAIL
        );
        assert_eq!(guard(nobody, || Ok(0)), 0);
    }
}
