//! Checksums of what the disks of snapshots hold: they cost a look at every byte, so they are made when somebody asks.

use super::Host;
use crate::diff::checksum;
use crate::error::Result;
use crate::event::Observer;
use crate::exec;
use crate::model::record::RecordState;
use crate::plan::{self, Fresh};
use crate::verify::{Finding, require_disks_as_recorded};
use std::collections::BTreeMap;

impl Host {
    /// Reads what the disks of snapshots hold, of the given name or of all, and records the checksums of those of which
    /// none is recorded; [`Host::verify`] compares them from then on. What is amiss already is returned, and nothing
    /// recorded of that snapshot.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NoSuchSnapshot`], [`crate::ErrorKind::Locked`], [`crate::ErrorKind::Aborted`]; what the store and
    /// the ports report.
    pub fn record_contents(
        &self,
        domain: &str,
        name: Option<&str>,
        observer: &dyn Observer,
    ) -> Result<Vec<Finding>> {
        let (target, lock, mut inventory) = self.take_and_observe(domain, observer)?;
        let chosen: Vec<_> = match name {
            Some(name) => vec![inventory.record.find(name)?.clone()],
            None => inventory.record.snapshots.clone(),
        };
        let mut findings = Vec::new();
        for snapshot in &chosen {
            if snapshot.state == RecordState::Deleting {
                continue;
            }
            if let Err(error) = require_disks_as_recorded(&inventory, snapshot) {
                findings.push(Finding {
                    snapshot: Some(snapshot.name().to_owned()),
                    what: error.report(),
                });
                continue;
            }
            let disks = snapshot.disks.iter();
            let mut new = disks
                .filter(|proof| !snapshot.contents.contains_key(&proof.target.vdev))
                .peekable();
            if new.peek().is_none() {
                continue;
            }
            let read: BTreeMap<_, _> = new
                .map(|proof| {
                    let sum = checksum(&self.ports, &inventory.record, snapshot, proof, observer)?;
                    Ok((proof.target.vdev.clone(), sum))
                })
                .collect::<Result<_>>()?;
            let mut sums = snapshot.contents.clone();
            sums.extend(read);
            let plan = plan::keep_contents(&inventory, snapshot, sums, &Fresh::now());
            plan::check(&plan, &inventory)?;
            exec::run(&plan, &self.ports, &target.store, &lock, observer)?;
            inventory.record = target.store.load()?;
        }
        Ok(findings)
    }
}
