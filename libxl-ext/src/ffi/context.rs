//! What is known of each ctx: where its snapshots are, its operations, and what is due to be delivered.
//!
//! A process that was forked begins without any: its parent's operations are not its own, and a lock
//! that another thread held at the fork would stay locked for ever.

use super::Ctx;
use super::agent::{Agent, Heard, Stopper, program};
use super::header::libxl_ext_asyncprogress_how;
use super::operation::{Due, Ended, Fill, Meaning, ResultTo, What, meaning};
use super::spawn::off_standard;
use crate::agent::protocol::{Call, Order, VERSION};
use crate::error::{Error, ErrorKind, Result};
use crate::port::libxl_sys as sys;
use crate::types::ExtEvent;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::process::Pid;
use rustix::thread::gettid;
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
    /// The operations of which something is being delivered now, and by whom. Nothing else of them is
    /// delivered by another thread meanwhile: a result must not overtake a report of progress. (Threads
    /// by the kernel's number: std's handle would be memory that a thread of C's never gives back.)
    delivering: Vec<(u64, Pid)>,
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
        let off_standard =
            |fd| off_standard(fd).map_err(|error| Error::io("make a descriptor to poll", error));
        let poller = Self {
            set: off_standard(set)?,
            due: off_standard(due)?,
        };
        poller.add(poller.due.as_fd())?;
        Ok(poller)
    }

    fn add(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let data = epoll::EventData::new_u64(0);
        epoll::add(&self.set, fd, data, epoll::EventFlags::IN)
            .map_err(|error| Error::io("watch the process of the operation", error))
    }

    fn watch(&self, agent: &Agent) -> Result<()> {
        agent.descriptors().try_for_each(|fd| self.add(fd))
    }

    /// Closing would not be enough: a process that was forked may have a copy.
    fn forget(&self, agent: &Agent) {
        for fd in agent.descriptors() {
            let _ = epoll::delete(&self.set, fd);
        }
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
        if matches!(due.what, What::Progress { .. }) {
            let older = self.due.iter_mut().find(|other| {
                other.operation == due.operation && matches!(other.what, What::Progress { .. })
            });
            if let Some(older) = older {
                *older = due;
                return;
            }
        }
        self.due.push_back(due);
    }

    /// Hears what the agents have to say.
    fn hear(&mut self) {
        for mut running in std::mem::take(&mut self.running) {
            let Some(ended) = self.listen_to(&mut running) else {
                self.running.push(running);
                continue;
            };
            if let Some(poller) = &self.poller {
                poller.forget(&running.agent);
            }
            self.push(Due {
                operation: running.number,
                what: What::Result {
                    to: running.to,
                    ended,
                    fill: running.fill,
                },
            });
        }
    }

    /// Notes what is due because of what one agent says; returns how its operation ended, if it did.
    fn listen_to(&mut self, running: &mut Running) -> Option<Ended> {
        loop {
            let reports = match running.agent.hear() {
                Heard::Reports(reports) if reports.is_empty() => return None,
                Heard::Reports(reports) => reports,
                Heard::End => {
                    let (line, ended) = Ended::unexplained();
                    self.push(running.due(line));
                    return Some(ended);
                }
            };
            for report in reports {
                match meaning(report, running.progress_to) {
                    Meaning::Nothing => {}
                    Meaning::Due(what) => self.push(running.due(what)),
                    Meaning::End(line, ended) => {
                        if let Some(line) = line {
                            self.push(running.due(line));
                        }
                        return Some(ended);
                    }
                }
            }
        }
    }

    /// The oldest of what this thread may deliver.
    fn take_due(&mut self) -> Option<Due> {
        let me = gettid();
        let others = |due: &Due| {
            let other =
                |(operation, thread): &(u64, Pid)| *operation == due.operation && *thread != me;
            self.delivering.iter().any(other)
        };
        let at = self.due.iter().position(|due| !others(due))?;
        let due = self.due.remove(at)?;
        self.delivering.push((due.operation, me));
        Some(due)
    }

    /// Makes the descriptor readable if there is something that any thread may deliver.
    fn tell(&self) {
        if let Some(poller) = &self.poller {
            let waits = |due: &Due| {
                let mut under_way = self.delivering.iter();
                under_way.any(|(operation, _)| *operation == due.operation)
            };
            poller.tell(!self.due.iter().all(waits));
        }
    }
}

impl Running {
    fn due(&self, what: What) -> Due {
        Due {
            operation: self.number,
            what,
        }
    }
}

/// Notes, also if the application's callback unwinds, that what was delivered is delivered.
struct Delivered<'context>(&'context Context, u64);

impl Drop for Delivered<'_> {
    fn drop(&mut self) {
        let me = gettid();
        let mut state = self.0.state();
        let mine = |entry: &(u64, Pid)| *entry == (self.1, me);
        if let Some(at) = state.delivering.iter().position(mine) {
            state.delivering.swap_remove(at);
        }
        state.tell();
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
            while !has_ended(operation.agent.hear()) {
                operation.agent.wait();
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
        let agent = Agent::start(&self.program)?;
        let mut state = self.state();
        let number = state.next_number();
        let poller = state.poller()?;
        poller.watch(&agent)?;
        // Last: an agent that has its order does something.
        if let Err(error) = agent.order(&order) {
            poller.forget(&agent);
            return Err(error);
        }
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
        let order = self.order(domain, call);
        let mut agent = Agent::start(&self.program)?;
        let number = {
            let mut state = self.state();
            let number = state.next_number();
            // What only looks is not what somebody wants to stop.
            if order.call != Call::List {
                state.calls.push(Waiting {
                    number,
                    stopper: agent.stopper(),
                    asked_to_stop: false,
                });
            }
            number
        };
        let ended = agent
            .order(&order)
            .map(|()| self.listen(&mut agent, number, progress_to));
        let mut state = self.state();
        state.calls.retain(|call| call.number != number);
        // Nobody is to hear of its progress after its end.
        state.due.retain(|due| due.operation != number);
        state.tell();
        ended
    }

    fn listen(
        &self,
        agent: &mut Agent,
        operation: u64,
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
                match meaning(report, progress_to) {
                    Meaning::Nothing => {}
                    Meaning::Due(what) if what.is_event() => {
                        let mut state = self.state();
                        state.push(Due { operation, what });
                        state.tell();
                    }
                    Meaning::Due(what) => {
                        what.deliver(self.ctx);
                    }
                    Meaning::End(line, ended) => {
                        line.map(|line| line.deliver(self.ctx));
                        return ended;
                    }
                }
            }
            agent.wait();
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
                let due = state.take_due();
                state.tell();
                due
            }?;
            let _delivered = Delivered(self, due.operation);
            let event = due.what.deliver(self.ctx);
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
            // A signal ends the wait early, and so may an error.
            let mut polled = [PollFd::new(&fd, PollFlags::IN)];
            let _ = poll(&mut polled, Some(&LOOK_AGAIN));
        }
    }

    /// Asks an operation to stop: the asynchronous one of that `ao_how`, or without one that a thread
    /// waits for. Returns what `libxl_ao_abort` would.
    pub(super) fn abort(&self, how: Option<&ResultTo>) -> c_int {
        let mut state = self.state();
        // Without an `ao_how`, the first call that was not asked; if all were, any says so.
        state
            .calls
            .sort_by_key(|call| (call.asked_to_stop, call.number));
        let State { running, calls, .. } = &mut *state;
        let found = if let Some(how) = how {
            let mut running = running.iter_mut();
            running
                .find(|operation| operation.to.is(how))
                .map(|one| (one.agent.stopper(), &mut one.asked_to_stop))
        } else {
            let first = calls.first_mut();
            first.map(|call| (call.stopper.clone(), &mut call.asked_to_stop))
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

/// Whether an operation has ended, with a result or without one.
fn has_ended(heard: Heard) -> bool {
    match heard {
        Heard::End => true,
        Heard::Reports(reports) => reports
            .into_iter()
            .any(|report| matches!(meaning(report, None), Meaning::End(..))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::agent::tests::script;
    use super::*;
    use crate::types::{ExtEventU, ExtEventUOperationComplete, ExtEventUOperationProgress};
    use std::ffi::c_void;
    use std::sync::atomic::AtomicBool;
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

    /// A call that changes something, as far as the script knows.
    fn delete() -> Call {
        Call::Delete {
            name: "s".into(),
            children: false,
        }
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
            assert!(is_readable(&context, LONG));
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
            let ended = context.call("g1".into(), delete(), None).unwrap();
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

    /// What a callback of progress shares with the test.
    struct Slow {
        begun: AtomicBool,
        go_on: AtomicBool,
    }

    unsafe extern "C" fn slowly(
        _ctx: *mut sys::libxl_ctx,
        _event: *const crate::types::ffi::libxl_ext_event,
        slow: *mut c_void,
    ) {
        // SAFETY: the test gives its struct, which lives longer than the operation.
        let slow = unsafe { &*slow.cast::<Slow>() };
        slow.begun.store(true, Ordering::SeqCst);
        while !slow.go_on.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_result_does_not_overtake_a_callback_of_another_thread() {
        let (_keep, context) = context(
            r#"read order; echo '{"progress":["s",{"done":1,"total":2,"bytes":false}]}'
               echo '{"done":"nothing"}'"#,
        );
        let slow = Slow {
            begun: AtomicBool::new(false),
            go_on: AtomicBool::new(false),
        };
        let progress_to = libxl_ext_asyncprogress_how {
            callback: Some(slowly),
            for_event: 0,
            for_callback: (&raw const slow).cast_mut().cast(),
        };
        context
            .start("g1".into(), Call::List, how(7), Some(progress_to), None)
            .unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| context.wait().unwrap());
            while !slow.begun.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            while !context.state().running.is_empty() {
                context.state().hear();
            }
            assert_eq!(context.check(), None, "it overtook the progress");
            assert!(
                !is_readable(&context, Duration::ZERO),
                "it would be polled in vain"
            );
            slow.go_on.store(true, Ordering::SeqCst);
            assert_eq!(waiter.join().unwrap(), Some(complete(7, 0)));
        });
    }

    #[test]
    fn nothing_is_heard_of_a_call_after_its_end() {
        let (_keep, context) = context(
            r#"read order; echo '{"progress":["s",{"done":1,"total":2,"bytes":false}]}'
               echo '{"done":"nothing"}'"#,
        );
        let progress_to = libxl_ext_asyncprogress_how {
            callback: None,
            for_event: 5,
            for_callback: std::ptr::null_mut(),
        };
        let ended = context.call("g1".into(), Call::List, Some(progress_to));
        assert_eq!(ended.unwrap().code, 0);
        assert_eq!(context.check(), None);
    }
}
