//! The logger of a ctx.
//!
//! libxl hands it out by no function, but it is the first word of every ctx, from libxl's first version
//! with a ctx on. Before that is relied on it is proven on a ctx of our own, since it is nowhere
//! promised; where it does not hold, messages go to standard error.

use super::Ctx;
use crate::agent::protocol::Level;
use crate::error::Error;
use crate::port::libxl::Libxl;
use crate::port::libxl_sys as sys;
use std::ffi::CString;
use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};

const UNKNOWN: u8 = 0;
const HOLDS: u8 = 1;
const DOES_NOT_HOLD: u8 = 2;

/// Whether the logger is the first word. No lock: a fork could leave it locked.
static FIRST_WORD: AtomicU8 = AtomicU8::new(UNKNOWN);

fn first_word_is_the_logger() -> bool {
    if FIRST_WORD.load(Ordering::Relaxed) == UNKNOWN {
        // A failure says nothing; the next message tries again.
        let Ok(probe) = Libxl::open_without_children() else {
            return false;
        };
        let holds = probe.begins_with_its_logger();
        let found = if holds { HOLDS } else { DOES_NOT_HOLD };
        FIRST_WORD.store(found, Ordering::Relaxed);
    }
    FIRST_WORD.load(Ordering::Relaxed) == HOLDS
}

/// Where the messages for the application's people go.
#[derive(Clone, Copy)]
pub(super) struct Log(*mut sys::xentoollog_logger);

impl Log {
    /// The logger of a ctx; for null, standard error.
    pub(super) fn of(ctx: Ctx) -> Self {
        if ctx.0.is_null() || !first_word_is_the_logger() {
            return Self(std::ptr::null_mut());
        }
        // SAFETY: the ctx is valid, and its first word is the pointer to its logger, as was proven.
        Self(unsafe { *ctx.0.cast::<*mut sys::xentoollog_logger>() })
    }

    /// A failure, with all its causes and ways out.
    pub(super) fn error(self, error: &Error) {
        self.write(Level::Error, &error.report());
    }

    /// A message, of which each line becomes one.
    pub(super) fn write(self, level: Level, text: &str) {
        let level = match level {
            Level::Debug => sys::xentoollog_level_XTL_DEBUG,
            Level::Detail => sys::xentoollog_level_XTL_DETAIL,
            Level::Notice => sys::xentoollog_level_XTL_NOTICE,
            Level::Warn => sys::xentoollog_level_XTL_WARN,
            Level::Error => sys::xentoollog_level_XTL_ERROR,
        };
        for line in text.lines() {
            if self.0.is_null() {
                if level >= sys::xentoollog_level_XTL_WARN {
                    // A full disk behind it is no reason to panic.
                    let _ = writeln!(std::io::stderr(), "libxl-ext: {line}");
                }
                continue;
            }
            let Ok(line) = CString::new(line.replace('\0', "\u{fffd}")) else {
                continue;
            };
            // SAFETY: the logger lives as long as its ctx, and the format takes the one string.
            unsafe {
                sys::xtl_log(
                    self.0,
                    level,
                    -1,
                    c"libxl-ext".as_ptr(),
                    c"%s".as_ptr(),
                    line.as_ptr(),
                );
            }
        }
    }
}
