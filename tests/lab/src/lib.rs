//! A real Xen host in QEMU, without KVM, and the steps that test libxl-ext in it.
//!
//! [`image`] builds the host's disk once, [`host`] boots it, [`guest`] runs guests in it, and [`step`] runs the
//! tests in [`steps`]. Everything that concerns one run lives in one directory, see [`run_dir`].

pub mod demo;
pub mod guest;
pub mod host;
pub mod image;
pub mod logs;
pub mod process;
pub mod product;
pub mod qemu;
pub mod run_dir;
pub mod ssh;
pub mod step;
pub mod steps;

pub use guest::{Guest, GuestSpec};
pub use host::Lab;
pub use step::{Context, Step, skip};
