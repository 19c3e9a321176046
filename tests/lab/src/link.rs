//! A private network between two labs: a second network card in each, and datagrams between the two QEMUs. They are not
//! connected, so either may be killed, stopped and started again; what the other sends meanwhile is lost, as on a cable.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One end of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The address that dom0 has on it; 24 bits of it are those of the network.
    pub address: Ipv4Addr,
    /// The UDP port on this machine's loopback that this end receives at.
    port: u16,
    /// That of the other end.
    peer: u16,
}

/// The addresses of the two ends.
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];

impl Link {
    /// The two ends of a new one, of ports that were free a moment ago.
    ///
    /// # Errors
    /// When there are none.
    pub fn pair() -> Result<[Self; 2]> {
        // Both are held until both are known, or they could be the same.
        let sockets = [free()?, free()?];
        let mut ports = [0; 2];
        for (port, socket) in ports.iter_mut().zip(&sockets) {
            let address = socket.local_addr();
            *port = address.context("a socket without an address")?.port();
        }
        let end = Self {
            address: ADDRESSES[0],
            port: ports[0],
            peer: ports[1],
        };
        Ok([end, end.other_end()])
    }

    /// The other end of the same.
    #[must_use]
    pub fn other_end(self) -> Self {
        let is_first = self.address == ADDRESSES[0];
        Self {
            address: ADDRESSES[usize::from(is_first)],
            port: self.peer,
            peer: self.port,
        }
    }

    /// QEMU's arguments for it.
    pub(crate) fn arguments(self) -> [String; 4] {
        let Self {
            address,
            port,
            peer,
        } = self;
        let last = address.octets()[3];
        [
            "-netdev".into(),
            format!(
                "dgram,id=link,local.type=inet,local.host=127.0.0.1,local.port={port},\
                 remote.type=inet,remote.host=127.0.0.1,remote.port={peer}"
            ),
            "-device".into(),
            // QEMU would give both ends the same address.
            format!("virtio-net-pci,netdev=link,mac=52:54:00:77:00:{last:02x},romfile="),
        ]
    }

    /// The script that brings it up in dom0.
    pub(crate) fn bring_up(self) -> String {
        format!(
            "ip address replace {}/24 dev eth1 && ip link set eth1 up",
            self.address
        )
    }
}

fn free() -> Result<UdpSocket> {
    UdpSocket::bind(("127.0.0.1", 0)).context("no free UDP port on loopback")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_end_sends_the_other_receives() {
        let [left, right] = Link::pair().unwrap();
        assert_eq!((left.port, left.peer), (right.peer, right.port));
        assert_ne!(left.port, left.peer);
        assert_ne!(left.address, right.address);
        assert_ne!(left.arguments()[3], right.arguments()[3]);
        assert_eq!(right.other_end(), left);
        assert_eq!(left.other_end(), right);
    }
}
