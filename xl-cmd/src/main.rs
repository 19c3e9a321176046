//! `xl-ext`: snapshots of Xen domains on the command line.
//!
//! argv -> [`args`] (what was typed) -> a request of the library -> [`render`] (what is printed).
//! Exit status: 0 done, 1 failed, 2 usage; of a question 0 yes, 1 no, 3 failed.

mod args;
mod as_xl;
mod commands;
mod log;
mod render;
mod snapshot_file;
mod terminal;

use args::Command;
use clap::Parser;
use commands::Answer;
use std::process::ExitCode;

/// What was asked is not so.
const NO: u8 = 1;

/// It could not be found out whether it is so.
const NO_ANSWER: u8 = 3;

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
        Ok(Answer::Done) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(NO),
        Err(error) => {
            tracing::error!("{}", error.report());
            eprintln!("xl-ext: {}", error.report());
            match &arguments.command {
                // There 1 is an answer.
                Command::ManagedSaveStatus(args) if args.domain.is_some() => {
                    ExitCode::from(NO_ANSWER)
                }
                _ => ExitCode::FAILURE,
            }
        }
    }
}
