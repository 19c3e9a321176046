//! What becomes of each domain when the host goes down: decided beforehand, of plain data.

use libxl_ext::model::domain::DomainState;
use libxl_ext::plan::memory_image_bytes;
use libxl_ext::snapshot::RunningDomain;
use serde::Serialize;
use std::fmt;

/// What is done with a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Fate {
    /// It is saved.
    Save,
    /// It is shut down, since its image may not fit: so many bytes.
    ShutDown(u64),
    /// It is left as it is: it has ended, or nobody knows what is being done with it.
    Leave(DomainState),
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Save => f.write_str("it is saved"),
            Self::ShutDown(bytes) => write!(
                f,
                "its image may take {} MiB, for which there is no room: it is shut down",
                bytes >> 20
            ),
            Self::Leave(state) => write!(f, "it is {state}, and left alone"),
        }
    }
}

/// The smallest are saved first, so that as many as possible are; they come in that order.
pub(super) fn fates(mut domains: Vec<RunningDomain>, room: u64) -> Vec<(RunningDomain, Fate)> {
    domains.sort_by_key(|domain| (domain.memory_bytes, domain.domid));
    let mut left = room;
    let decide = |domain: RunningDomain| {
        let fate = match domain.state {
            DomainState::Running | DomainState::Paused => {
                let bytes = memory_image_bytes(domain.memory_bytes);
                match left.checked_sub(bytes) {
                    Some(rest) => {
                        left = rest;
                        Fate::Save
                    }
                    None => Fate::ShutDown(bytes),
                }
            }
            state => Fate::Leave(state),
        };
        (domain, fate)
    };
    domains.into_iter().map(decide).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn domain(domid: u32, mib: u64, state: DomainState) -> RunningDomain {
        RunningDomain {
            domid,
            name: format!("g{domid}"),
            state,
            memory_bytes: mib * MIB,
        }
    }

    #[test]
    fn the_smallest_are_saved_as_long_as_there_is_room() {
        let domains = || {
            vec![
                domain(1, 400, DomainState::Running),
                domain(2, 100, DomainState::Paused),
                domain(3, 100, DomainState::Running),
                domain(4, 10, DomainState::Shutdown),
                domain(5, 10, DomainState::Suspended),
            ]
        };
        let told = |room: u64| {
            let all = fates(domains(), room * MIB).into_iter();
            all.map(|(domain, fate)| match fate {
                Fate::Save => format!("{} save", domain.domid),
                Fate::ShutDown(_) => format!("{} end", domain.domid),
                Fate::Leave(_) => format!("{} leave", domain.domid),
            })
            .collect::<Vec<_>>()
            .join(", ")
        };
        assert_eq!(told(1000), "4 leave, 5 leave, 2 save, 3 save, 1 save");
        assert_eq!(told(250), "4 leave, 5 leave, 2 save, 3 save, 1 end");
        assert_eq!(told(150), "4 leave, 5 leave, 2 save, 3 end, 1 end");
        assert_eq!(told(0), "4 leave, 5 leave, 2 end, 3 end, 1 end");
    }
}
