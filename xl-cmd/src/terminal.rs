//! The user at the other end: progress on a terminal, quiet in a pipe, ^C taken as a wish.

use indicatif::{ProgressBar, ProgressStyle};
use libxl_ext::event::{Observer, Progress};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const BYTES: &str = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const SPINNER: &str = "{spinner} {msg}";

/// The observer of a command.
pub(crate) struct Terminal {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
}

impl Terminal {
    /// Takes over ^C and its kin: from now on they ask the operation to stop, and it leaves everything
    /// as it was.
    pub(crate) fn new() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // Only an unknown signal number fails.
            let _ = signal_hook::flag::register(signal, Arc::clone(&stop));
        }
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, stop }
    }

    /// The operation has ended.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Terminal {
    fn step(&self, what: &str) {
        self.bar.set_style(style(SPINNER));
        self.bar.set_message(what.to_owned());
    }

    fn progress(&self, progress: Progress) {
        if !progress.bytes || progress.total == 0 {
            return;
        }
        if self.bar.length() != Some(progress.total) {
            self.bar.set_style(style(BYTES));
            self.bar.set_length(progress.total);
        }
        self.bar.set_position(progress.done);
    }

    fn note(&self, text: &str) {
        tracing::info!("{text}");
        self.bar.suspend(|| eprintln!("xl-ext: {text}"));
    }

    fn wants_abort(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_understood() {
        for template in [BYTES, SPINNER] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
