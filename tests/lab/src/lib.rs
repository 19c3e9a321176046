//! A real Xen host in QEMU, without KVM, and the steps that test libxl-ext in it.
//!
//! [`image`] builds the host's disk once, [`host`] boots it, [`guest`] runs guests in it, and [`step`] runs the
//! tests in [`steps`]. What a step shows ([`coverage`]) and how it ended ([`results`]) makes the [`table`] of features.
//! Everything that concerns one run lives in one directory, see [`run_dir`].

pub mod bench;
pub mod coverage;
pub mod demo;
pub mod guest;
pub mod host;
pub mod image;
pub mod link;
pub mod logs;
pub mod power_cuts;
pub mod process;
pub mod product;
pub mod qemu;
mod random;
pub mod results;
pub mod run_dir;
mod script;
pub mod ssh;
pub mod step;
pub mod steps;
pub mod table;
pub mod two_hosts;

pub use guest::{Guest, GuestSpec};
pub use host::Lab;
pub use step::{Context, Step, skip};
