//! Where this process listens, so that it never forwards to itself.

use std::net::{SocketAddr, UdpSocket};

use super::Address;

/// The addresses on which clients are served.
#[derive(Clone, Debug, Default)]
pub struct Itself(Vec<(SocketAddr, Address)>);

impl Itself {
    /// Takes the addresses that were resolved, each with how the user wrote it.
    pub fn new(listening: Vec<(SocketAddr, Address)>) -> Self {
        Self(listening)
    }

    /// Whether a connection to this address comes in here.
    pub fn is_at(&self, address: SocketAddr) -> bool {
        self.listener_at(address).is_some()
    }

    /// The listener, as the user wrote it, that a connection to this address comes in by.
    pub fn listener_at(&self, address: SocketAddr) -> Option<&Address> {
        let comes_in = |listening: SocketAddr| {
            let same_host = listening.ip() == address.ip() || (listening.ip().is_unspecified() && is_local(address));
            listening.port() != 0 && listening.port() == address.port() && same_host
        };
        self.0.iter().find(|(listening, _)| comes_in(*listening)).map(|(_, written)| written)
    }
}

/// Whether it is an address of this machine: only then can it be bound.
fn is_local(address: SocketAddr) -> bool {
    address.ip().is_loopback() || address.ip().is_unspecified() || UdpSocket::bind((address.ip(), 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_met_at_each_of_the_machines_own() {
        let itself = |listening: &str| {
            let address = listening.parse().expect("a socket address");
            Itself::new(vec![(address, Address::Tcp(listening.to_owned()))])
        };
        let at = |text: &str| text.parse().expect("a socket address");
        assert!(itself("127.0.0.1:1").is_at(at("127.0.0.1:1")));
        assert!(!itself("127.0.0.1:1").is_at(at("127.0.0.1:2")));
        assert!(!itself("127.0.0.1:1").is_at(at("127.0.0.2:1")));
        assert!(itself("0.0.0.0:1").is_at(at("127.0.0.2:1")));
        assert!(itself("[::]:1").is_at(at("127.0.0.1:1")));
        // An address for documentation (RFC 5737), which no machine has.
        assert!(!itself("0.0.0.0:1").is_at(at("192.0.2.77:1")));
        assert!(!itself("127.0.0.1:0").is_at(at("127.0.0.1:0")));
    }
}
