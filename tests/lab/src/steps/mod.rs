//! The steps, one file per feature. `tests/lab/README.md` tells how to add one.

mod block_pull;
mod capi;
mod guest_types;
mod guests;
mod managed_save;
mod managed_save_host;
mod memory;
mod power;
mod save;
mod snapshot;
mod snapshot_broken;
mod snapshot_care;
mod snapshot_delete;
mod snapshot_disk_only;
mod snapshot_disks;
mod snapshot_disks_change;
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

/// All steps, in the order in which they run: those that take longest are first, so that no lab waits for another's
/// last one, and those that take the power away are last.
pub fn all() -> impl Iterator<Item = &'static Step> {
    [
        xen::STEPS,
        guest_types::STEPS,
        guests::STEPS,
        memory::STEPS,
        save::STEPS,
        snapshot::STEPS,
        snapshot_care::STEPS,
        snapshot_delete::STEPS,
        snapshot_external::STEPS,
        snapshot_disk_only::STEPS,
        snapshot_life::STEPS,
        snapshot_disks::STEPS,
        snapshot_disks_change::STEPS,
        snapshot_hostile::STEPS,
        snapshot_layers_faults::STEPS,
        snapshot_force::STEPS,
        snapshot_refused::STEPS,
        snapshot_fault_points::STEPS,
        snapshot_faults::STEPS,
        snapshot_broken::STEPS,
        block_pull::STEPS,
        managed_save::STEPS,
        capi::STEPS,
        managed_save_host::STEPS,
        snapshot_power::STEPS,
        power::STEPS,
    ]
    .into_iter()
    .flatten()
}
