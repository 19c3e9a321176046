//! `replication-pair`, `-serve`, `-start`, `-checkpoint`, `-status`, `-stop`, `-resume`, and the process that keeps it going

mod failover;
mod pair;

pub(super) use failover::run as fail_over;
pub(super) use pair::run as pair;

use super::{Context, json_text, own_command, print, print_json};
use crate::args::{
    ReplicationKeep, ReplicationOf, ReplicationServe, ReplicationStart, ReplicationStatus,
    ReplicationStop,
};
use crate::as_xl::dry_run;
use crate::render;
use crate::terminal::Terminal;
use jiff::tz::TimeZone;
use libxl_ext::event::Observer;
use libxl_ext::model::replica::{ReplicationRecord, Role};
use libxl_ext::replication::Server;
use libxl_ext::replication::keeper::{self, Progress};
use libxl_ext::snapshot::{ReplicationInfo, ReplicationRequest};
use libxl_ext::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Longest configuration file that goes along, in bytes.
const CONFIGURATION_MAX: u64 = 256 << 10;

/// Between two looks of `--watch`.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What the process that keeps it going tells the one that started it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Told {
    /// What it is doing.
    Step(String),
    /// Everything is copied.
    Ready(Progress),
    /// It did not start.
    Failed(String),
}

pub(super) fn serve(context: &Context, args: &ReplicationServe) -> Result<()> {
    let mut replicas = context.host.replicas();
    replicas.images.clone_from(&args.images);
    let server = Server::bind(&args.listen, replicas)?;
    print(&format!("listening at {}\n", server.address()?))?;
    server.serve(&context.terminal)
}

pub(super) fn start(context: &Context, args: &ReplicationStart) -> Result<()> {
    let domain_config = args.domain_config.as_deref().map(configuration);
    let request = ReplicationRequest {
        peer: args.secondary.clone(),
        pair: args.pair.clone(),
        pace: args.pace(),
        memory: args.memory,
        domain_config: domain_config.transpose()?,
    };
    begin(context, &args.domain, &request, args.json)
}

pub(super) fn resume(context: &Context, args: &ReplicationOf) -> Result<()> {
    let request = context.host.replication_request(&args.domain)?;
    begin(context, &args.domain, &request, args.json)
}

/// The text of a configuration file that the real `xl` takes.
fn configuration(file: &Path) -> Result<String> {
    dry_run::of_file(file)?;
    let what = || format!("read {}", file.display());
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(CONFIGURATION_MAX + 1).read_to_string(&mut text))
        .map_err(|error| Error::io(what(), error))?;
    if text.len() as u64 > CONFIGURATION_MAX {
        return Err(Error::new(ErrorKind::InvalidRequest, what())
            .because(format!("it has more than {CONFIGURATION_MAX} bytes")));
    }
    Ok(text)
}

fn begin(context: &Context, domain: &str, request: &ReplicationRequest, json: bool) -> Result<()> {
    let record = context
        .host
        .prepare_replication(domain, request, &context.terminal)?;
    let begun = keep_in_background(context, &record);
    context.terminal.finish();
    begun.map_err(|error| {
        error.while_doing(format!("domain '{}' is not replicated", record.domain))
    })?;
    show(context, Some(&record.domain), json)
}

/// Starts the process that stays, and waits until it has copied everything.
fn keep_in_background(context: &Context, record: &ReplicationRecord) -> Result<()> {
    let Role::Primary(primary) = &record.role else {
        return Err(Error::new(ErrorKind::DomainState, "this is no primary"));
    };
    let failed = |error: std::io::Error| Error::io("start the process that keeps it going", error);
    let mut child = own_command(context)
        .and_then(|mut command| {
            command
                .args([
                    "replication-keep",
                    "--session",
                    &primary.session.to_string(),
                ])
                .args(["--", &record.domain])
                .stdout(Stdio::piped())
                .spawn()
        })
        .map_err(failed)?;
    let Some(stdout) = child.stdout.take() else {
        return Err(failed(std::io::ErrorKind::BrokenPipe.into()));
    };
    let terminal = &context.terminal;
    let mut lines = BufReader::new(stdout).lines();
    let told = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            for line in &mut lines {
                match serde_json::from_str(&line?)? {
                    Told::Step(what) => terminal.step(&what),
                    told => return Ok(Some(told)),
                }
            }
            Ok(None)
        });
        while !reading.is_finished() {
            if terminal.wants_abort() {
                // What it carried is cut with it, and the guest goes on.
                let _ = child.kill();
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        reading.join().unwrap_or(Ok(None))
    });
    match told.map_err(|error: std::io::Error| failed(error))? {
        Some(Told::Ready(_)) => Ok(()),
        Some(Told::Failed(text)) => {
            let _ = child.wait();
            Err(Error::reported(ErrorKind::Toolstack, &text))
        }
        _ => {
            let _ = child.wait();
            let stopped = context
                .host
                .stop_replication(&record.domain, false, &context.terminal);
            let error = Error::new(
                ErrorKind::Aborted,
                "it was ended before everything was copied",
            );
            Err(match stopped {
                Ok(()) => error,
                Err(left) => error.hint(left.report()),
            })
        }
    }
}

/// Tells what it does, until nobody listens any more.
struct Teller;

impl Teller {
    fn tell(told: &Told) {
        // Who has started us may have gone, which is no reason to end.
        if let Ok(line) = serde_json::to_string(told) {
            let _ = writeln!(std::io::stdout(), "{line}");
        }
    }
}

/// The observer of the process that stays: it tells the one that waits for it, and hears of signals as others do.
struct Keeping<'a>(&'a Terminal);

impl Observer for Keeping<'_> {
    fn step(&self, what: &str) {
        Teller::tell(&Told::Step(what.to_owned()));
    }

    fn progress(&self, _: libxl_ext::event::Progress) {}

    fn note(&self, text: &str) {
        tracing::info!("{text}");
    }

    fn wants_abort(&self) -> bool {
        self.0.wants_abort()
    }
}

pub(super) fn keep(context: &Context, args: &ReplicationKeep) -> Result<()> {
    let ready = |progress: &Progress| {
        Teller::tell(&Told::Ready(progress.clone()));
        Ok(())
    };
    let kept = context.host.keep_replication(
        &args.domain,
        args.session,
        &Keeping(&context.terminal),
        ready,
    );
    kept.inspect_err(|error| Teller::tell(&Told::Failed(error.report())))
}

pub(super) fn checkpoint(context: &Context, args: &ReplicationOf) -> Result<()> {
    let made = context
        .host
        .tell_keeper(&args.domain, keeper::Command::Checkpoint)?;
    if args.json {
        return print_json(&made);
    }
    let number = made.checkpoint.map_or(0, |checkpoint| checkpoint.number);
    let pause = Duration::from_micros(made.pause_us.unwrap_or(0));
    let memory = made
        .memory_bytes
        .map(|bytes| format!(" with {} of memory", render::mebibytes(bytes)));
    print(&format!(
        "Domain '{}': checkpoint {number}{}; the guest stood still for {:.1} ms\n",
        args.domain,
        memory.unwrap_or_default(),
        pause.as_secs_f64() * 1e3
    ))
}

pub(super) fn status(context: &Context, args: &ReplicationStatus) -> Result<()> {
    if !args.watch {
        return show(context, args.domain.as_deref(), args.json);
    }
    let mut shown = None;
    while !context.terminal.wants_abort() {
        let infos = context.host.replications(args.domain.as_deref())?;
        let said = said(&infos, args.json)?;
        if shown.as_ref() != Some(&said) {
            print(&said)?;
            shown = Some(said);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn show(context: &Context, domain: Option<&str>, json: bool) -> Result<()> {
    let infos = context.host.replications(domain)?;
    print(&said(&infos, json)?)
}

fn said(infos: &[ReplicationInfo], json: bool) -> Result<String> {
    if json {
        json_text(&infos)
    } else {
        Ok(render::replications(infos, &TimeZone::system()))
    }
}

pub(super) fn stop(context: &Context, args: &ReplicationStop) -> Result<()> {
    let stopped = context
        .host
        .stop_replication(&args.domain, args.forget, &context.terminal);
    context.terminal.finish();
    stopped?;
    print(&format!(
        "Domain '{}': replication is stopped\n",
        args.domain
    ))
}
