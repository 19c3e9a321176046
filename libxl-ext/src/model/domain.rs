//! What a domain is at one instant.

use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// The life of a domain as the hypervisor tells it (`xc_domaininfo_t.flags`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DomainState {
    /// It can be scheduled.
    Running,
    /// Paused by the toolstack.
    Paused,
    /// It answered a suspend request and waits to be resumed or destroyed.
    Suspended,
    /// It crashed.
    Crashed,
    /// It ended by itself (poweroff, reboot, watchdog).
    Shutdown,
    /// Its memory is being given back.
    Dying,
}

impl fmt::Display for DomainState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Crashed => "crashed",
            Self::Shutdown => "shut down",
            Self::Dying => "dying",
        })
    }
}

/// How the guest was, or is to be, when it is not being worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestState {
    /// Its virtual CPUs run.
    Running,
    /// Paused by the toolstack.
    Paused,
    /// There is no domain of it. (V6: inactive.)
    Off,
}

impl fmt::Display for GuestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Off => "off",
        })
    }
}

/// `libxl_domain_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestType {
    /// Paravirtual.
    Pv,
    /// Paravirtual in a hardware container.
    Pvh,
    /// Full virtualisation, with a device model.
    Hvm,
}

impl fmt::Display for GuestType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pv => "PV",
            Self::Pvh => "PVH",
            Self::Hvm => "HVM",
        })
    }
}

/// One life of a domain: a domid is used again, the pair is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainLife {
    /// The number that the hypervisor gave.
    pub domid: u32,
    /// The UUID (`handle` for the hypervisor), kept over save and restore.
    pub uuid: Uuid,
}

/// Who acts on what a restored guest does later: reboot, poweroff, crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keeper {
    /// A process of xl's, which `xl restore` leaves behind, does as the domain's `on_*` say.
    #[default]
    Xl,
    /// The toolstack that called, as for every domain that it created through libxl.
    Caller,
}
