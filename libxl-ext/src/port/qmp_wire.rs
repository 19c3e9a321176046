//! One connection to a QEMU monitor: greeting, commands, replies.
//!
//! The types are our own few: see docs/ARCHITECTURE.md for what was measured against the `qapi` crate.

use crate::error::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long QEMU may take for one answer. A snapshot of a busy disk drains and flushes first.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// Longest line that is read, in bytes.
const LINE_MAX: usize = 16 << 20;

/// A command with the type of its answer.
pub(super) trait Command: Serialize {
    /// QEMU's name for it.
    const NAME: &'static str;
    /// What it returns.
    type Answer: DeserializeOwned;
}

#[derive(Serialize)]
struct Request<'a, C> {
    #[serde(flatten)]
    verb: Verb,
    arguments: &'a C,
    id: u64,
}

#[derive(Serialize)]
enum Verb {
    /// After the commands before it.
    #[serde(rename = "execute")]
    InTurn(&'static str),
    /// At once, also while another command keeps QEMU busy.
    #[serde(rename = "exec-oob")]
    OutOfBand(&'static str),
}

/// What QEMU sends. Which one it is shows by the field that is there.
#[derive(Deserialize)]
struct Message {
    id: Option<u64>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<QmpFailure>,
    event: Option<String>,
    #[serde(rename = "QMP")]
    greeting: Option<Greeting>,
}

#[derive(Deserialize)]
struct Greeting {
    #[serde(default)]
    capabilities: Vec<String>,
}

/// QEMU's name for what [`Verb::OutOfBand`] needs.
const OUT_OF_BAND: &str = "oob";

/// QEMU's own account of a failure.
#[derive(Debug, Deserialize, thiserror::Error)]
#[error("QEMU: {desc} ({class})")]
struct QmpFailure {
    class: String,
    desc: String,
}

/// Whether QEMU understood a command and would not do it.
pub(super) fn is_refusal(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<QmpFailure>)
}

/// Whether a command had to be ended by another one: [`Monitor::run_within`].
pub(super) fn took_way_out(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<WayOutTaken>)
}

/// An open monitor in command mode.
pub(super) struct Monitor {
    reader: BufReader<UnixStream>,
    /// The beginning of a line whose end had not come in time.
    begun: Vec<u8>,
    name: String,
    next_id: u64,
    limit: Duration,
}

/// On what terms one talks to a QEMU.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    /// How long it may take for one answer.
    pub(super) limit: Duration,
    /// Whether a command may have to be ended by another one: see [`Monitor::run_within`].
    pub(super) out_of_band: bool,
}

/// Those of whoever asks a QEMU that waits for nobody else.
pub(super) const USUAL: Terms = Terms {
    limit: ANSWER_LIMIT,
    out_of_band: false,
};

#[derive(Default, Serialize)]
struct Capabilities {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    enable: Vec<&'static str>,
}

impl Command for Capabilities {
    const NAME: &'static str = "qmp_capabilities";
    type Answer = Value;
}

impl Monitor {
    pub(super) fn connect(socket: &Path, terms: Terms) -> Result<Self> {
        let name = socket.display().to_string();
        let stream = UnixStream::connect(socket)
            .and_then(|stream| {
                stream.set_write_timeout(Some(terms.limit))?;
                Ok(stream)
            })
            .map_err(|error| {
                Error::new(
                    ErrorKind::Toolstack,
                    format!("connect to QEMU's monitor {name}"),
                )
                .because(error)
                .hint("the domain has no running QEMU: are its disks on the qdisk backend?")
            })?;
        Self::greet_on(stream, name, terms)
    }

    /// Begins a conversation on a connection.
    #[cfg(fuzzing)]
    pub(super) fn greet(stream: UnixStream, name: String) -> Result<Self> {
        Self::greet_on(stream, name, USUAL)
    }

    fn greet_on(stream: UnixStream, name: String, terms: Terms) -> Result<Self> {
        let mut monitor = Self {
            reader: BufReader::new(stream),
            begun: Vec::new(),
            name,
            next_id: 1,
            limit: terms.limit,
        };
        let deadline = Instant::now() + terms.limit;
        let greeting = loop {
            let heard = monitor.receive(deadline);
            let heard = heard.map_err(|error| monitor.unreadable(error))?;
            // An event that was on its way to whoever was connected before.
            if heard.event.is_none() {
                break heard.greeting;
            }
        };
        let Some(greeting) = greeting else {
            return Err(monitor.broken("greet").because("it sent something else"));
        };
        let mut enable = Vec::new();
        if terms.out_of_band {
            if !greeting.capabilities.iter().any(|it| it == OUT_OF_BAND) {
                let what = format!("QEMU's monitor {} hears nobody", monitor.name);
                return Err(Error::new(ErrorKind::Unsupported, what)
                    .because(format!("it does not offer '{OUT_OF_BAND}'"))
                    .hint("QEMU 2.12 and newer does"));
            }
            enable.push(OUT_OF_BAND);
        }
        monitor.run(&Capabilities { enable })?;
        Ok(monitor)
    }

    /// Runs a command and waits for its answer; events in between are logged and dropped.
    pub(super) fn run<C: Command>(&mut self, command: &C) -> Result<C::Answer> {
        let id = self.send(Verb::InTurn(C::NAME), command)?;
        let answer = self.answer_to(C::NAME, id, Instant::now() + self.limit);
        self.understand::<C>(answer.map_err(|error| self.unreadable(error))?)
    }

    /// Runs a command that waits for another host. If it has no answer in time, `way_out` is run beside it, which
    /// has to make it end.
    ///
    /// # Errors
    /// Those of the command; [`ErrorKind::Toolstack`] with [`WayOutTaken`] as its cause if the way out was needed,
    /// whatever the command said then.
    pub(super) fn run_within<C: Command, W: Command>(
        &mut self,
        command: &C,
        limit: Duration,
        way_out: &W,
    ) -> Result<C::Answer> {
        let id = self.send(Verb::InTurn(C::NAME), command)?;
        match self.answer_to(C::NAME, id, Instant::now() + limit) {
            Ok(message) => return self.understand::<C>(message),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(error) => return Err(self.unreadable(error)),
        }
        tracing::warn!("{}: {} takes too long: {}", self.name, C::NAME, W::NAME);
        let other = self.send(Verb::OutOfBand(W::NAME), way_out)?;
        let deadline = Instant::now() + self.limit;
        let mut missing = vec![id, other];
        while !missing.is_empty() {
            let message = self.receive(deadline);
            let message = message.map_err(|error| self.unreadable(error))?;
            missing.retain(|id| message.id != Some(*id));
            if let (Some(failure), true) = (message.error, message.id == Some(other)) {
                return Err(self.broken(W::NAME).because(failure));
            }
        }
        Err(self.broken(C::NAME).because(WayOutTaken(W::NAME)))
    }

    /// Runs a command beside whatever keeps QEMU busy.
    pub(super) fn run_out_of_band<C: Command>(&mut self, command: &C) -> Result<C::Answer> {
        let id = self.send(Verb::OutOfBand(C::NAME), command)?;
        let answer = self.answer_to(C::NAME, id, Instant::now() + self.limit);
        self.understand::<C>(answer.map_err(|error| self.unreadable(error))?)
    }

    fn send<C: Serialize>(&mut self, verb: Verb, arguments: &C) -> Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let (Verb::InTurn(name) | Verb::OutOfBand(name)) = verb;
        let request = Request {
            verb,
            arguments,
            id,
        };
        let mut line =
            serde_json::to_vec(&request).map_err(|error| self.broken(name).because(error))?;
        line.push(b'\n');
        tracing::debug!("{}: {name}", self.name);
        let sent = self.reader.get_mut().write_all(&line);
        sent.map_err(|error| self.broken(name).because(error))?;
        Ok(id)
    }

    fn answer_to(&mut self, name: &str, id: u64, deadline: Instant) -> io::Result<Message> {
        loop {
            let message = self.receive(deadline)?;
            if let Some(event) = &message.event {
                tracing::debug!("{}: event {event}", self.name);
                continue;
            }
            if message.id != Some(id) {
                let other = format!("it answered another request than {name}");
                return Err(io::Error::other(other));
            }
            return Ok(message);
        }
    }

    fn understand<C: Command>(&self, message: Message) -> Result<C::Answer> {
        if let Some(failure) = message.error {
            return Err(self.broken(C::NAME).because(failure));
        }
        let Some(answer) = message.answer else {
            return Err(self.broken(C::NAME).because("it answered nothing"));
        };
        serde_json::from_value(answer).map_err(|error| self.broken(C::NAME).because(error))
    }

    fn receive(&mut self, deadline: Instant) -> io::Result<Message> {
        let left = deadline.saturating_duration_since(Instant::now());
        let pause = left.max(Duration::from_millis(1));
        self.reader.get_ref().set_read_timeout(Some(pause))?;
        read_line(&mut self.reader, &mut self.begun, deadline)?;
        let line = std::mem::take(&mut self.begun);
        serde_json::from_slice(&line).map_err(io::Error::from)
    }

    fn unreadable(&self, error: io::Error) -> Error {
        self.broken("read an answer").because(error)
    }

    fn broken(&self, what: &str) -> Error {
        Error::new(ErrorKind::Toolstack, format!("{what} on {}", self.name))
    }
}

/// Why a command has no answer of its own: another one had to end it.
#[derive(Debug, thiserror::Error)]
#[error("it waited for too long and was ended by {0}")]
pub(super) struct WayOutTaken(&'static str);

/// Reads a line to its end, behind what `line` has of it. The deadline is for whatever came before it too: a QEMU that
/// goes on sending, be it events or the bytes of one line, does not keep us for ever.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>, deadline: Instant) -> io::Result<()> {
    while line.last() != Some(&b'\n') {
        if Instant::now() >= deadline {
            let late = "QEMU takes too long";
            return Err(io::Error::new(io::ErrorKind::TimedOut, late));
        }
        if line.len() > LINE_MAX {
            return Err(io::Error::other("QEMU's line does not end"));
        }
        let bytes = match reader.fill_buf() {
            // The deadline is looked at anew.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted
                        | io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                ) =>
            {
                continue;
            }
            read => read?,
        };
        if bytes.is_empty() {
            return Err(io::Error::other("QEMU closed the connection"));
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        line.extend_from_slice(&bytes[..taken]);
        reader.consume(taken);
    }
    Ok(())
}

/// What the QEMU at the other end is understood to say to two commands, whatever these are.
#[cfg(fuzzing)]
pub(crate) fn converse(stream: UnixStream) -> Result<(Value, Vec<Value>)> {
    let mut monitor = Monitor::greet(stream, String::from("a fuzzer"))?;
    Ok((
        monitor.run(&Capabilities::default())?,
        monitor.run(&Anything {})?,
    ))
}

#[cfg(fuzzing)]
#[derive(Serialize)]
struct Anything {}

#[cfg(fuzzing)]
impl Command for Anything {
    const NAME: &'static str = "anything";
    type Answer = Vec<Value>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    /// A monitor that says what it is told to, and returns what it was sent.
    fn scripted(answers: &'static [&'static str]) -> (tempfile::TempDir, JoinHandle<Vec<String>>) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("qmp")).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut sent = Vec::new();
            stream.write_all(b"{\"QMP\":{\"version\":{}}}\n").unwrap();
            for answer in [&r#"{"return":{},"id":1}"#].into_iter().chain(answers) {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                sent.push(line);
                writeln!(stream, "{answer}").unwrap();
            }
            sent
        });
        (directory, server)
    }

    /// QEMU may send one, that was on its way to whoever was connected before, to the next one before it greets.
    #[test]
    fn an_event_before_the_greeting_is_passed_over_and_an_answer_is_not() {
        let greeted = |first: &str| {
            let (ours, mut qemus) = UnixStream::pair().unwrap();
            let said = "{\"QMP\":{\"version\":{}}}\n{\"return\":{},\"id\":1}";
            writeln!(qemus, "{first}\n{said}").unwrap();
            Monitor::greet_on(ours, "qmp".into(), USUAL).map(drop)
        };
        greeted(r#"{"event":"JOB_STATUS_CHANGE","data":{"status":"ready"}}"#).unwrap();
        let refused = greeted(r#"{"return":{},"id":9}"#).unwrap_err();
        assert!(
            refused.report().contains("something else"),
            "{}",
            refused.report()
        );
    }

    #[test]
    fn events_are_passed_over() {
        let (directory, server) =
            scripted(&["{\"event\":\"STOP\",\"data\":{}}\n{\"return\":{\"a\":1},\"id\":2}"]);
        let mut monitor = Monitor::connect(&directory.path().join("qmp"), USUAL).unwrap();
        assert_eq!(monitor.run(&Capabilities::default()).unwrap()["a"], 1);
        let sent = server.join().unwrap();
        assert!(
            sent[1].contains(r#""execute":"qmp_capabilities""#),
            "{sent:?}"
        );
    }

    #[test]
    fn qemus_own_words_reach_the_user() {
        let (directory, _server) = scripted(&[
            r#"{"error":{"class":"GenericError","desc":"Device 'x' not found"},"id":2}"#,
        ]);
        let mut monitor = Monitor::connect(&directory.path().join("qmp"), USUAL).unwrap();
        let report = monitor.run(&Capabilities::default()).unwrap_err().report();
        assert!(
            report.ends_with("QEMU: Device 'x' not found (GenericError)"),
            "{report}"
        );
    }

    #[test]
    fn an_answer_without_anything_in_it_is_no_success() {
        let (directory, _server) = scripted(&[r#"{"id":2}"#]);
        let mut monitor = Monitor::connect(&directory.path().join("qmp"), USUAL).unwrap();
        let report = monitor.run(&Capabilities::default()).unwrap_err().report();
        assert!(report.ends_with("it answered nothing"), "{report}");
    }

    #[test]
    fn a_qemu_that_goes_on_sending_does_not_keep_us() {
        let past = Instant::now();
        let late = read_line(&mut &b"{}\n"[..], &mut Vec::new(), past).unwrap_err();
        assert_eq!(late.to_string(), "QEMU takes too long");
        let soon = past + Duration::from_secs(60);
        let mut endless = BufReader::new(io::repeat(b' '));
        let error = read_line(&mut endless, &mut Vec::new(), soon).unwrap_err();
        assert_eq!(error.to_string(), "QEMU's line does not end");
        let mut line = b"{".to_vec();
        read_line(&mut &b"}\nx"[..], &mut line, soon).unwrap();
        assert_eq!(line, b"{}\n", "what had come of it before counts");
    }

    #[test]
    fn a_command_that_waits_is_ended_by_another_one_out_of_band() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("qmp")).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut sent = Vec::new();
            let mut hear = || {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                sent.push(line);
            };
            let mut say = |text: &str| stream.write_all(text.as_bytes()).unwrap();
            say("{\"QMP\":{\"capabilities\":[\"oob\"]}}\n");
            hear();
            say("{\"return\":{},\"id\":1}\n");
            hear();
            // Half of a line comes in time.
            say("{\"event\":");
            hear();
            say("\"X\"}\n{\"return\":{},\"id\":3}\n{\"return\":{},\"id\":2}\n");
            hear();
            say("{\"return\":{\"a\":1},\"id\":4}\n");
            sent
        });
        let terms = Terms {
            out_of_band: true,
            ..USUAL
        };
        let mut monitor = Monitor::connect(&directory.path().join("qmp"), terms).unwrap();
        let (command, limit) = (Capabilities::default(), Duration::from_millis(100));
        let error = monitor.run_within(&command, limit, &command).unwrap_err();
        assert!(
            error.report().contains("waited for too long"),
            "{}",
            error.report()
        );
        assert_eq!(
            monitor.run(&command).unwrap()["a"],
            1,
            "it is in step again"
        );
        let sent = server.join().unwrap();
        assert!(sent[0].contains(r#""enable":["oob"]"#), "{sent:?}");
        assert!(
            sent[2].contains(r#""exec-oob":"qmp_capabilities""#),
            "{sent:?}"
        );
    }

    #[test]
    fn a_monitor_without_what_is_wanted_of_it_is_refused() {
        let (directory, _server) = scripted(&[]);
        let terms = Terms {
            out_of_band: true,
            ..USUAL
        };
        let error = Monitor::connect(&directory.path().join("qmp"), terms).err();
        assert_eq!(
            error.map(|error| error.kind()),
            Some(ErrorKind::Unsupported)
        );
    }

    #[test]
    fn a_closed_connection_and_a_foreign_answer_are_errors() {
        let (directory, _server) = scripted(&[]);
        let mut monitor = Monitor::connect(&directory.path().join("qmp"), USUAL).unwrap();
        assert!(monitor.run(&Capabilities::default()).is_err());
        let (directory, _server) = scripted(&[r#"{"return":{},"id":7}"#]);
        let mut monitor = Monitor::connect(&directory.path().join("qmp"), USUAL).unwrap();
        assert!(
            monitor
                .run(&Capabilities::default())
                .unwrap_err()
                .report()
                .contains("another request")
        );
    }
}
