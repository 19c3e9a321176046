//! The agent's side: one order, carried out as the command line would, and reported.

use super::protocol::{ABORT, Answer, Call, LINE_MAX, Level, Order, Report, VERSION};
use super::pull;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Observer, Progress};
use crate::model::name::SnapshotName;
use crate::plan::{
    CreateRequest, DeleteRequest, DeleteScope, ManagedSaveRequest, ManagedStartRequest, Request,
    RevertRequest,
};
use crate::port::Ports;
use crate::snapshot::Host;
use crate::store::{DEFAULT_ROOT, Store};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often progress is reported at most.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// Reports that may wait to be read before progress is no longer added to them.
const BACKLOG_MAX: usize = 64;

/// The way to the library. Sending never waits for it: an application that is busy with something else
/// must not keep a guest suspended.
pub struct Line {
    queue: Mutex<Option<Sender<Report>>>,
    backlog: Arc<AtomicUsize>,
    gone: Arc<AtomicBool>,
    socket: Arc<UnixStream>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Line {
    /// Speaks into `socket`.
    pub fn new(socket: UnixStream) -> Self {
        let (queue, reports) = channel();
        let backlog = Arc::new(AtomicUsize::new(0));
        let gone = Arc::new(AtomicBool::new(false));
        let (waiting, lost) = (Arc::clone(&backlog), Arc::clone(&gone));
        let socket = Arc::new(socket);
        let pipe = Arc::clone(&socket);
        let writer = std::thread::spawn(move || write_all(&pipe, &reports, &waiting, &lost));
        Self {
            queue: Mutex::new(Some(queue)),
            backlog,
            gone,
            socket,
            writer: Mutex::new(Some(writer)),
        }
    }

    /// Sends a report; progress only if the earlier ones are being read.
    pub fn send(&self, report: Report) {
        let crowded = self.backlog.load(Ordering::Relaxed) > BACKLOG_MAX;
        if crowded && matches!(report, Report::Progress(..)) {
            return;
        }
        if let Some(queue) = &*locked(&self.queue) {
            self.backlog.fetch_add(1, Ordering::Relaxed);
            // The writer ends only when the library is gone.
            let _ = queue.send(report);
        }
    }

    /// Nobody is there any more, though a process that the application forked may hold its end.
    fn hang_up(&self) {
        // It is connected as long as anybody could read.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Waits until everything was read, or nobody is there to read it.
    pub fn close(&self) {
        drop(locked(&self.queue).take());
        let writer = locked(&self.writer).take();
        // It does not panic; and there would be nobody to tell.
        let _ = writer.map(JoinHandle::join);
    }
}

/// Locks also what a panic left: there is no state that it could have left half-done.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_all(
    mut socket: &UnixStream,
    reports: &Receiver<Report>,
    backlog: &AtomicUsize,
    gone: &AtomicBool,
) {
    for report in reports {
        let mut text = serde_json::to_vec(&report).unwrap_or_default();
        text.push(b'\n');
        if socket.write_all(&text).is_err() {
            gone.store(true, Ordering::Relaxed);
            return;
        }
        backlog.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads the order from `socket`, carries it out on the host that `connect` finds, and reports. Returns
/// when the last report is sent.
///
/// The operation is to stop when `stop` is set, as it is when the library says so or the application ends. What is
/// returned is to be waited for though nobody wants to hear of it.
pub fn serve(
    socket: UnixStream,
    line: &Arc<Line>,
    stop: Arc<AtomicBool>,
    connect: impl FnOnce() -> Result<Ports>,
) -> Option<pull::Rest> {
    let mut reader = BufReader::new(socket.take(LINE_MAX as u64));
    let answer = read_order(&mut reader).and_then(|order| {
        let watcher = Arc::new(Watcher::new(Arc::clone(line), stop));
        let listener = Arc::clone(&watcher);
        let application = order.application;
        // Both end with the process.
        std::thread::spawn(move || listener.listen(reader));
        let waiter = Arc::clone(&watcher);
        std::thread::spawn(move || waiter.outlive(application));
        let done = catch_unwind(AssertUnwindSafe(|| carry_out(&order, &watcher, connect)));
        done.unwrap_or_else(|_| {
            let bug = "the agent met a fault of its own, which the log describes";
            Err(Error::new(ErrorKind::Toolstack, bug)
                .hint("the next command for this domain takes back what was begun"))
        })
    });
    let (report, rest) = match answer {
        Ok((answer, rest)) => (Report::Done(answer), rest),
        Err(error) => (
            Report::Failed(error.kind().libxl_code(), error.report()),
            None,
        ),
    };
    line.send(report);
    rest
}

fn read_order(reader: &mut impl BufRead) -> Result<Order> {
    let broken = |why: String| {
        Error::new(
            ErrorKind::Toolstack,
            format!("the library's order cannot be read: {why}"),
        )
    };
    let mut text = String::new();
    reader
        .read_line(&mut text)
        .map_err(|error| broken(error.to_string()))?;
    // The number alone first: another version's order may look different.
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    let version = version.ok_or_else(|| broken("it has no version".into()))?;
    if version != u64::from(VERSION) {
        return Err(Error::new(
            ErrorKind::NewerVersion,
            format!(
                "the library speaks version {version} of the agent's protocol, and the agent {VERSION}"
            ),
        )
        .hint("install the library and its agent together"));
    }
    serde_json::from_value(value).map_err(|error| broken(error.to_string()))
}

fn carry_out(
    order: &Order,
    watcher: &Watcher,
    connect: impl FnOnce() -> Result<Ports>,
) -> Result<(Answer, Option<pull::Rest>)> {
    let request = request(&order.call)?;
    let root = order.store.clone();
    let root = root.unwrap_or_else(|| PathBuf::from(DEFAULT_ROOT));
    let host = Host::new(connect()?, Store::new(root)).for_toolstack();
    let answer = match pull::carry_out(&host, order, watcher) {
        None => execute(&host, order, request, watcher)?,
        Some(answer) => answer?,
    };
    let rest = pull::Rest::of(host, order, &answer);
    Ok((answer, rest))
}

fn execute(
    host: &Host,
    order: &Order,
    request: Option<Request>,
    watcher: &Watcher,
) -> Result<Answer> {
    let Some(request) = request else {
        if order.call == Call::HasManagedSaveImage {
            let saved = host.managed_save(&order.domain, watcher)?;
            return Ok(Answer::IsSaved(saved.is_some()));
        }
        let record = host.snapshots(&order.domain, watcher)?;
        let all = record.snapshots.iter();
        let all = all.map(|one| host.domain_snapshot(&record.domain, one));
        return Ok(Answer::Snapshots(all.collect()));
    };
    let done = host.execute(&order.domain, &request, watcher)?;
    if let Some(error) = &done.left_over {
        watcher.line.send(Report::Log(Level::Warn, error.report()));
    }
    if matches!(request, Request::ManagedStart(_)) {
        let domid = host.domid_of(&order.domain)?;
        return domid.map(Answer::Started).ok_or_else(|| {
            Error::new(
                ErrorKind::DomainState,
                format!("domain '{}' went on, and has ended since", order.domain),
            )
        });
    }
    if !matches!(request, Request::Create(_)) {
        return Ok(Answer::Nothing);
    }
    let record = done.record.find(&done.plan.snapshot)?;
    let snapshot = host.domain_snapshot(&done.record.domain, record);
    Ok(Answer::Created(Box::new(snapshot)))
}

/// The request that a call stands for; none where it only looks.
fn request(call: &Call) -> Result<Option<Request>> {
    Ok(match call.clone() {
        Call::Create {
            name,
            description,
            live,
            disk_only,
            memory_file,
            disks,
        } => Some(Request::Create(CreateRequest {
            name: name.map(SnapshotName::new).transpose()?,
            description,
            live,
            disk_only,
            memory_file,
            only_disks: disk_only && !disks.is_empty(),
            disks,
            ..CreateRequest::default()
        })),
        Call::Revert { name, state, force } => {
            Some(Request::Revert(RevertRequest { name, state, force }))
        }
        Call::Delete { name, children } => {
            let scope = if children {
                DeleteScope::WithChildren
            } else {
                DeleteScope::Only
            };
            Some(Request::Delete(DeleteRequest { name, scope }))
        }
        Call::ManagedSave => Some(Request::ManagedSave(ManagedSaveRequest::default())),
        Call::ManagedSaveRemove => Some(Request::ManagedSaveRemove),
        Call::ManagedStart => Some(Request::ManagedStart(ManagedStartRequest::default())),
        Call::List
        | Call::HasManagedSaveImage
        | Call::Pull { .. }
        | Call::PullAbort { .. }
        | Call::PullInfo { .. }
        | Call::PullWatch { .. } => None,
    })
}

/// Tells the library what goes on, and hears whether it wants that to stop.
struct Watcher {
    line: Arc<Line>,
    abort: Arc<AtomicBool>,
    now: Mutex<Now>,
}

/// The step that is under way, and when its progress was last reported.
struct Now {
    step: String,
    reported: Option<Instant>,
}

impl Watcher {
    fn new(line: Arc<Line>, abort: Arc<AtomicBool>) -> Self {
        Self {
            line,
            abort,
            now: Mutex::new(Now {
                step: String::new(),
                reported: None,
            }),
        }
    }

    /// Waits for the end of the application.
    fn outlive(&self, application: u32) {
        let Some(pid) = i32::try_from(application).ok().and_then(Pid::from_raw) else {
            return;
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => {
                let mut end = [PollFd::new(&process, PollFlags::IN)];
                while poll(&mut end, None) == Err(Errno::INTR) {}
            }
            Err(Errno::SRCH) => {}
            // Then the end of the socket has to do.
            Err(_) => return,
        }
        self.abort.store(true, Ordering::Relaxed);
        self.line.hang_up();
    }

    /// Reads on until the library wants an end or is gone.
    fn listen(&self, reader: impl BufRead) {
        for line in reader.lines() {
            if line.map_or(true, |line| line == ABORT) {
                break;
            }
        }
        self.abort.store(true, Ordering::Relaxed);
    }
}

impl Observer for Watcher {
    fn step(&self, what: &str) {
        self.line.send(Report::Log(Level::Detail, what.to_owned()));
        let mut now = locked(&self.now);
        what.clone_into(&mut now.step);
        now.reported = Some(Instant::now());
        let nothing_yet = Progress {
            done: 0,
            total: 0,
            bytes: false,
        };
        self.line
            .send(Report::Progress(now.step.clone(), nothing_yet));
    }

    fn progress(&self, progress: Progress) {
        let mut now = locked(&self.now);
        let due = now
            .reported
            .is_none_or(|last| last.elapsed() >= PROGRESS_INTERVAL);
        if due || progress.done == progress.total {
            now.reported = Some(Instant::now());
            self.line.send(Report::Progress(now.step.clone(), progress));
        }
    }

    fn note(&self, text: &str) {
        self.line.send(Report::Log(Level::Notice, text.to_owned()));
    }

    fn wants_abort(&self) -> bool {
        self.abort.load(Ordering::Relaxed) || self.line.gone.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::libxl_sys as sys;

    /// What the agent says to an order, on a host that cannot be reached.
    fn answer_to(order: &str) -> Vec<Report> {
        answer(order, || {
            Err(Error::new(ErrorKind::NoSuchDomain, "no host"))
        })
    }

    fn answer(order: &str, connect: impl FnOnce() -> Result<Ports>) -> Vec<Report> {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        writeln!(ours, "{order}").unwrap();
        let line = Arc::new(Line::new(theirs.try_clone().unwrap()));
        serve(theirs, &line, Arc::default(), connect);
        line.close();
        // The threads that listen keep the other end open: it is asked for what is there.
        ours.set_nonblocking(true).unwrap();
        let reports = BufReader::new(ours).lines().map_while(std::io::Result::ok);
        reports
            .map(|line| serde_json::from_str(&line).unwrap())
            .collect()
    }

    fn order(call: Call) -> String {
        let order = Order {
            version: VERSION,
            application: std::process::id(),
            store: None,
            domain: "g1".into(),
            call,
        };
        serde_json::to_string(&order).unwrap()
    }

    fn code(reports: &[Report]) -> i32 {
        match reports {
            [Report::Failed(code, _)] => *code,
            other => panic!("it said {other:?}"),
        }
    }

    #[test]
    fn a_failure_is_reported_with_its_code_and_text() {
        let notfound = sys::libxl_error_ERROR_DOMAIN_NOTFOUND;
        assert_eq!(
            answer_to(&order(Call::List)),
            [Report::Failed(notfound, "no host".into())]
        );
    }

    #[test]
    fn an_order_of_another_version_is_refused_whatever_it_looks_like() {
        let reports = answer_to(r#"{"version": 1, "everything": "else"}"#);
        assert_eq!(code(&reports), sys::libxl_error_ERROR_VERSION);
    }

    #[test]
    fn nonsense_is_refused() {
        let nothing_to_do = format!(r#"{{"version": {VERSION}}}"#);
        for nonsense in ["", "{", "[]", &nothing_to_do] {
            assert_eq!(code(&answer_to(nonsense)), sys::libxl_error_ERROR_FAIL);
        }
    }

    #[test]
    fn a_bad_name_is_refused_before_anything_is_asked_of_the_host() {
        let call = Call::Create {
            name: Some("../x".into()),
            description: None,
            live: false,
            disk_only: false,
            memory_file: None,
            disks: Vec::new(),
        };
        let reports = answer(&order(call), || panic!("it was asked"));
        assert_eq!(code(&reports), sys::libxl_error_ERROR_INVAL);
    }

    #[test]
    fn a_panic_is_a_failure() {
        let reports = answer(&order(Call::List), || panic!("on purpose"));
        assert_eq!(code(&reports), sys::libxl_error_ERROR_FAIL);
    }
}
