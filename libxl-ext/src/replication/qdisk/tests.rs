//! Both sides with real QEMUs. The primary is one without a machine whose disks are written through exports of its own, as
//! by a guest: both sides' QEMUs are those of the packages that tests/prerequisites.sh installs.

mod faults;
mod lab;
mod life;
mod memory;

use lab::{Lab, MIB};
mod wire;
