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
    execute: &'static str,
    arguments: &'a C,
    id: u64,
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
    greeting: Option<Value>,
}

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

/// An open monitor in command mode.
pub(super) struct Monitor {
    reader: BufReader<UnixStream>,
    name: String,
    next_id: u64,
}

#[derive(Serialize)]
struct Capabilities {}

impl Command for Capabilities {
    const NAME: &'static str = "qmp_capabilities";
    type Answer = Value;
}

impl Monitor {
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let name = socket.display().to_string();
        let stream = UnixStream::connect(socket)
            .and_then(|stream| {
                stream.set_read_timeout(Some(ANSWER_LIMIT))?;
                stream.set_write_timeout(Some(ANSWER_LIMIT))?;
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
        Self::greet(stream, name)
    }

    /// Begins a conversation on a connection.
    pub(super) fn greet(stream: UnixStream, name: String) -> Result<Self> {
        let mut monitor = Self {
            reader: BufReader::new(stream),
            name,
            next_id: 1,
        };
        let greeting = monitor.receive(Instant::now() + ANSWER_LIMIT)?.greeting;
        if greeting.is_none() {
            return Err(monitor.broken("greet").because("it sent something else"));
        }
        monitor.run(&Capabilities {})?;
        Ok(monitor)
    }

    /// Runs a command and waits for its answer; events in between are logged and dropped.
    pub(super) fn run<C: Command>(&mut self, command: &C) -> Result<C::Answer> {
        let id = self.next_id;
        self.next_id += 1;
        let request = Request {
            execute: C::NAME,
            arguments: command,
            id,
        };
        let mut line =
            serde_json::to_vec(&request).map_err(|error| self.broken(C::NAME).because(error))?;
        line.push(b'\n');
        tracing::debug!("{}: {}", self.name, C::NAME);
        self.reader
            .get_mut()
            .write_all(&line)
            .map_err(|error| self.broken(C::NAME).because(error))?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let message = self.receive(deadline)?;
            if let Some(event) = message.event {
                tracing::debug!("{}: event {event}", self.name);
                continue;
            }
            if message.id != Some(id) {
                return Err(self.broken(C::NAME).because("it answered another request"));
            }
            if let Some(failure) = message.error {
                return Err(self.broken(C::NAME).because(failure));
            }
            let Some(answer) = message.answer else {
                return Err(self.broken(C::NAME).because("it answered nothing"));
            };
            return serde_json::from_value(answer)
                .map_err(|error| self.broken(C::NAME).because(error));
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Message> {
        read_line(&mut self.reader, deadline)
            .and_then(|line| serde_json::from_slice(&line).map_err(io::Error::from))
            .map_err(|error| self.broken("read an answer").because(error))
    }

    fn broken(&self, what: &str) -> Error {
        Error::new(ErrorKind::Toolstack, format!("{what} on {}", self.name))
    }
}

/// Reads a line. The deadline is for whatever came before it too: a QEMU that goes on sending, be it events
/// or the bytes of one line, does not keep us for ever.
fn read_line(reader: &mut impl BufRead, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        if Instant::now() >= deadline {
            return Err(io::Error::other("QEMU takes too long"));
        }
        if line.len() > LINE_MAX {
            return Err(io::Error::other("QEMU's line does not end"));
        }
        let bytes = match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
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
    Ok(line)
}

/// What the QEMU at the other end is understood to say to two commands, whatever these are.
#[cfg(fuzzing)]
pub(crate) fn converse(stream: UnixStream) -> Result<(Value, Vec<Value>)> {
    let mut monitor = Monitor::greet(stream, String::from("a fuzzer"))?;
    Ok((monitor.run(&Capabilities {})?, monitor.run(&Anything {})?))
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

    #[test]
    fn events_are_passed_over() {
        let (directory, server) =
            scripted(&["{\"event\":\"STOP\",\"data\":{}}\n{\"return\":{\"a\":1},\"id\":2}"]);
        let mut monitor = Monitor::connect(&directory.path().join("qmp")).unwrap();
        assert_eq!(monitor.run(&Capabilities {}).unwrap()["a"], 1);
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
        let mut monitor = Monitor::connect(&directory.path().join("qmp")).unwrap();
        let report = monitor.run(&Capabilities {}).unwrap_err().report();
        assert!(
            report.ends_with("QEMU: Device 'x' not found (GenericError)"),
            "{report}"
        );
    }

    #[test]
    fn an_answer_without_anything_in_it_is_no_success() {
        let (directory, _server) = scripted(&[r#"{"id":2}"#]);
        let mut monitor = Monitor::connect(&directory.path().join("qmp")).unwrap();
        let report = monitor.run(&Capabilities {}).unwrap_err().report();
        assert!(report.ends_with("it answered nothing"), "{report}");
    }

    #[test]
    fn a_qemu_that_goes_on_sending_does_not_keep_us() {
        let past = Instant::now();
        let error = read_line(&mut &b"{}\n"[..], past).unwrap_err();
        assert_eq!(error.to_string(), "QEMU takes too long");
        let soon = past + Duration::from_secs(60);
        let mut endless = BufReader::new(io::repeat(b' '));
        let error = read_line(&mut endless, soon).unwrap_err();
        assert_eq!(error.to_string(), "QEMU's line does not end");
        assert_eq!(read_line(&mut &b"{}\nx"[..], soon).unwrap(), b"{}\n");
    }

    #[test]
    fn a_closed_connection_and_a_foreign_answer_are_errors() {
        let (directory, _server) = scripted(&[]);
        let mut monitor = Monitor::connect(&directory.path().join("qmp")).unwrap();
        assert!(monitor.run(&Capabilities {}).is_err());
        let (directory, _server) = scripted(&[r#"{"return":{},"id":7}"#]);
        let mut monitor = Monitor::connect(&directory.path().join("qmp")).unwrap();
        assert!(
            monitor
                .run(&Capabilities {})
                .unwrap_err()
                .report()
                .contains("another request")
        );
    }
}
