//! What is known of each ctx: where its snapshots are, and its operations.
//!
//! A process that was forked begins without any: its parent's operations are not its own, and a lock
//! that another thread held at the fork would stay locked for ever.

use super::Ctx;
use super::agent::{Agent, Heard, Stopper, program};
use super::delivery::Deliveries;
use super::header::libxl_ext_asyncprogress_how;
use super::operation::{Due, Ended, Fill, Meaning, ResultTo, What, meaning};
use crate::agent::protocol::{Call, Order, VERSION};
use crate::error::Result;
use crate::port::libxl_sys as sys;
use crate::replication::Registry;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    pub(super) ctx: Ctx,
    /// The program that carries out its operations.
    program: PathBuf,
    state: Mutex<State>,
    replication: Registry,
}

#[derive(Default)]
pub(super) struct State {
    store: Option<PathBuf>,
    pub(super) running: Vec<Running>,
    calls: Vec<Waiting>,
    pub(super) deliveries: Deliveries,
    last_number: u64,
}

/// An asynchronous operation.
pub(super) struct Running {
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

impl State {
    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Hears what the agents have to say.
    pub(super) fn hear(&mut self) {
        for mut running in std::mem::take(&mut self.running) {
            let Some(ended) = self.listen_to(&mut running) else {
                self.running.push(running);
                continue;
            };
            self.deliveries.forget(&running.agent);
            self.deliveries.push(Due {
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
                    self.deliveries.push(running.due(line));
                    return Some(ended);
                }
            };
            for report in reports {
                match meaning(report, running.progress_to) {
                    Meaning::Nothing => {}
                    Meaning::Due(what) => self.deliveries.push(running.due(what)),
                    Meaning::End(line, ended) => {
                        if let Some(line) = line {
                            self.deliveries.push(running.due(line));
                        }
                        return Some(ended);
                    }
                }
            }
        }
    }
}

impl Running {
    /// Waits for the end of one that was told to stop.
    fn end(mut self) {
        while !has_ended(self.agent.hear()) {
            self.agent.wait();
        }
    }

    fn due(&self, what: What) -> Due {
        Due {
            operation: self.number,
            what,
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
            replication: Registry::new(),
        }
    }

    /// Its replication states.
    pub(super) fn replication(&self) -> &Registry {
        &self.replication
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
        running.into_iter().for_each(Running::end);
    }

    /// Stops whatever has its result go to `to`; nobody will hear of it any more. Returns 0, or `ERROR_NOTFOUND`.
    pub(super) fn disable(&self, to: &ResultTo) -> c_int {
        let mut state = self.state();
        let Some(at) = state.running.iter().position(|one| one.to.is(to)) else {
            let was_due = state.deliveries.withdraw_result(to);
            state.deliveries.tell();
            return if was_due {
                0
            } else {
                sys::libxl_error_ERROR_NOTFOUND
            };
        };
        let operation = state.running.remove(at);
        state.deliveries.forget(&operation.agent);
        state.deliveries.withdraw(operation.number);
        state.deliveries.tell();
        drop(state);
        operation.agent.stopper().stop();
        operation.end();
        0
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
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
        let poller = state.deliveries.poller()?;
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
        state.deliveries.withdraw(number);
        state.deliveries.tell();
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
                        state.deliveries.push(Due { operation, what });
                        state.deliveries.tell();
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
pub(super) mod tests {
    use super::super::agent::tests::script;
    use super::*;
    use crate::types::{ExtEvent, ExtEventU, ExtEventUOperationComplete};

    /// A context of no ctx, whose operations are a script.
    pub(in crate::ffi) fn context(text: &str) -> (tempfile::TempDir, Context) {
        let (keep, program) = script(text);
        (keep, Context::new(Ctx(std::ptr::null_mut()), program))
    }

    pub(in crate::ffi) fn how(for_event: u64) -> ResultTo {
        ResultTo::Event(for_event)
    }

    pub(in crate::ffi) fn start(context: &Context, to: ResultTo) {
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

    pub(in crate::ffi) fn complete(for_user: u64, rc: c_int) -> ExtEvent {
        ExtEvent {
            for_user,
            u: ExtEventU::OperationComplete(ExtEventUOperationComplete { rc }),
        }
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
    fn what_is_disabled_is_not_heard_of_whether_it_has_ended_or_not() {
        let (_keep, context) =
            context(r#"read order; read word; echo "{\"failed\":[-27,\"$word\"]}""#);
        let watch = |for_event| {
            ResultTo::BlockPull(libxl_ext_asyncprogress_how {
                callback: None,
                for_event,
                for_callback: std::ptr::null_mut(),
            })
        };
        let not_found = sys::libxl_error_ERROR_NOTFOUND;
        start(&context, watch(1));
        start(&context, watch(2));
        assert_eq!(context.disable(&watch(3)), not_found);
        assert_eq!(context.disable(&how(1)), not_found);
        assert_eq!(context.disable(&watch(1)), 0);
        assert_eq!(context.disable(&watch(1)), not_found);
        assert_eq!(context.abort(Some(&watch(2))), 0);
        while !context.state().running.is_empty() {
            context.state().hear();
        }
        assert_eq!(context.disable(&watch(2)), 0, "its result is due");
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
}
