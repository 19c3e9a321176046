//! What is due to be delivered to the application: kept in its order, polled for, and delivered once.

use super::agent::Agent;
use super::context::Context;
use super::operation::{Due, ResultTo, What};
use super::spawn::off_standard;
use crate::error::{Error, ErrorKind, Result};
use crate::types::ExtEvent;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::process::Pid;
use rustix::thread::gettid;
use std::collections::VecDeque;
use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// How long a wait lasts before it looks whether another thread took what it waits for.
const LOOK_AGAIN: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// What the application polls: readable while an agent has said something or something is due.
pub(super) struct Poller {
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

    pub(super) fn watch(&self, agent: &Agent) -> Result<()> {
        agent.descriptors().try_for_each(|fd| self.add(fd))
    }

    /// Closing would not be enough: a process that was forked may have a copy.
    pub(super) fn forget(&self, agent: &Agent) {
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

/// What is due of the operations of one ctx.
#[derive(Default)]
pub(super) struct Deliveries {
    poller: Option<Poller>,
    due: VecDeque<Due>,
    /// The operations of which something is being delivered now, and by whom. Nothing else of them is
    /// delivered by another thread meanwhile: a result must not overtake a report of progress. (Threads
    /// by the kernel's number: std's handle would be memory that a thread of C's never gives back.)
    delivering: Vec<(u64, Pid)>,
}

impl Deliveries {
    /// What the application polls, made when it is first needed.
    ///
    /// # Errors
    /// If there is no descriptor to be had.
    pub(super) fn poller(&mut self) -> Result<&Poller> {
        if self.poller.is_none() {
            self.poller = Some(Poller::new()?);
        }
        self.poller
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Io, "make a descriptor to poll"))
    }

    /// An agent that has ended is not polled any more.
    pub(super) fn forget(&self, agent: &Agent) {
        if let Some(poller) = &self.poller {
            poller.forget(agent);
        }
    }

    /// Adds what is due. Progress that nobody fetched is replaced by newer progress of its operation.
    pub(super) fn push(&mut self, due: Due) {
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

    /// Nobody is to hear any more of an operation.
    pub(super) fn withdraw(&mut self, operation: u64) {
        self.due.retain(|due| due.operation != operation);
    }

    /// Nobody is to hear a result any more that is due. Returns whether there was one.
    pub(super) fn withdraw_result(&mut self, to: &ResultTo) -> bool {
        let is_it = |due: &Due| matches!(&due.what, What::Result { to: its, .. } if its.is(to));
        let found = self.due.iter().position(is_it);
        found.and_then(|at| self.due.remove(at)).is_some()
    }

    /// The oldest of what this thread may deliver.
    fn take(&mut self) -> Option<Due> {
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
    pub(super) fn tell(&self) {
        if let Some(poller) = &self.poller {
            let waits = |due: &Due| {
                let mut under_way = self.delivering.iter();
                under_way.any(|(operation, _)| *operation == due.operation)
            };
            poller.tell(!self.due.iter().all(waits));
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
        if let Some(at) = state.deliveries.delivering.iter().position(mine) {
            state.deliveries.delivering.swap_remove(at);
        }
        state.deliveries.tell();
    }
}

impl Context {
    /// The descriptor to poll.
    ///
    /// # Errors
    /// If there is none to be had.
    pub(super) fn event_fd(&self) -> Result<c_int> {
        let mut state = self.state();
        let fd = state.deliveries.poller()?.set.as_raw_fd();
        state.deliveries.tell();
        Ok(fd)
    }

    /// Makes the calls that are due, and returns the oldest event.
    pub(super) fn check(&self) -> Option<ExtEvent> {
        loop {
            let due = {
                let mut state = self.state();
                state.hear();
                let due = state.deliveries.take();
                state.deliveries.tell();
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
                if state.running.is_empty() && state.deliveries.due.is_empty() {
                    return Ok(None);
                }
                let set = &state.deliveries.poller()?.set;
                // The set may be released by another thread meanwhile.
                set.try_clone()
                    .map_err(|error| Error::io("wait for an event", error))?
            };
            // A signal ends the wait early, and so may an error.
            let mut polled = [PollFd::new(&fd, PollFlags::IN)];
            let _ = poll(&mut polled, Some(&LOOK_AGAIN));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::context::tests::{complete, context, how, start};
    use super::super::header::libxl_ext_asyncprogress_how;
    use super::*;
    use crate::agent::protocol::Call;
    use crate::port::libxl_sys as sys;
    use crate::types::{ExtEventU, ExtEventUOperationProgress};
    use std::ffi::c_void;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(30);

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
