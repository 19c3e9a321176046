//! The agent: the process in which an operation of the C library runs.
//!
//! libxl cannot do for us in the application's own process what it does in ours. On the application's
//! ctx its event loop would make the application's callbacks on our thread; on a second ctx it would
//! reap children that the first one waits for, or have its own reaped, since a process is allowed only
//! one ctx with children unless all are configured alike (`libxl_event.h`, "Subprocess handling"). And
//! the death of a daemon in the middle of a snapshot would leave a guest suspended. So the library
//! starts a program, as libxl starts its own save helper, and talks to it over a socket.

pub mod log;
pub mod protocol;
pub mod pull;
pub mod serve;
