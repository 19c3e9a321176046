//! What is known of each ctx: where its snapshots are, its operations, and what is due to be delivered.
//!
//! A process that was forked begins without any: its parent's operations are not its own, and a lock
//! that another thread held at the fork would stay locked for ever.

use super::Ctx;
use super::agent::{Agent, Heard, Stopper, program};
use super::header::libxl_ext_asyncprogress_how;
use super::operation::{Due, Ended, Fill, Meaning, ResultTo, meaning};
use crate::agent::protocol::{Call, Order, Report, VERSION};
use crate::error::{Error, ErrorKind, Result};
use crate::port::libxl_sys as sys;
use crate::types::ExtEvent;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How long a wait lasts before it looks whether another thread took what it waits for.
const LOOK_AGAIN: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// The contexts of one process.
struct Process {
    id: u32,
    contexts: Mutex<BTreeMap<usize, Arc<Context>>>,
}

static PROCESS: AtomicPtr<Process> = AtomicPtr::new(std::ptr::null_mut());

/// The contexts of this process.
fn contexts() -> MutexGuard<'static, BTreeMap<usize, Arc<Context>>> {
    let id = std::process::id();
    let found = PROCESS.load(Ordering::Acquire);
    // SAFETY: whatever was stored there is never freed.
    if let Some(process) = unsafe { found.as_ref() }.filter(|process| process.id == id) {
        return locked(&process.contexts);
    }
    let new = Box::into_raw(Box::new(Process {
        id,
        contexts: Mutex::default(),
    }));
    // Another thread may have been quicker; then its one counts, and ours is given up. That of the
    // parent process stays allocated: something in it may be in use by a thread that is no more.
    let stored = PROCESS.compare_exchange(found, new, Ordering::AcqRel, Ordering::Acquire);
    if stored.is_err() {
        // SAFETY: it came from a box and nobody has seen it.
        drop(unsafe { Box::from_raw(new) });
    }
    contexts()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it is held leaves nothing half-done that matters more than going on.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is known of a ctx.
pub(super) struct Context {
    ctx: Ctx,
    /// The program that carries out its operations.
    program: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    store: Option<PathBuf>,
    poller: Option<Poller>,
    running: Vec<Running>,
    calls: Vec<Waiting>,
    due: VecDeque<Due>,
    last_number: u64,
}

/// An asynchronous operation.
struct Running {
    number: u64,
    agent: Agent,
    to: ResultTo,
    progress_to: Option<libxl_ext_asyncprogress_how>,
    fill: Option<Fill>,
    asked_to_stop: bool,
}

/// A call that waits for its operation on a thread of the application's.
struct Waiting {
    number: u64,
    stopper: Stopper,
    asked_to_stop: bool,
}

/// What the application polls: readable while an agent has said something or something is due.
struct Poller {
    set: OwnedFd,
    due: OwnedFd,
}

impl Poller {
    fn new() -> Result<Self> {
        let failed = |error| Error::io("make a descriptor to poll", error);
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let due = eventfd(0, flags).map_err(failed)?;
        let poller = Self { set, due };
        poller.watch(poller.due.as_fd())?;
        Ok(poller)
    }

    fn watch(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let data = epoll::EventData::new_u64(0);
        epoll::add(&self.set, fd, data, epoll::EventFlags::IN)
            .map_err(|error| Error::io("watch the process of the operation", error))
    }

    /// Closing would not be enough: a process that was forked may have a copy.
    fn forget(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.set, fd);
    }

    fn tell(&self, something_is_due: bool) {
        // Neither can fail in a way that matters: full is set, and empty is clear.
        if something_is_due {
            let _ = rustix::io::write(&self.due, &1_u64.to_ne_bytes());
        } else {
            let _ = rustix::io::read(&self.due, &mut [0; 8]);
        }
    }
}

impl State {
    fn poller(&mut self) -> Result<&Poller> {
        if self.poller.is_none() {
            self.poller = Some(Poller::new()?);
        }
        self.poller
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Io, "make a descriptor to poll"))
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn push(&mut self, due: Due) {
        if let Due::Progress { operation, .. } = &due {
            let same = |other: &&mut Due| matches!(other, Due::Progress { operation: of, .. } if of == operation);
            if let Some(older) = self.due.iter_mut().find(same) {
                *older = due;
                return;
            }
        }
        self.due.push_back(due);
    }

    /// Hears what the agents have to say.
    fn hear(&mut self) {
        for mut operation in std::mem::take(&mut self.running) {
            let ended = loop {
                match operation.agent.hear() {
                    Heard::Reports(reports) if reports.is_empty() => break None,
                    Heard::Reports(reports) => {
                        let ended = reports
                            .into_iter()
                            .find_map(|report| self.understand(report, &operation));
                        if ended.is_some() {
                            break ended;
                        }
                    }
                    Heard::End => {
                        let (line, ended) = Ended::unexplained();
                        self.push(line);
                        break Some(ended);
                    }
                }
            };
            let Some(ended) = ended else {
                self.running.push(operation);
                continue;
            };
            if let Some(poller) = &self.poller {
                poller.forget(operation.agent.as_fd());
            }
            self.push(Due::Result {
                to: operation.to,
                ended,
                fill: operation.fill,
            });
        }
    }

    /// Notes what is due because of a report; returns how the operation ended, if it did.
    fn understand(&mut self, report: Report, operation: &Running) -> Option<Ended> {
        match meaning(report, operation.number, operation.progress_to) {
            Meaning::Nothing => None,
            Meaning::Due(due) => {
                self.push(due);
                None
            }
            Meaning::End(line, ended) => {
                if let Some(line) = line {
                    self.push(line);
                }
                Some(ended)
            }
        }
    }

    fn tell(&self) {
        if let Some(poller) = &self.poller {
            poller.tell(!self.due.is_empty());
        }
    }
}

impl Context {
    /// That of a ctx, which begins to be known here if it was not.
    pub(super) fn of(ctx: Ctx) -> Arc<Self> {
        let new = || Arc::new(Self::new(ctx, program()));
        Arc::clone(contexts().entry(ctx.0 as usize).or_insert_with(new))
    }

    fn new(ctx: Ctx, program: PathBuf) -> Self {
        Self {
            ctx,
            program,
            state: Mutex::default(),
        }
    }

    /// Forgets a ctx, after its operations have ended.
    pub(super) fn release(ctx: Ctx) {
        let Some(context) = contexts().remove(&(ctx.0 as usize)) else {
            return;
        };
        context.end_operations();
    }

    /// Stops all asynchronous operations and waits for their ends, of which nobody will hear.
    fn end_operations(&self) {
        let running = std::mem::take(&mut self.state().running);
        for operation in &running {
            operation.agent.stopper().stop();
        }
        for mut operation in running {
            while operation.agent.hear() != Heard::End {
                wait_for(operation.agent.as_fd(), None);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Keeps the snapshots of later calls below another directory.
    pub(super) fn set_store(&self, store: Option<PathBuf>) {
        self.state().store = store;
    }

    fn order(&self, domain: String, call: Call) -> Order {
        Order {
            version: VERSION,
            application: std::process::id(),
            store: self.state().store.clone(),
            domain,
            call,
        }
    }

    /// Starts an operation, whose result goes to `to`.
    ///
    /// # Errors
    /// If the agent cannot be started; there will be no result then.
    pub(super) fn start(
        &self,
        domain: String,
        call: Call,
        to: ResultTo,
        progress_to: Option<libxl_ext_asyncprogress_how>,
        fill: Option<Fill>,
    ) -> Result<()> {
        let order = self.order(domain, call);
        self.state().poller()?;
        let agent = Agent::start(&self.program, &order)?;
        let mut state = self.state();
        state.poller()?.watch(agent.as_fd())?;
        let number = state.next_number();
        state.running.push(Running {
            number,
            agent,
            to,
            progress_to,
            fill,
            asked_to_stop: false,
        });
        Ok(())
    }

    /// Carries out an operation and returns when it has ended. Log lines and progress are delivered
    /// meanwhile, on this thread.
    ///
    /// # Errors
    /// If the agent cannot be started.
    pub(super) fn call(
        &self,
        domain: String,
        call: Call,
        progress_to: Option<libxl_ext_asyncprogress_how>,
    ) -> Result<Ended> {
        let mut agent = Agent::start(&self.program, &self.order(domain, call))?;
        let number = {
            let mut state = self.state();
            let number = state.next_number();
            state.calls.push(Waiting {
                number,
                stopper: agent.stopper(),
                asked_to_stop: false,
            });
            number
        };
        let ended = self.listen(&mut agent, number, progress_to);
        self.state().calls.retain(|call| call.number != number);
        Ok(ended)
    }

    fn listen(
        &self,
        agent: &mut Agent,
        number: u64,
        progress_to: Option<libxl_ext_asyncprogress_how>,
    ) -> Ended {
        loop {
            let reports = match agent.hear() {
                Heard::Reports(reports) => reports,
                Heard::End => {
                    let (line, ended) = Ended::unexplained();
                    line.deliver(self.ctx);
                    return ended;
                }
            };
            for report in reports {
                match meaning(report, number, progress_to) {
                    Meaning::Nothing => {}
                    Meaning::Due(due) => self.deliver_or_queue(due),
                    Meaning::End(line, ended) => {
                        line.map(|line| line.deliver(self.ctx));
                        return ended;
                    }
                }
            }
            wait_for(agent.as_fd(), None);
        }
    }

    fn deliver_or_queue(&self, due: Due) {
        if due.is_event() {
            let mut state = self.state();
            state.push(due);
            state.tell();
        } else {
            due.deliver(self.ctx);
        }
    }

    /// The descriptor to poll.
    ///
    /// # Errors
    /// If there is none to be had.
    pub(super) fn event_fd(&self) -> Result<c_int> {
        let mut state = self.state();
        let fd = state.poller()?.set.as_raw_fd();
        state.tell();
        Ok(fd)
    }

    /// Makes the calls that are due, and returns the oldest event.
    pub(super) fn check(&self) -> Option<ExtEvent> {
        loop {
            let due = {
                let mut state = self.state();
                state.hear();
                let due = state.due.pop_front();
                state.tell();
                due
            };
            let event = due?.deliver(self.ctx);
            if event.is_some() {
                return event;
            }
        }
    }

    /// The same, but waits for an event as long as there may be one.
    ///
    /// # Errors
    /// If there is nothing to poll.
    pub(super) fn wait(&self) -> Result<Option<ExtEvent>> {
        loop {
            if let Some(event) = self.check() {
                return Ok(Some(event));
            }
            let fd = {
                let mut state = self.state();
                if state.running.is_empty() && state.due.is_empty() {
                    return Ok(None);
                }
                let set = &state.poller()?.set;
                // The set may be released by another thread meanwhile.
                set.try_clone()
                    .map_err(|error| Error::io("wait for an event", error))?
            };
            wait_for(fd.as_fd(), Some(&LOOK_AGAIN));
        }
    }

    /// Asks an operation to stop: the asynchronous one of that `ao_how`, or without one that a thread
    /// waits for. Returns what `libxl_ao_abort` would.
    pub(super) fn abort(&self, how: Option<&ResultTo>) -> c_int {
        let mut state = self.state();
        let found = match how {
            Some(how) => state
                .running
                .iter_mut()
                .find(|operation| operation.to.is(how))
                .map(|one| (one.agent.stopper(), &mut one.asked_to_stop)),
            None => state
                .calls
                .first_mut()
                .map(|call| (call.stopper.clone(), &mut call.asked_to_stop)),
        };
        match found {
            None => sys::libxl_error_ERROR_NOTFOUND,
            Some((_, true)) => sys::libxl_error_ERROR_ABORTED,
            Some((stopper, asked)) => {
                *asked = true;
                stopper.stop();
                0
            }
        }
    }
}

/// Waits until there is something to read; a signal ends the wait early, as does an error, which the
/// reading then meets.
fn wait_for(fd: BorrowedFd<'_>, limit: Option<&Timespec>) {
    let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], limit);
}

#[cfg(test)]
mod tests {
    use super::super::agent::tests::script;
    use super::*;
    use crate::types::{ExtEventU, ExtEventUOperationComplete, ExtEventUOperationProgress};
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(30);

    /// A context of no ctx, whose operations are a script.
    fn context(text: &str) -> (tempfile::TempDir, Context) {
        let (keep, program) = script(text);
        (keep, Context::new(Ctx(std::ptr::null_mut()), program))
    }

    fn how(for_event: u64) -> ResultTo {
        ResultTo::Event(for_event)
    }

    fn start(context: &Context, to: ResultTo) {
        let progress_to = libxl_ext_asyncprogress_how {
            callback: None,
            for_event: 5,
            for_callback: std::ptr::null_mut(),
        };
        context
            .start("g1".into(), Call::List, to, Some(progress_to), None)
            .unwrap();
    }

    fn complete(for_user: u64, rc: c_int) -> ExtEvent {
        ExtEvent {
            for_user,
            u: ExtEventU::OperationComplete(ExtEventUOperationComplete { rc }),
        }
    }

    fn is_readable(context: &Context, limit: Duration) -> bool {
        let fd = context.event_fd().unwrap();
        // SAFETY: the descriptor stays open as long as the context.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let limit = Timespec::try_from(limit).unwrap();
        let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        poll(&mut polled, Some(&limit)).unwrap() == 1
    }

    #[test]
    fn a_result_makes_the_descriptor_readable_and_is_delivered_once() {
        let (_keep, context) = context(r#"read order; read go; echo '{"done":"nothing"}'"#);
        start(&context, how(7));
        assert!(!is_readable(&context, Duration::from_millis(50)));
        assert_eq!(context.check(), None);
        context.abort(Some(&how(7)));
        assert!(is_readable(&context, LONG));
        assert_eq!(context.wait().unwrap(), Some(complete(7, 0)));
        assert_eq!(context.check(), None);
        assert!(!is_readable(&context, Duration::ZERO));
        assert_eq!(context.wait().unwrap(), None, "nothing is under way");
    }

    #[test]
    fn progress_that_nobody_fetched_is_replaced_and_comes_before_the_result() {
        let (_keep, context) = context(
            r#"read order; for done in 1 2 3 4; do
                   echo "{\"progress\":[\"copy\",{\"done\":$done,\"total\":4,\"bytes\":true}]}"
               done; echo '{"failed":[-5,"no"]}'"#,
        );
        start(&context, how(7));
        // All of it is there when it is first looked for.
        while !context.state().running.is_empty() {
            wait_for(context.state().poller().unwrap().set.as_fd(), None);
            context.state().hear();
        }
        let progress = ExtEventU::OperationProgress(ExtEventUOperationProgress {
            step: Some("copy".into()),
            done: 4,
            total: 4,
            bytes: true,
        });
        let event = context.check().unwrap();
        assert_eq!((event.for_user, event.u), (5, progress));
        assert_eq!(context.check(), Some(complete(7, -5)));
        assert_eq!(context.check(), None);
    }

    #[test]
    fn abort_finds_the_operation_by_its_ao_how() {
        let (_keep, context) =
            context(r#"read order; read word; echo "{\"failed\":[-27,\"$word\"]}""#);
        start(&context, how(1));
        start(&context, how(2));
        assert_eq!(
            context.abort(Some(&how(3))),
            sys::libxl_error_ERROR_NOTFOUND
        );
        assert_eq!(context.abort(None), sys::libxl_error_ERROR_NOTFOUND);
        assert_eq!(context.abort(Some(&how(2))), 0);
        assert_eq!(context.abort(Some(&how(2))), sys::libxl_error_ERROR_ABORTED);
        assert_eq!(context.wait().unwrap(), Some(complete(2, -27)));
        assert_eq!(context.state().running.len(), 1);
        // The other one is stopped, and nobody hears of it.
        context.end_operations();
        assert_eq!(context.wait().unwrap(), None);
    }

    #[test]
    fn an_agent_that_dies_fails_its_operation() {
        let (_keep, context) = context("read order; kill -9 $$");
        start(&context, how(7));
        let failed = sys::libxl_error_ERROR_FAIL;
        assert_eq!(context.wait().unwrap(), Some(complete(7, failed)));
        let ended = context.call("g1".into(), Call::List, None).unwrap();
        assert_eq!(ended.code, failed);
    }

    #[test]
    fn a_call_can_be_aborted_by_another_thread() {
        let (_keep, context) =
            context(r#"read order; read word; echo '{"failed":[-27,"stopped"]}'"#);
        std::thread::scope(|scope| {
            scope.spawn(|| while context.abort(None) != 0 {});
            let ended = context.call("g1".into(), Call::List, None).unwrap();
            assert_eq!(ended.code, -27);
        });
        assert!(context.state().calls.is_empty());
    }

    #[test]
    fn a_program_that_is_missing_starts_nothing() {
        let context = Context::new(Ctx(std::ptr::null_mut()), "/no/such/agent".into());
        let error = context
            .start("g1".into(), Call::List, how(1), None, None)
            .unwrap_err();
        assert!(
            error.report().contains("/no/such/agent"),
            "{}",
            error.report()
        );
        assert_eq!(context.wait().unwrap(), None);
    }
}
