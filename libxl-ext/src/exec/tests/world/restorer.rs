//! Domains that are made out of memory images.

use super::memory::memory_in;
use super::{Domain, NAME, Shared};
use crate::error::Result;
use crate::event::Observer;
use crate::memory::Kept;
use crate::model::configuration::redirect;
use crate::model::domain::Keeper;
use crate::model::process::ProcessId;
use crate::plan::Switch;
use crate::port::Restorer;
use std::collections::BTreeSet;
use std::path::PathBuf;

impl Restorer for Shared {
    fn restore_paused(
        &self,
        kept: &Kept,
        keeper: Keeper,
        switches: &[Switch],
        _observer: &dyn Observer,
    ) -> Result<()> {
        let config = kept.configuration()?;
        let memory = memory_in(kept)?;
        self.call(|world| {
            assert!(world.domains.is_empty(), "restored beside another domain");
            world.restored_for.push(keeper);
            world.connects_in = 2;
            let config: serde_json::Value =
                serde_json::from_str(&redirect(&config, switches)?).unwrap();
            let disks = config["disks"].as_array().unwrap();
            let paths = disks.iter().map(|disk| disk["pdev_path"].as_str().unwrap());
            let images: Vec<_> = paths.map(PathBuf::from).collect();
            world.insert(Domain {
                uuid: serde_json::from_value(config["c_info"]["uuid"].clone()).unwrap(),
                suspended: false,
                gutted: false,
                name: Some(NAME.into()),
                monitor: ProcessId { pid: 0, started: 0 },
                monitor_held: false,
                pauses: 1,
                has_run: false,
                memory,
                told: images.clone(),
                images,
                openings: 1,
                in_step: BTreeSet::new(),
            });
            Ok(())
        })
    }
}
