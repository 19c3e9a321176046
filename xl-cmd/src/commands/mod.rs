//! One function per command: arguments become a request, the answer is printed.

mod bundle;
mod check;
mod create;
mod delete;
mod diff;
mod edit;
mod export_memory;
mod host;
mod info;
mod list;
mod managed_save;
mod pull;
mod replication;
mod revert;
mod verify;

use crate::args::{Arguments, Command, Output};
use crate::render;
use crate::terminal::Terminal;
use libxl_ext::plan::Request;
use libxl_ext::snapshot::{Done, Host};
use libxl_ext::{Error, ErrorKind, Result};
use serde::Serialize;
use serde_json::Value;
use std::io::Write;
use std::mem::ManuallyDrop;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{self, Stdio};

/// What a command has to work with.
struct Context {
    host: Host,
    /// The directory of the store.
    store: PathBuf,
    terminal: Terminal,
}

/// How a command ended that did what it should.
pub(crate) enum Answer {
    /// It did.
    Done,
    /// What was asked is not so, which is no failure.
    No,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Answer> {
    let host = match &arguments.command {
        Command::Start(args) if args.goes_on() => Host::connect_to_start()?,
        _ => Host::connect()?,
    };
    let host = host.with_store(&arguments.store);
    // The process ends, and with it all that is open: to close it piece by piece would only take longer.
    let context = ManuallyDrop::new(Context {
        host,
        store: arguments.store.clone(),
        terminal: Terminal::new(),
    });
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
        Command::ManagedSave(args) => managed_save::save(&context, args),
        Command::ManagedSaveStatus(args) => return managed_save::status(&context, args),
        Command::ManagedSaveList(args) => managed_save::list(&context, args),
        Command::ManagedSaveRemove(args) => managed_save::remove(&context, args),
        Command::ManagedSaveExport(args) => managed_save::export(&context, args),
        Command::Start(args) => managed_save::start(&context, args),
        Command::BlockPull(args) => pull::run(&context, args),
        Command::BlockPullInfo(args) => pull::info(&context, args),
        Command::BlockPullAbort(args) => pull::abort(&context, args),
        Command::BlockPullSetSpeed(args) => pull::set_speed(&context, args),
        Command::ReplicationPair(args) => replication::pair(&context, args),
        Command::ReplicationServe(args) => replication::serve(&context, args),
        Command::ReplicationStart(args) => replication::start(&context, args),
        Command::ReplicationKeep(args) => replication::keep(&context, args),
        Command::ReplicationCheckpoint(args) => replication::checkpoint(&context, args),
        Command::ReplicationStatus(args) => replication::status(&context, args),
        Command::ReplicationStop(args) => replication::stop(&context, args),
        Command::ReplicationFailover(args) => replication::fail_over(&context, args),
        Command::ReplicationResume(args) => replication::resume(&context, args),
        Command::HostShutdown(args) => host::shutdown(&context, args),
        Command::HostStart(args) => host::start(&context, args),
        Command::SnapshotExportMemory(args) => export_memory::run(&context, args),
    };
    context.terminal.finish();
    result.map(|()| Answer::Done)
}

/// What a command prints.
enum Said {
    Json(Value),
    Text(String),
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
        let (said, end) = self.attempt(domain, request, output, describe)?;
        match said {
            Said::Json(value) => print_json(&value)?,
            Said::Text(text) => print(&text)?,
        }
        end
    }

    /// The same, with what is to be printed, and whether everything is tidied up too.
    fn attempt(
        &self,
        domain: &str,
        request: &Request,
        output: Output,
        describe: impl FnOnce(&Done) -> String,
    ) -> Result<(Said, Result<()>)> {
        if output.plan {
            let plan = self.host.plan(domain, request, &self.terminal);
            self.terminal.finish();
            let plan = plan?;
            let said = if output.json {
                Said::Json(json(&plan)?)
            } else {
                Said::Text(plan.to_string())
            };
            return Ok((said, Ok(())));
        }
        let done = self.host.execute(domain, request, &self.terminal);
        self.terminal.finish();
        let done = done?;
        let said = if output.json {
            Said::Json(render::done_json(&self.host, &done)?)
        } else {
            Said::Text(describe(&done))
        };
        Ok((said, finish(done)))
    }
}

/// An operation that was completed and not tidied up is told as a failure.
fn finish(done: Done) -> Result<()> {
    match done.left_over {
        None => Ok(()),
        Some(error) => Err(error
            .while_doing(format!(
                "{} is done, but not all of its leftovers are removed",
                done.plan.title_within_domain()
            ))
            .hint("the next command for this domain goes on with it")),
    }
}

fn json(value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::Io, "write JSON").because(error))
}

/// What verifications end with, if they found something.
fn things_amiss(count: usize) -> String {
    match count {
        1 => "1 thing is not as it should be".into(),
        count => format!("{count} things are not as they should be"),
    }
}

/// Another process of this program, for the same store, which goes on when we end and of which nothing is read or heard.
fn own_command(context: &Context) -> std::io::Result<process::Command> {
    let mut command = process::Command::new(std::env::current_exe()?);
    command
        .arg("--store")
        .arg(&context.store)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    Ok(command)
}

fn print_json(value: &impl Serialize) -> Result<()> {
    print(&json_text(value)?)
}

/// JSON as it is printed.
fn json_text(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::new(ErrorKind::Io, "write JSON").because(error))?;
    Ok(format!("{text}\n"))
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
