//! The steps, one file per feature. `tests/lab/README.md` tells how to add one.

mod capi;
mod guest_types;
mod guests;
mod power;
mod save;
mod snapshot;
mod snapshot_broken;
mod snapshot_care;
mod snapshot_delete;
mod snapshot_disk_only;
mod snapshot_disks;
mod snapshot_external;
mod snapshot_fault_points;
mod snapshot_faults;
mod snapshot_force;
mod snapshot_hostile;
mod snapshot_layers_faults;
mod snapshot_life;
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
        snapshot_care::STEPS,
        snapshot_delete::STEPS,
        snapshot_external::STEPS,
        snapshot_disk_only::STEPS,
        snapshot_life::STEPS,
        snapshot_disks::STEPS,
        snapshot_hostile::STEPS,
        snapshot_layers_faults::STEPS,
        snapshot_force::STEPS,
        snapshot_refused::STEPS,
        snapshot_fault_points::STEPS,
        snapshot_faults::STEPS,
        snapshot_broken::STEPS,
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

/// All steps.
pub fn every() -> impl Iterator<Item = &'static Step> {
    all().chain(one_cpu())
}
