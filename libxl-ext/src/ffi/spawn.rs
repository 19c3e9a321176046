//! Starting the agent so that the application cannot notice it as a child.
//!
//! libxl's users are told to have no children beside libxl's own, to reap all of them, or to leave all
//! of them to libxl (`libxl_event.h`); a child of a library's is none of these. So the agent is nobody's
//! child: a process in between starts it and ends at once. That one is made by `clone` without an exit
//! signal: it raises no SIGCHLD, and only a wait with `__WCLONE` finds it, which nobody else makes.
//!
//! (An application that takes in orphans, as a subreaper or as process 1, finds the agent when it ends, as
//! it finds the ones of everybody else.)
//!
//! Between `clone` and `execve` only functions are called that are allowed after a fork: another thread
//! of the application may hold any lock, that of the allocator too.

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource};
use std::ffi::{CStr, c_char, c_int};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::{io, mem, ptr};

/// Below this number the new process arranges its own files.
const ABOVE_STANDARD: c_int = 10;
/// Where the agent before it is one has the pipe that tells why it could not start.
const FAILING: RawFd = 3;
/// How many descriptors are closed one by one, where they cannot be closed at once.
const FILES_MAX: u64 = 1 << 16;
/// The largest signal.
const LAST_SIGNAL: c_int = 64;

unsafe extern "C" {
    static mut environ: *mut *mut c_char;
}

/// Starts `program` with `socket` as its standard input, without arguments, in a session of its own, and
/// returns its process id.
///
/// # Errors
/// If there is no process to be had, or the program cannot be executed.
pub(super) fn start(program: &CStr, socket: BorrowedFd<'_>) -> io::Result<Pid> {
    let socket = above_standard(socket)?;
    let nowhere = File::options().write(true).open("/dev/null")?;
    let nowhere = above_standard(nowhere.as_fd())?;
    let (found, finding) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let arguments = [program.as_ptr(), ptr::null()];
    let plan = Start {
        program: program.as_ptr(),
        arguments: arguments.as_ptr(),
        // SAFETY: it is the C library's; whoever changes the environment while another thread starts a
        // program breaks that as well.
        environment: unsafe { environ }.cast(),
        socket: socket.as_raw_fd(),
        nowhere: nowhere.as_raw_fd(),
        finding: finding.as_raw_fd(),
        files: rustix::process::getrlimit(Resource::Nofile).current,
    };
    let between = without_signals(|| {
        let none: libc::c_long = 0;
        // SAFETY: without CLONE_VM this is a fork; the new process makes only system calls, and ends.
        match unsafe { libc::syscall(libc::SYS_clone, none, none, none, none, none) } {
            // SAFETY: it is the new process, and all that `plan` points to was copied with it.
            0 => unsafe { plan.go_between() },
            -1 => Err(io::Error::last_os_error()),
            // The kernel's process ids are ints.
            pid => Ok(c_int::try_from(pid).unwrap_or(0)),
        }
    })?;
    loop {
        // SAFETY: a null pointer for the status is allowed.
        let waited = unsafe { libc::waitpid(between, ptr::null_mut(), libc::__WCLONE) };
        // Whoever else could have waited for it, it has ended then.
        if waited != -1 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
    // It has written what it found before it ended. Nothing is waited for here: a process that another
    // thread forked may hold the other end of the pipe for ever.
    let mut code = [0; size_of::<c_int>()];
    File::from(found).read_exact(&mut code)?;
    match c_int::from_ne_bytes(code) {
        error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
        pid => Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

/// A copy of a descriptor that the new process does not overwrite when it arranges its files.
fn above_standard(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(fd, ABOVE_STANDARD)
}

/// The same descriptor, above those that the application's libraries print to.
///
/// # Errors
/// If there is no descriptor to be had.
pub(super) fn off_standard(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > libc::STDERR_FILENO {
        return Ok(fd);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(
        &fd,
        libc::STDERR_FILENO + 1,
    )?)
}

/// Blocks all signals for the time of a call: a handler of the application's must not run in a process
/// that is not the application.
fn without_signals<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: both sets are valid memory for the C library to fill.
    unsafe {
        let mut all: libc::sigset_t = mem::zeroed();
        let mut before: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let result = work();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        result
    }
}

/// All that the new processes need, made ready before.
struct Start {
    program: *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    socket: RawFd,
    nowhere: RawFd,
    /// Where the process in between says what it found: a process id, or an error's negative number.
    finding: RawFd,
    /// How many files may be open, if that is known.
    files: Option<u64>,
}

impl Start {
    /// The process in between: starts the agent, says what came of it, and ends.
    ///
    /// # Safety
    /// Only in a process that `clone` has just made.
    unsafe fn go_between(&self) -> ! {
        // SAFETY: calls that are allowed after a fork, with memory of our own.
        unsafe {
            libc::setsid();
            // Made here, it has no copy in any process but the agent, which closes it when it starts.
            let mut started = [0; 2];
            if libc::pipe2(started.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
                self.end_with(-errno());
            }
            let none: libc::c_long = 0;
            let signal = libc::c_long::from(libc::SIGCHLD);
            let pid = match libc::syscall(libc::SYS_clone, signal, none, none, none, none) {
                0 => self.become_agent(started[1]),
                -1 => self.end_with(-errno()),
                pid => pid,
            };
            libc::close(started[1]);
            let mut code: c_int = 0;
            let read = libc::read(started[0], (&raw mut code).cast(), size_of::<c_int>());
            match read {
                0 => self.end_with(c_int::try_from(pid).unwrap_or(0)),
                _ => self.end_with(-code),
            }
        }
    }

    /// Says what was found, and ends.
    ///
    /// # Safety
    /// As for `go_between`.
    unsafe fn end_with(&self, finding: c_int) -> ! {
        // SAFETY: the buffer is as long as is said.
        unsafe {
            libc::write(
                self.finding,
                (&raw const finding).cast(),
                size_of::<c_int>(),
            );
            libc::_exit(0)
        }
    }

    /// The agent before it is one. If it cannot become one, it writes the error's number to `failing`.
    ///
    /// # Safety
    /// As for `go_between`.
    unsafe fn become_agent(&self, failing: RawFd) -> ! {
        // SAFETY: calls that are allowed after a fork, with descriptors that were opened for this, and
        // signal sets of our own.
        unsafe {
            let failing = libc::fcntl(failing, libc::F_DUPFD_CLOEXEC, ABOVE_STANDARD);
            libc::dup2(self.socket, libc::STDIN_FILENO);
            libc::dup2(self.nowhere, libc::STDOUT_FILENO);
            libc::dup3(failing, FAILING, libc::O_CLOEXEC);
            self.close_from(FAILING + 1);
            // Ignored signals would stay ignored, in all programs that the agent starts.
            let mut default: libc::sigaction = mem::zeroed();
            default.sa_sigaction = libc::SIG_DFL;
            for signal in 1..=LAST_SIGNAL {
                libc::sigaction(signal, &raw const default, ptr::null_mut());
            }
            let mut none: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            libc::execve(self.program, self.arguments, self.environment);
            let code = errno();
            libc::write(FAILING, (&raw const code).cast(), size_of::<c_int>());
            libc::_exit(1)
        }
    }

    /// Closes what the application has open and did not mark to be closed: it is not for the agent.
    ///
    /// # Safety
    /// As for `go_between`.
    unsafe fn close_from(&self, first: RawFd) {
        let (first_fd, last, flags) = (
            libc::c_long::from(first),
            libc::c_long::from(c_int::MAX),
            0 as libc::c_long,
        );
        // SAFETY: the descriptors are this process's own.
        unsafe {
            if libc::syscall(libc::SYS_close_range, first_fd, last, flags) == 0 {
                return;
            }
            // Before Linux 5.9, or where a filter does not know the call.
            let end = self.files.unwrap_or(FILES_MAX).min(FILES_MAX);
            for fd in first..c_int::try_from(end).unwrap_or(c_int::MAX) {
                libc::close(fd);
            }
        }
    }
}

/// The number of the last error.
fn errno() -> c_int {
    // SAFETY: it is this thread's.
    unsafe { *libc::__errno_location() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_program_that_is_started_has_the_socket_and_is_no_child() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let pid = start(c"/bin/cat", theirs.as_fd()).unwrap();
        drop(theirs);
        // Its output is nowhere; what tells that it runs is that it holds the other end.
        ours.write_all(b"x").unwrap();
        let name = std::fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
        assert_eq!(name.unwrap().trim(), "cat");
        // SAFETY: a null pointer for the status is allowed.
        let waited = unsafe {
            let all = libc::WNOHANG | libc::__WALL;
            libc::waitpid(pid.as_raw_nonzero().get(), ptr::null_mut(), all)
        };
        let error = io::Error::last_os_error().raw_os_error();
        assert_eq!((waited, error), (-1, Some(libc::ECHILD)));
    }

    #[test]
    fn a_program_that_cannot_be_executed_is_reported() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let error = start(c"/no/such/program", ours.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = start(c"/etc/passwd", ours.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
