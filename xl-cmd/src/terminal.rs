//! The user at the other end: progress on a terminal, quiet in a pipe, ^C taken as a wish.

use indicatif::{ProgressBar, ProgressStyle};
use libxl_ext::event::{Observer, Progress};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const BYTES: &str = "{prefix}{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const SPINNER: &str = "{spinner} {prefix}{msg}";

/// How often it is drawn anew.
const TICK: Duration = Duration::from_millis(100);

/// The observer of a command.
pub(crate) struct Terminal {
    bar: ProgressBar,
    /// Whether it counts the bytes of the step.
    counts: AtomicBool,
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
        bar.enable_steady_tick(TICK);
        Self {
            bar,
            counts: AtomicBool::new(false),
            stop,
        }
    }

    /// Another operation of the same command begins, on this domain of several.
    pub(crate) fn about(&self, domain: &str) {
        self.bar.set_prefix(format!("{domain}: "));
        if self.bar.is_finished() {
            self.bar.reset();
            self.bar.enable_steady_tick(TICK);
        }
    }

    /// The operation has ended.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Terminal {
    fn step(&self, what: &str) {
        self.counts.store(false, Ordering::Relaxed);
        self.bar.set_style(style(SPINNER));
        self.bar.set_message(what.to_owned());
    }

    fn progress(&self, progress: Progress) {
        if !progress.bytes || progress.total == 0 {
            return;
        }
        if !self.counts.swap(true, Ordering::Relaxed) {
            // Rate and time left are this step's alone.
            self.bar.reset();
            self.bar.set_style(style(BYTES));
        }
        if self.bar.length() != Some(progress.total) {
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

    /// A terminal of one line.
    #[derive(Clone, Debug, Default)]
    struct Line(Arc<std::sync::Mutex<String>>);

    impl indicatif::TermLike for Line {
        fn width(&self) -> u16 {
            200
        }
        fn move_cursor_up(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> std::io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> std::io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> std::io::Result<()> {
            self.0.lock().unwrap().clear();
            Ok(())
        }
        fn flush(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is drawn, of two steps that read the same number of bytes, for two domains.
    #[test]
    fn each_step_shows_its_own_bytes_with_rate_and_time_left() {
        let drawn = Line::default();
        let contents = || drawn.0.lock().unwrap().trim().to_owned();
        let target = indicatif::ProgressDrawTarget::term_like(Box::new(drawn.clone()));
        let terminal = Terminal {
            bar: ProgressBar::with_draw_target(None, target),
            counts: AtomicBool::new(false),
            stop: Arc::default(),
        };
        let total = 64 << 20;
        for domain in ["web1", "web2"] {
            terminal.about(domain);
            for step in ["read it", "write it"] {
                terminal.step(step);
                for done in [1 << 20, total / 2] {
                    std::thread::sleep(Duration::from_millis(60));
                    terminal.progress(Progress {
                        done,
                        total,
                        bytes: true,
                    });
                }
                terminal.bar.force_draw();
                let line = contents();
                assert!(line.starts_with(&format!("{domain}: {step} ")), "{line}");
                assert!(line.contains("32.00 MiB/64.00 MiB"), "{line}");
                assert!(line.contains("/s ") && line.ends_with('s'), "{line}");
            }
            terminal.finish();
            assert_eq!(contents(), "");
        }
    }
}
