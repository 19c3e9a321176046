//! The domains as libxl has them: names, configurations, a destruction in its parts.

use super::Shared;
use super::images::format_of;
use super::memory::stream_with;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::model::domain::{DomainState, GuestType};
use crate::plan::Switch;
use crate::port::{Configuration, Toolstack};
use serde_json::json;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

impl Toolstack for Shared {
    fn domid_of(&self, name: &str) -> Result<Option<u32>> {
        self.call(|world| {
            let mut domains = world.domains.iter();
            let named = domains.find(|(_, domain)| domain.name.as_deref() == Some(name));
            Ok(named.map(|(domid, _)| *domid))
        })
    }

    fn name_of(&self, domid: u32) -> Result<Option<String>> {
        let world = self.0.borrow();
        let domain = world.domains.get(&domid);
        Ok(domain.and_then(|domain| domain.name.clone()))
    }

    fn has_shadow_paging(&self) -> Result<bool> {
        Ok(true)
    }

    fn disks_are_connected(&self, domid: u32) -> Result<bool> {
        self.call(|world| {
            // It connects them while it runs.
            if world.domain(domid)?.state() == DomainState::Running {
                world.connects_in = world.connects_in.saturating_sub(1);
            }
            Ok(world.connects_in == 0)
        })
    }

    fn configuration(&self, domid: u32) -> Result<Configuration> {
        self.call(|world| {
            let domain = world.domain(domid)?;
            let uuid = domain.uuid;
            let disks: Vec<_> = domain
                .told
                .iter()
                .zip(["xvda", "xvdb"])
                .map(|(path, vdev)| {
                    json!({ "pdev_path": path, "vdev": vdev, "backend": "qdisk",
                            "format": format_of(path), "readwrite": 1 })
                })
                .collect();
            let value = json!({ "c_info": { "uuid": uuid, "type": "pv" }, "disks": disks });
            Ok(Configuration {
                json: value.to_string(),
                value,
                guest_type: GuestType::Pv,
            })
        })
    }

    fn suspend_to(
        &self,
        domid: u32,
        sink: BorrowedFd<'_>,
        _live: bool,
        _observer: &dyn Observer,
    ) -> Result<Option<Instant>> {
        self.call(|world| {
            if world.connects_in > 0 {
                return Err(Error::new(
                    ErrorKind::GuestTimeout,
                    "a guest that waits for its disks does not suspend",
                ));
            }
            let domain = world.domain(domid)?;
            assert_eq!(
                domain.state(),
                DomainState::Running,
                "a guest has to run to suspend"
            );
            assert!(
                domain.monitor_held,
                "the monitor sees the suspend and exits"
            );
            domain.suspended = true;
            let mut sink = std::fs::File::from(sink.as_fd().try_clone_to_owned().unwrap());
            sink.write_all(&stream_with(&domain.memory))
                .map(|()| None)
                .map_err(|error| Error::io("sink", error))
        })
    }

    fn resume(&self, domid: u32) -> Result<()> {
        self.call(|world| {
            let domain = world.domain(domid)?;
            assert!(domain.suspended, "resumed without a suspend");
            assert!(!domain.gutted, "resumed without its QEMU");
            domain.suspended = false;
            Ok(())
        })
    }

    fn pause(&self, domid: u32) -> Result<()> {
        self.call(|world| {
            world.domain(domid)?.pauses += 1;
            Ok(())
        })
    }

    fn unpause(&self, domid: u32) -> Result<()> {
        self.call(|world| {
            let domain = world.domain(domid)?;
            domain.pauses = domain.pauses.saturating_sub(1);
            domain.has_run |= domain.pauses == 0;
            Ok(())
        })
    }

    fn point_disks(&self, domid: u32, switches: &[Switch]) -> Result<()> {
        self.call(|world| {
            let domain = world.domain(domid)?;
            for switch in switches {
                let at = usize::from(switch.from.vdev == "xvdb");
                domain.told[at] = switch.to.image.to_path_buf();
            }
            Ok(())
        })
    }

    fn destroy(&self, domid: u32) -> Result<()> {
        // As libxl does it: pause, end QEMU, take the name, and only then the domain.
        self.call(|world| {
            world.domain(domid)?.pauses += 1;
            Ok(())
        })?;
        self.call(|world| {
            world.domain(domid)?.gutted = true;
            Ok(())
        })?;
        self.call(|world| {
            world.domain(domid)?.name = None;
            Ok(())
        })?;
        self.call(|world| {
            world.domains.remove(&domid);
            world.ended.remove(&domid);
            Ok(())
        })
    }
}
