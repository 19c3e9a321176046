//! `xl-ext`: snapshots of Xen domains on the command line.
//!
//! argv -> [`args`] (what was typed) -> a request of the library -> [`render`] (what is printed).
//! Exit status: 0 done, 1 failed, 2 usage.

mod args;
mod as_xl;
mod commands;
mod log;
mod render;
mod snapshot_file;
mod terminal;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_default();
    let arguments = if as_xl::is_meant(&program) {
        match as_xl::run(&words.collect::<Vec<_>>()) {
            Ok(ours) => args::Arguments::parse_from(ours),
            Err(error) => {
                eprintln!("xl-ext: {}", error.report());
                return ExitCode::FAILURE;
            }
        }
    } else {
        args::Arguments::parse()
    };
    log::start(arguments.verbose);
    match commands::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", error.report());
            eprintln!("xl-ext: {}", error.report());
            ExitCode::FAILURE
        }
    }
}
