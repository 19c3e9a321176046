//! One function per command: arguments become a request, the answer is printed.

mod bundle;
mod check;
mod create;
mod delete;
mod diff;
mod edit;
mod export_memory;
mod info;
mod list;
mod revert;
mod verify;

use crate::args::{Arguments, Command, Output};
use crate::render;
use crate::terminal::Terminal;
use libxl_ext::plan::Request;
use libxl_ext::snapshot::{Done, Host};
use libxl_ext::{Error, ErrorKind, Result};
use serde::Serialize;
use std::io::Write;

/// What a command has to work with.
struct Context {
    host: Host,
    terminal: Terminal,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let host = Host::connect()?.with_store(&arguments.store);
    let context = Context {
        host,
        terminal: Terminal::new(),
    };
    let result = match &arguments.command {
        Command::SnapshotCreate(args) => create::run(&context, args),
        Command::SnapshotList(args) => list::run(&context, args),
        Command::SnapshotInfo(args) => info::run(&context, args),
        Command::SnapshotRevert(args) => revert::run(&context, args),
        Command::SnapshotDelete(args) => delete::run(&context, args),
        Command::SnapshotVerify(args) => verify::run(&context, args),
        Command::SnapshotCheck(args) => check::run(&context, args),
        Command::SnapshotDiff(args) => diff::run(&context, args),
        Command::SnapshotRename(args) => edit::rename(&context, args),
        Command::SnapshotDescribe(args) => edit::describe(&context, args),
        Command::SnapshotExport(args) => bundle::export(&context, args),
        Command::SnapshotImport(args) => bundle::import(&context, args),
        Command::SnapshotExportMemory(args) => export_memory::run(&context, args),
    };
    context.terminal.finish();
    result
}

impl Context {
    /// A command that changes something: prints the plan, or does it and prints what was done.
    fn change(
        &self,
        domain: &str,
        request: &Request,
        output: Output,
        describe: impl FnOnce(&Done) -> String,
    ) -> Result<()> {
        if output.plan {
            let plan = self.host.plan(domain, request, &self.terminal)?;
            self.terminal.finish();
            return if output.json {
                print_json(&plan)
            } else {
                print(&plan.to_string())
            };
        }
        let done = self.host.execute(domain, request, &self.terminal)?;
        self.terminal.finish();
        if output.json {
            print_json(&render::done_json(&self.host, &done))?;
        } else {
            print(&describe(&done))?;
        }
        finish(done)
    }
}

/// An operation that was completed and not tidied up is told as a failure.
fn finish(done: Done) -> Result<()> {
    match done.left_over {
        None => Ok(()),
        Some(error) => Err(error
            .while_doing(format!(
                "{} of '{}' is done, but not all of its leftovers are removed",
                done.plan.operation.as_str(),
                done.plan.snapshot
            ))
            .hint("the next command for this domain goes on with it")),
    }
}

fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::new(ErrorKind::Io, "write JSON").because(error))?;
    print(&format!("{text}\n"))
}

/// Prints to standard output. A reader that has gone away is no failure of the command.
fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("write to standard output", error))
        }
        _ => Ok(()),
    }
}
