//! The steps, one file per feature. `tests/lab/README.md` tells how to add one.

mod capi;
mod guest_types;
mod guests;
mod power;
mod save;
mod snapshot;
mod snapshot_delete;
mod snapshot_external;
mod snapshot_faults;
mod snapshot_force;
mod snapshot_power;
mod snapshot_refused;
mod xen;

use crate::step::Step;

/// The steps for a lab like any other, in the order in which they run: those that take the power away are last.
pub fn all() -> impl Iterator<Item = &'static Step> {
    [
        xen::STEPS,
        guests::STEPS,
        save::STEPS,
        snapshot::STEPS,
        snapshot_delete::STEPS,
        snapshot_external::STEPS,
        snapshot_force::STEPS,
        snapshot_refused::STEPS,
        snapshot_faults::STEPS,
        capi::STEPS,
        snapshot_power::STEPS,
        power::STEPS,
    ]
    .into_iter()
    .flatten()
}

/// The steps for a lab with one CPU: with two the firmware of HVM guests does not survive the emulation.
/// `tests/lab/README.md` has the figures.
pub fn one_cpu() -> impl Iterator<Item = &'static Step> {
    guest_types::STEPS.iter()
}
