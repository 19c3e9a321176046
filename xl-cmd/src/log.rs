//! What goes to the journal (`journalctl -t xl-ext`) and, if asked for, to standard error.
//!
//! `info` is what an operation did; `debug` is every command to QEMU, every program that is run, and
//! libxl's own talk, which would flood a journal.

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;

pub(crate) fn start(verbose: u8) {
    // Without journald (a container, a rescue system) there is nothing to write to.
    let journal = tracing_journald::layer().ok().map(|layer| {
        layer
            .with_syslog_identifier("xl-ext".into())
            .with_filter(LevelFilter::INFO)
    });
    let level = match verbose {
        0 => LevelFilter::OFF,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    let terminal = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .without_time()
        .with_filter(level);
    tracing_subscriber::registry()
        .with(journal)
        .with(terminal)
        .init();
}
