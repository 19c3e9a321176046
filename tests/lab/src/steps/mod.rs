//! The steps, one file per feature. `tests/lab/README.md` tells how to add one.

mod block_pull;
mod block_pull_interrupted;
mod capi;
mod faults;
mod guest_types;
mod guests;
mod managed_save;
mod managed_save_host;
mod memory;
mod power;
mod replication;
mod save;
pub(crate) mod small_store;
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
mod template_disk;
mod xen;

use crate::step::Step;

/// What a run begins with that may have no time for all: each feature once, and what takes longest first.
const FIRST: &[&str] = &[
    "ts-xen-boots",
    "ts-dom0-without-dev-packages",
    "ts-snapshot-five-random-power-cuts",
    "ts-snapshot-create-revert-delete",
    "ts-external-deletes-merge-while-the-guest-runs",
    "ts-managed-save-goes-on",
    "ts-block-pull-by-increments",
    "ts-replication-fails-over-to-the-last-checkpoint",
    "ts-capi-create-revert-delete",
    "ts-memory-is-kept-once",
    "ts-external-raw-disk-that-looks-like-qcow2",
    "ts-snapshot-revert-killed-without-domain",
    "ts-snapshot-survives-a-full-disk",
    "ts-host-reboots-and-guests-count-on",
    "ts-care-a-damaged-store-is-found-and-mended",
    "ts-external-is-used-by-reboot-save-and-revert",
    "ts-capi-managed-save",
];

/// All steps, in the order in which they run.
pub fn all() -> impl Iterator<Item = &'static Step> {
    let is_first = |step: &&'static Step| FIRST.contains(&step.name);
    let first = FIRST
        .iter()
        .filter_map(|name| by_feature().find(|step| step.name == *name));
    first.chain(by_feature().filter(move |step| !is_first(step)))
}

/// All steps, feature by feature; those that take the power away are last.
fn by_feature() -> impl Iterator<Item = &'static Step> {
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
        block_pull_interrupted::STEPS,
        replication::STEPS,
        managed_save::STEPS,
        capi::STEPS,
        managed_save_host::STEPS,
        snapshot_power::STEPS,
        power::STEPS,
    ]
    .into_iter()
    .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_first_is_there_and_nothing_is_lost() {
        let names: Vec<_> = all().map(|step| step.name).collect();
        assert_eq!(names[..FIRST.len()], *FIRST);
        assert_eq!(names.len(), by_feature().count());
    }
}
