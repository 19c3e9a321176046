//! Starting the agent so that the application cannot notice it as a child.
//!
//! libxl's users are told to have no children beside libxl's own, to reap all of them, or to leave all
//! of them to libxl (`libxl_event.h`); a child of a library's is none of these. So the agent is nobody's
//! child: a process in between starts it and ends at once. That one is made by `clone` without an exit
//! signal: it raises no SIGCHLD, and only a wait with `__WCLONE` finds it, which nobody else makes.
//!
//! Between `clone` and `execve` only system calls are made: another thread of the application may hold
//! any lock, that of the allocator too.

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::{CStr, c_char, c_int};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::{io, mem, ptr};

/// Below this number the new process arranges its own files.
const ABOVE_STANDARD: c_int = 10;
/// Where the new process has the pipe that tells why it could not start; the socket is its input.
const REASON: RawFd = 3;
/// The largest signal.
const LAST_SIGNAL: c_int = 64;

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// Starts `program` with `socket` as its standard input, without arguments, in a session of its own.
///
/// # Errors
/// If there is no process to be had, or the program cannot be executed.
pub(super) fn start(program: &CStr, socket: BorrowedFd<'_>) -> io::Result<()> {
    let socket = above_standard(socket)?;
    let nowhere = File::options().write(true).open("/dev/null")?;
    let nowhere = above_standard(nowhere.as_fd())?;
    let (why, reason) = {
        let (why, reason) = pipe_with(PipeFlags::CLOEXEC)?;
        (why, above_standard(reason.as_fd())?)
    };
    let arguments = [program.as_ptr(), ptr::null()];
    let plan = Start {
        program: program.as_ptr(),
        arguments: arguments.as_ptr(),
        // SAFETY: it is the C library's; whoever changes the environment while another thread starts a
        // program breaks that as well.
        environment: unsafe { environ },
        socket: socket.as_raw_fd(),
        nowhere: nowhere.as_raw_fd(),
        reason: reason.as_raw_fd(),
    };
    let between = without_signals(|| {
        // SAFETY: without CLONE_VM this is a fork; the new process makes only system calls, and ends.
        match unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) } {
            // SAFETY: it is the new process, and all that `plan` points to was copied with it.
            0 => unsafe { plan.go_between() },
            -1 => Err(io::Error::last_os_error()),
            // The kernel's process ids are ints.
            pid => Ok(c_int::try_from(pid).unwrap_or(0)),
        }
    })?;
    drop(reason);
    loop {
        // SAFETY: a null pointer for the status is allowed.
        let waited = unsafe { libc::waitpid(between, ptr::null_mut(), libc::__WCLONE) };
        // Whoever else could have waited for it, it has ended then.
        if waited != -1 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
    let mut code = [0; mem::size_of::<c_int>()];
    match File::from(why).read_exact(&mut code) {
        Ok(()) => Err(io::Error::from_raw_os_error(c_int::from_ne_bytes(code))),
        // The pipe was closed by the start of the program.
        Err(_) => Ok(()),
    }
}

/// A copy of a descriptor that the new process does not overwrite when it arranges its files.
fn above_standard(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(fd, ABOVE_STANDARD)
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
    reason: RawFd,
}

impl Start {
    /// The process in between: starts the agent and ends.
    ///
    /// # Safety
    /// Only in a process that `clone` has just made.
    unsafe fn go_between(&self) -> ! {
        // SAFETY: system calls only, as in `become_agent`.
        unsafe {
            libc::setsid();
            match libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) {
                0 => self.become_agent(),
                -1 => Self::fail(self.reason),
                _ => libc::_exit(0),
            }
        }
    }

    /// The agent before it is one.
    ///
    /// # Safety
    /// As for `go_between`.
    unsafe fn become_agent(&self) -> ! {
        // SAFETY: system calls with descriptors that were opened for this, and signal sets of our own.
        unsafe {
            libc::dup2(self.socket, libc::STDIN_FILENO);
            libc::dup2(self.nowhere, libc::STDOUT_FILENO);
            libc::dup3(self.reason, REASON, libc::O_CLOEXEC);
            // What the application has open, and did not mark to be closed, is not for the agent.
            libc::syscall(libc::SYS_close_range, REASON + 1, c_int::MAX, 0);
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
            Self::fail(REASON)
        }
    }

    /// Tells the application the error of the last call, and ends.
    ///
    /// # Safety
    /// As for `go_between`.
    unsafe fn fail(reason: RawFd) -> ! {
        // SAFETY: errno is this thread's; the buffer is as long as is said.
        unsafe {
            let code = *libc::__errno_location();
            libc::write(reason, (&raw const code).cast(), mem::size_of::<c_int>());
            libc::_exit(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_program_that_is_started_has_the_socket_and_is_no_child() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        start(c"/bin/cat", theirs.as_fd()).unwrap();
        drop(theirs);
        // cat's output is nowhere; so what tells that it runs is that it holds the other end.
        ours.write_all(b"x").unwrap();
        let mut status = 0;
        // SAFETY: the status is ours.
        let waited = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
        assert!(
            waited <= 0 || status != 0,
            "the process {waited} is a child of this one"
        );
        drop(ours);
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
