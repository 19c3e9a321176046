//! The process that keeps a domain's replication going on the primary: it carries what QEMU writes, feels the secondary's
//! pulse, makes checkpoints, and hears commands. While it lives it alone writes down how replication is.
//!
//! ```text
//!   Starting --> Running --> Broken --> Lost     the secondary is asked whether it has failed over
//!                   |          |
//!                   +----------+--> Stopped      by a command
//! ```
//! If it is killed, what it carried is cut, so QEMU's mirrors end by themselves and the guest goes on.

mod memory;

use super::pair::Key;
use super::protocol::{Open, Refused, Why};
use super::qdisk::{Guest, Limits, Pulse, checkpoint, end_mirrors, length_of, register};
use super::remote::{Agreed, Line, RemoteSecondary, alive, ask_secondary};
use super::tunnel::{End, Tunnel};
use super::{Mode, Registry};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::model::replica::{
    Checkpoint, Primary, PrimaryState, ReplicationRecord, Role, WantedDisk,
};
use crate::plan::now;
use crate::port::{Worker, own_process};
use crate::store::{DomainStore, absent_is_fine, private_directory};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Longest line of a command or an answer, in bytes.
const LINE_MAX: u64 = 64 << 10;

/// How long somebody may take to say a command.
const COMMAND_LIMIT: Duration = Duration::from_secs(5);

/// How often a secondary of which nothing was heard is asked whether it has failed over.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// How often the secondary's pulse is felt in the time for which it may be silent.
const BEATS: u32 = 4;

/// Shortest and longest time between two looks at whether all is well.
const LOOKS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// What a keeper is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// Say how it is.
    Status,
    /// Make a checkpoint.
    Checkpoint,
    /// End replication, and yourself.
    Stop,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Said {
    /// How it is, now that it is done.
    Done(Progress),
    /// In words, with the way out.
    Failed(String),
}

/// How replication is, as its keeper knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What it is doing.
    pub state: PrimaryState,
    /// The last checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// For how long the guest stood still for that, in microseconds.
    pub pause_us: Option<u64>,
    /// Bytes of memory that were sent for it, where it is of the memory too.
    pub memory_bytes: Option<u64>,
}

/// What a keeper begins with.
pub struct Setup<'a> {
    /// The domain's part of the store.
    pub store: DomainStore,
    /// Where its sockets go: a short path.
    pub run: &'a Path,
    /// What is written down of it: [`PrimaryState::Starting`].
    pub record: ReplicationRecord,
    /// The key of the pair.
    pub key: Key,
    /// The domain's QEMU.
    pub qemu: Worker,
    /// Who writes to its disks.
    pub guest: &'a dyn Guest,
    /// libxl's configuration of the domain, in JSON.
    pub configuration: String,
}

/// Replication, as long as its process lives.
pub struct Keeper<'a> {
    setup: Setup<'a>,
    primary: Primary,
    disks: Registry,
    secondary: Registry,
    tunnel: Tunnel,
    agreed: Arc<Agreed>,
    pause: Option<Duration>,
    memory_bytes: Option<u64>,
    directory: PathBuf,
}

/// Where a keeper's sockets are.
fn directory(run: &Path, session: Uuid) -> PathBuf {
    run.join(format!("xl-ext-keep-{}", session.simple()))
}

fn primary_of(record: &ReplicationRecord) -> Result<&Primary> {
    match &record.role {
        Role::Primary(primary) => Ok(primary),
        Role::Secondary(_) => Err(Error::new(
            ErrorKind::DomainState,
            format!(
                "domain '{}' is not replicated from this host",
                record.domain
            ),
        )),
    }
}

/// How long each part may take. What waits for the secondary is ended by the tunnel's being cut.
fn limits(primary: &Primary) -> Limits {
    Limits {
        pulse: primary.pace.heartbeat(),
        ..Limits::default()
    }
}

impl<'a> Keeper<'a> {
    /// Starts replication: the secondary first, then everything is copied, and the first checkpoint made. All disks, or
    /// none.
    ///
    /// # Errors
    /// Those of either side; nothing is left running then, and it is written down: as lost, if the other side has failed
    /// over.
    pub fn start(setup: Setup<'a>, observer: &dyn Observer) -> Result<Self> {
        let mut primary = primary_of(&setup.record)?.clone();
        primary.keeper = own_process();
        write_down(&setup, &primary)?;
        let directory = directory(setup.run, primary.session);
        let begun = begin(&setup, &primary, &directory, observer);
        let (disks, secondary, tunnel, agreed) = begun.map_err(|error| {
            primary.state = broken_by(&error);
            primary.keeper = None;
            let _ = std::fs::remove_dir_all(&directory);
            match write_down(&setup, &primary) {
                Ok(()) => error,
                Err(failed) => error.hint(format!(
                    "that could not be written down: {}",
                    failed.report()
                )),
            }
        })?;
        let mut keeper = Self {
            setup,
            primary,
            disks,
            secondary,
            tunnel,
            agreed,
            pause: None,
            memory_bytes: None,
            directory,
        };
        observer.step("make the first checkpoint");
        if let Err(error) = keeper.checkpoint() {
            keeper.break_off(&error);
            return Err(error);
        }
        keeper.say(PrimaryState::Running { since: now() })?;
        Ok(keeper)
    }

    /// How it is.
    pub fn progress(&self) -> Progress {
        Progress {
            state: self.primary.state.clone(),
            checkpoint: self.agreed.last(),
            pause_us: self
                .pause
                .map(|pause| u64::try_from(pause.as_micros()).unwrap_or(u64::MAX)),
            memory_bytes: self.memory_bytes,
        }
    }

    fn say(&mut self, state: PrimaryState) -> Result<()> {
        self.primary.state = state;
        write_down(&self.setup, &self.primary)
    }

    /// Makes the present what the secondary keeps.
    ///
    /// # Errors
    /// Those of either side. The guest goes on.
    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        if self.primary.memory {
            self.checkpoint_with_memory()?;
        } else {
            let begun = Instant::now();
            let cut = || self.tunnel.cut();
            checkpoint(self.setup.guest, &self.disks, &self.secondary, cut)?;
            self.pause = Some(begun.elapsed());
        }
        let last = self.agreed.last();
        last.ok_or_else(|| Error::new(ErrorKind::Toolstack, "the secondary made no checkpoint"))
    }

    fn is_running(&self) -> bool {
        matches!(self.primary.state, PrimaryState::Running { .. })
    }

    /// Whether all is well; breaks off if not.
    pub fn check(&mut self) {
        let trouble = self.tunnel.trouble();
        // A mirror that has failed may be the work of a failover: the secondary knows.
        let trouble = trouble.or_else(|| self.secondary.error_all().err());
        let trouble = trouble.or_else(|| self.disks.error_all().err());
        if let Some(error) = trouble {
            self.break_off(&error);
        }
    }

    /// The guest goes on alone.
    fn break_off(&mut self, error: &Error) {
        self.tunnel.cut();
        tracing::error!(
            "replication of '{}': {}",
            self.setup.record.domain,
            error.report()
        );
        let ended = self.disks.stop_all(false);
        let written = self.say(broken_by(error));
        for error in [ended.err(), written.err()].into_iter().flatten() {
            tracing::error!("{}", error.report());
        }
    }

    /// Whether the secondary has failed over meanwhile, if it can be asked.
    fn ask_whether_lost(&mut self) {
        let Primary { peer, pace, .. } = &self.primary;
        let domain = &self.setup.record.domain;
        let seen = ask_secondary(peer, &self.setup.key, domain, pace.heartbeat());
        if let Ok(Some(at)) = seen.map(|seen| seen.failed_over)
            && let Err(error) = self.say(PrimaryState::Lost { at })
        {
            tracing::error!("{}", error.report());
        }
    }

    /// Keeps it going until it is told to stop, or the observer wants it to end: then the guest goes on alone.
    ///
    /// # Errors
    /// If it cannot be told anything.
    pub fn run(mut self, observer: &dyn Observer) -> Result<()> {
        let path = self.directory.join("control");
        let failed =
            |error: std::io::Error| Error::io(format!("listen at {}", path.display()), error);
        absent_is_fine(std::fs::remove_file(&path)).map_err(failed)?;
        let listener = UnixListener::bind(&path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let pace = self.primary.pace;
        let look_every = (pace.heartbeat() / BEATS).clamp(LOOKS.0, LOOKS.1);
        let (mut looked, mut made, mut asked) = (Instant::now(), Instant::now(), Instant::now());
        while !observer.wants_abort() {
            if self.is_running() {
                if looked.elapsed() >= look_every {
                    self.check();
                    looked = Instant::now();
                }
                let is_due = pace.interval().is_some_and(|every| made.elapsed() >= every);
                if is_due && self.is_running() {
                    if let Err(error) = self.checkpoint() {
                        self.break_off(&error);
                    }
                    // From its end on: one that takes longer than the interval would leave the guest no time to run.
                    made = Instant::now();
                }
            } else if asked.elapsed() >= ASK_EVERY {
                self.ask_whether_lost();
                asked = Instant::now();
            }
            if matches!(self.primary.state, PrimaryState::Lost { .. }) {
                // It is written down, and there is nothing more to keep.
                return Ok(());
            }
            let until = pace.interval().map_or(look_every, |every| {
                every.saturating_sub(made.elapsed()).min(look_every)
            });
            if wait_for(&listener, until)
                && let Ok((stream, _)) = listener.accept()
                && self.attend(&stream)
            {
                return Ok(());
            }
        }
        if self.is_running() {
            let what = "the process that kept replication going was told to end";
            self.break_off(&Error::new(ErrorKind::Aborted, what));
        }
        Ok(())
    }

    /// Hears a command and answers it. Returns whether it is over.
    fn attend(&mut self, stream: &UnixStream) -> bool {
        let command = match hear(stream, COMMAND_LIMIT) {
            Ok(command) => command,
            Err(error) => {
                tracing::debug!("a command: {error}");
                return false;
            }
        };
        let (done, is_over) = match command {
            Command::Status => (Ok(()), false),
            Command::Checkpoint => (self.checkpoint_by_command(), false),
            Command::Stop => {
                let stopped = self.stop();
                (stopped, true)
            }
        };
        let said = match done {
            Ok(()) => Said::Done(self.progress()),
            Err(error) => Said::Failed(error.report()),
        };
        if let Err(error) = tell_line(stream, &said, COMMAND_LIMIT) {
            tracing::debug!("an answer: {error}");
        }
        is_over
    }

    fn checkpoint_by_command(&mut self) -> Result<()> {
        if !self.is_running() {
            let (domain, state) = (&self.setup.record.domain, &self.primary.state);
            let what = format!("replication of domain '{domain}' is {state}");
            let error = Error::new(ErrorKind::DomainState, what);
            return Err(error.hint(way_out(state)));
        }
        let made = self.checkpoint().map(drop);
        made.inspect_err(|error| self.break_off(error))
    }

    /// Ends replication on both sides, as far as they can be reached.
    fn stop(&mut self) -> Result<()> {
        if matches!(self.primary.state, PrimaryState::Lost { .. }) {
            return Ok(());
        }
        if self.is_running() {
            self.tunnel.cut();
            let stopped = self.disks.stop_all(false);
            if let Err(error) = self.secondary.stop_all(false) {
                // It will be told by the next start, or by its own command.
                tracing::warn!("{}", error.report());
            }
            stopped?;
        }
        self.say(PrimaryState::Stopped { at: now() })
    }
}

impl Drop for Keeper<'_> {
    fn drop(&mut self) {
        self.tunnel.cut();
        // What is left of it says nothing to anybody.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// What the user can do in a state.
pub(crate) fn way_out(state: &PrimaryState) -> &'static str {
    match state {
        PrimaryState::Starting => {
            "wait until everything is copied: `xl-ext replication-status --watch`"
        }
        PrimaryState::Running { .. } => "`xl-ext replication-stop` ends it",
        PrimaryState::Broken { .. } => {
            "`xl-ext replication-resume` copies everything again and goes on; `xl-ext replication-stop` gives it up"
        }
        PrimaryState::Stopped { .. } => "`xl-ext replication-start` starts it",
        PrimaryState::Lost { .. } => {
            "the domain is the other host's now: destroy it here, and replicate it back from there if it is to come back"
        }
    }
}

/// How it is after an error.
fn broken_by(error: &Error) -> PrimaryState {
    match Refused::of(error) {
        Some(Why::Lost { at, .. }) => PrimaryState::Lost { at },
        _ => PrimaryState::Broken {
            at: now(),
            why: error.report(),
        },
    }
}

/// Writes down how it is.
fn write_down(setup: &Setup<'_>, primary: &Primary) -> Result<()> {
    setup.store.remember_replication(&ReplicationRecord {
        role: Role::Primary(primary.clone()),
        ..setup.record.clone()
    })
}

type Begun = (Registry, Registry, Tunnel, Arc<Agreed>);

/// Everything up to the first checkpoint. What was begun is taken back if something fails.
fn begin(
    setup: &Setup<'_>,
    primary: &Primary,
    directory: &Path,
    observer: &dyn Observer,
) -> Result<Begun> {
    let limits = limits(primary);
    let heartbeat = primary.pace.heartbeat();
    let domain = &setup.record.domain;
    // One that was killed may have left some.
    end_mirrors(&setup.qemu, &primary.disks, limits)?;
    let wanted = primary.disks.iter().map(|disk| {
        Ok(WantedDisk {
            vdev: disk.vdev.clone(),
            format: disk.format,
            length: length_of(&setup.qemu, disk, limits)?,
        })
    });
    let wanted = Open {
        session: primary.session,
        generation: setup.record.generation,
        disks: wanted.collect::<Result<_>>()?,
        configuration: setup.configuration.clone(),
        domain_config: primary.domain_config.clone(),
    };
    observer.step(&format!("start the secondary at {}", primary.peer));
    let line = Arc::new(Line::connect(&primary.peer, &setup.key, domain, heartbeat)?);
    let agreed = Arc::default();
    let remote = RemoteSecondary {
        line,
        wanted,
        heartbeat,
        agreed: Arc::clone(&agreed),
    };
    let secondary = Registry::new();
    secondary.new_state(domain.clone(), Box::new(remote))?;
    secondary.start_all(Mode::Secondary)?;
    let begun = (|| {
        private_directory(directory)?;
        let mut tunnel = Tunnel::open(
            directory.join("nbd"),
            End {
                peer: primary.peer.clone(),
                key: setup.key.clone(),
                domain: domain.clone(),
                session: primary.session,
                heartbeat,
            },
        )?;
        let disks = Registry::new();
        register(
            &disks,
            &setup.qemu,
            &primary.disks,
            &tunnel.address(),
            limits,
            Pulse::FeltElsewhere,
        )?;
        // On connections that are there already: whoever floods the port with new ones does not make it beat slower.
        let felt = Line::connect(&primary.peer, &setup.key, domain, heartbeat)?;
        let session = primary.session;
        let pulse = move || alive(&felt, session, heartbeat);
        tunnel.begin_to_beat(heartbeat / BEATS, pulse)?;
        observer.step("copy the disks to the secondary");
        disks.start_all(Mode::Primary)?;
        Ok((disks, tunnel))
    })();
    match begun {
        Ok((disks, tunnel)) => Ok((disks, secondary, tunnel, agreed)),
        Err(error) => Err(match secondary.stop_all(false) {
            Ok(()) => error,
            Err(left) => Error::hint(
                error,
                format!("the secondary was not told: {}", left.report()),
            ),
        }),
    }
}

fn wait_for(listener: &UnixListener, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).ok();
    let mut ready = [PollFd::new(listener, PollFlags::IN)];
    matches!(poll(&mut ready, limit.as_ref()), Ok(1..))
}

fn hear<T: serde::de::DeserializeOwned>(
    stream: &UnixStream,
    limit: Duration,
) -> std::io::Result<T> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(limit))?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_MAX)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

fn tell_line<T: Serialize>(
    mut stream: &UnixStream,
    value: &T,
    limit: Duration,
) -> std::io::Result<()> {
    stream.set_write_timeout(Some(limit))?;
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Tells the keeper of a session something.
///
/// # Errors
/// [`ErrorKind::DomainState`] if there is none; [`ErrorKind::Toolstack`] if it does not answer, or what it says that
/// failed.
pub fn tell(run: &Path, session: Uuid, command: Command, limit: Duration) -> Result<Progress> {
    let path = directory(run, session).join("control");
    let stream = UnixStream::connect(&path).map_err(|error| {
        let what = "the process that kept replication going is not there";
        Error::new(ErrorKind::DomainState, what).because(error)
    })?;
    let said = tell_line(&stream, &command, COMMAND_LIMIT).and_then(|()| hear(&stream, limit));
    match said {
        Ok(Said::Done(progress)) => Ok(progress),
        Ok(Said::Failed(text)) => Err(Error::reported(ErrorKind::Toolstack, &text)),
        Err(error) => {
            let what = "talk to the process that keeps replication going";
            Err(Error::new(ErrorKind::Toolstack, what).because(error))
        }
    }
}
