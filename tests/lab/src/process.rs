//! Commands of the machine that the lab runs on, each with a limit on its time.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What a command left behind.
#[derive(Debug)]
pub struct Output {
    /// The exit status; a command that a signal ended has 128 plus the signal's number.
    pub status: i32,
    /// Its standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Its standard error, likewise.
    pub stderr: String,
}

/// Where a command reads its standard input from.
#[derive(Debug)]
pub enum Input {
    /// It has none.
    Nothing,
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file or the end of a pipe.
    File(File),
    /// The output of a child process that runs at the same time.
    Child(std::process::ChildStdout),
}

/// Runs `command` to its end and collects its output.
///
/// # Errors
/// When it cannot be started, or does not end within `limit`; it is killed then. A status other than 0 is no error.
pub fn run(command: &mut Command, input: Input, limit: Duration) -> Result<Output> {
    let shown = show(command);
    let (stdin, bytes) = match input {
        Input::Nothing => (Stdio::null(), None),
        Input::Bytes(bytes) => (Stdio::piped(), Some(bytes)),
        Input::File(file) => (file.into(), None),
        Input::Child(pipe) => (pipe.into(), None),
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}; is its package installed?"))?;

    let writer = child.stdin.take().zip(bytes).map(|(mut pipe, bytes)| {
        // A command that ends without reading all of its input is judged by its status.
        thread::spawn(move || drop(pipe.write_all(&bytes)))
    });
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child, limit)?;
    let Some(status) = status else {
        bail!(
            "{shown} did not end within {} s and was killed",
            limit.as_secs()
        );
    };
    if let Some(writer) = writer {
        drop(writer.join());
    }
    Ok(Output {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

/// Runs `command` and returns its standard output.
///
/// # Errors
/// As [`run`], and when its status is not 0.
pub fn run_ok(command: &mut Command, limit: Duration) -> Result<String> {
    let output = run(command, Input::Nothing, limit)?;
    if output.status != 0 {
        bail!(
            "{} ended with {}: {}",
            show(command),
            output.status,
            output.stderr.trim()
        );
    }
    Ok(output.stdout)
}

/// Waits for `child` until `limit`; kills it then and returns `None`.
///
/// # Errors
/// When the child cannot be waited for.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<i32>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child
            .try_wait()
            .context("cannot wait for a child process")?
        {
            use std::os::unix::process::ExitStatusExt;
            let signal = status.signal().map(|signal| 128 + signal);
            return Ok(status.code().or(signal));
        }
        if Instant::now() >= end {
            drop(child.kill());
            drop(child.wait());
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(15));
    }
}

/// The start time of process `pid` in clock ticks since boot, which tells it from a later process with the same
/// number; `None` when there is no such process or it has ended.
pub fn start_time(pid: i32) -> Option<u64> {
    parse_start_time(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The name, in parentheses, may itself hold blanks and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // The state is field 3, the start time field 22.
    fields.nth(18)?.parse().ok()
}

/// Opens `path` for reading as a command's input.
///
/// # Errors
/// When it cannot be opened.
pub fn input_file(path: &Path) -> Result<Input> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Input::File(file))
}

fn collect<R: Read + Send + 'static>(pipe: Option<R>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What came before an error is still worth showing.
            drop(pipe.read_to_end(&mut bytes));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn show(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_of_a_name_with_parentheses() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 1000 9";
        assert_eq!(parse_start_time(stat), Some(777));
    }

    #[test]
    fn an_ended_process_has_no_start_time() {
        let stat = "12 (qemu) Z 1 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 1000 9";
        assert_eq!(parse_start_time(stat), None);
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let error = run(
            Command::new("sleep").arg("60"),
            Input::Nothing,
            Duration::from_millis(50),
        )
        .unwrap_err();
        assert!(error.to_string().contains("sleep 60 did not end"));
    }

    #[test]
    fn output_and_status_are_both_kept() {
        let output = run(
            Command::new("sh").args(["-c", "cat; echo no >&2; exit 3"]),
            Input::Bytes(b"yes".to_vec()),
            Duration::from_secs(10),
        )
        .unwrap();
        assert_eq!((output.status, output.stdout.as_str()), (3, "yes"));
        assert_eq!(output.stderr, "no\n");
    }
}
