//! The hypervisor behind [`Hypervisor`], through the `xenctrl` crate.
//!
//! The crate opens the unversioned `libxenctrl.so`, which only development packages have; `make install`
//! puts a link of that name into a private directory that the programs' run path names.

use super::{DomainView, Hypervisor};
use crate::error::{Error, ErrorKind, Result};
use crate::model::domain::{DomainLife, DomainState};
use uuid::Uuid;
use xenctrl::XenControl;

/// Bytes in a page of a guest's memory on x86.
const PAGE_BYTES: u64 = 4096;

// `flags` of `xen_domctl_getdomaininfo` (Xen's public/domctl.h, XEN_DOMINF_*).
const DYING: u32 = 1 << 0;
const SHUTDOWN: u32 = 1 << 2;
const PAUSED: u32 = 1 << 3;
const SHUTDOWN_REASON_SHIFT: u32 = 16;
const SHUTDOWN_REASON_MASK: u32 = 255;

// Reasons of a shutdown (Xen's public/sched.h, SHUTDOWN_*).
const REASON_SUSPEND: u32 = 2;
const REASON_CRASH: u32 = 3;

/// The open handle.
pub struct XenCtl(XenControl);

impl XenCtl {
    /// Opens the control interface.
    ///
    /// # Errors
    /// If this is not domain 0, or the caller is not root.
    pub fn open() -> Result<Self> {
        XenControl::new_default().map(Self).map_err(|error| {
            let hint = if error.to_string().contains("dlopen") {
                "libxenctrl.so is missing: `make install` puts a link of that name into lib/libxl-ext"
            } else {
                "run this as root in domain 0 of a Xen host"
            };
            Error::new(ErrorKind::Toolstack, "open the hypervisor's control interface")
                .because(error)
                .hint(hint)
        })
    }
}

impl XenCtl {
    /// The first domain from the given number on.
    fn first_from(&self, domid: u32) -> Result<Option<DomainView>> {
        let info = self.0.domain_getinfolist(domid).map_err(|error| {
            Error::new(
                ErrorKind::Toolstack,
                format!("ask the hypervisor for domain {domid}"),
            )
            .because(error)
        })?;
        Ok(info.map(|info| DomainView {
            life: DomainLife {
                domid: u32::from(info.domain),
                uuid: Uuid::from_bytes(info.handle),
            },
            state: state(info.flags),
            paused: info.flags & PAUSED != 0,
            memory_bytes: info.tot_pages.saturating_mul(PAGE_BYTES),
            has_run: info.cpu_time > 0,
        }))
    }
}

impl Hypervisor for XenCtl {
    fn look(&self, domid: u32) -> Result<Option<DomainView>> {
        Ok(self
            .first_from(domid)?
            .filter(|view| view.life.domid == domid))
    }

    fn all(&self) -> Result<Vec<DomainView>> {
        let mut all: Vec<DomainView> = Vec::new();
        while let Some(view) = self.first_from(all.last().map_or(0, |last| last.life.domid + 1))? {
            all.push(view);
        }
        Ok(all)
    }

    fn find(&self, uuid: Uuid) -> Result<Option<DomainView>> {
        let mut from = 1;
        while let Some(view) = self.first_from(from)? {
            if view.life.uuid == uuid && view.state != DomainState::Dying {
                return Ok(Some(view));
            }
            from = view.life.domid + 1;
        }
        Ok(None)
    }
}

fn state(flags: u32) -> DomainState {
    if flags & DYING != 0 {
        DomainState::Dying
    } else if flags & SHUTDOWN != 0 {
        match flags >> SHUTDOWN_REASON_SHIFT & SHUTDOWN_REASON_MASK {
            REASON_SUSPEND => DomainState::Suspended,
            REASON_CRASH => DomainState::Crashed,
            _ => DomainState::Shutdown,
        }
    } else if flags & PAUSED != 0 {
        DomainState::Paused
    } else {
        DomainState::Running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_that_is_both_shut_down_and_paused_is_shut_down() {
        assert_eq!(
            state(SHUTDOWN | PAUSED | REASON_SUSPEND << 16),
            DomainState::Suspended
        );
        assert_eq!(state(SHUTDOWN | REASON_CRASH << 16), DomainState::Crashed);
        assert_eq!(state(SHUTDOWN), DomainState::Shutdown);
        assert_eq!(state(SHUTDOWN | DYING), DomainState::Dying);
        assert_eq!(state(PAUSED), DomainState::Paused);
        assert_eq!(state(1 << 5), DomainState::Running);
    }
}
