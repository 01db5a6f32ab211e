//! Destinations of connections: an address or a network, and all ports or one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};

/// An address or a network, and all its ports or one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    address: IpAddr,
    prefix: u8,
    port: Option<u16>,
}

impl Destination {
    /// Creates the destination for a single address, with all ports or one.
    pub fn new(address: IpAddr, port: Option<u16>) -> Self {
        Self {
            address,
            prefix: max_prefix(&address),
            port,
        }
    }

    /// Creates the destination for all ports of an IPv4 network.
    pub const fn ipv4_network(address: Ipv4Addr, prefix: u8) -> Self {
        Self {
            address: IpAddr::V4(address),
            prefix,
            port: None,
        }
    }

    /// Creates the destination for all ports of an IPv6 network.
    pub const fn ipv6_network(address: Ipv6Addr, prefix: u8) -> Self {
        Self {
            address: IpAddr::V6(address),
            prefix,
            port: None,
        }
    }

    /// Parses `ADDRESS[/PREFIX][:PORT]`. An IPv6 address with a port stands in brackets.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_parts(text).with_context(|| {
            format!("{text:?} is not ADDRESS[/PREFIX][:PORT], such as 192.0.2.7:443 or [2001:db8::7]:443")
        })
    }

    fn parse_parts(text: &str) -> Option<Self> {
        let (network, port) = split_port(text)?;
        let (address, prefix) = match network.split_once('/') {
            Some((address, prefix)) => (address.parse().ok()?, prefix.parse().ok()?),
            None => {
                let address = network.parse().ok()?;
                (address, max_prefix(&address))
            }
        };
        if prefix > max_prefix(&address) {
            return None;
        }
        let port = match port {
            Some(port) => Some(port.parse().ok().filter(|port| *port != 0)?),
            None => None,
        };
        Some(Self {
            address,
            prefix,
            port,
        })
    }

    /// Returns the address, or the first one of the network.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Returns the only port, or `None` for all ports.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Returns whether the address is in the network. The port does not matter.
    pub fn contains(&self, address: &IpAddr) -> bool {
        let masked = Self {
            address: *address,
            ..*self
        };
        let values = |destination: &Self| destination.words().map(|(value, _)| value);
        self.address.is_ipv4() == address.is_ipv4() && values(&masked) == values(self)
    }

    /// Returns the network in the notation of a unit's `IPAddressAllow=`.
    pub fn network(&self) -> String {
        format!("{}/{}", self.address, self.prefix)
    }

    /// Returns the address as four words with their masks, in network byte order.
    ///
    /// An IPv4 address is in the mapped form (`::ffff:0:0/96`), in which IPv6 sockets use it.
    pub fn words(&self) -> [(u32, u32); 4] {
        let (address, prefix) = match self.address {
            IpAddr::V4(address) => (address.to_ipv6_mapped(), u32::from(self.prefix) + 96),
            IpAddr::V6(address) => (address, u32::from(self.prefix)),
        };
        let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
        let word = |number: u128, index: u32| ((number >> (96 - 32 * index)) as u32).to_be();
        [0, 1, 2, 3].map(|index| (word(u128::from(address) & mask, index), word(mask, index)))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(out, "[{}/{}]:{port}", self.address, self.prefix),
            None => write!(out, "{}/{}", self.address, self.prefix),
        }
    }
}

fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (network, port) = rest.split_once(']')?;
        return Some((network, port.strip_prefix(':')));
    }
    // Text with a second colon is an IPv6 address, and has no port.
    if text.matches(':').count() == 1 {
        let (network, port) = text.split_once(':')?;
        return Some((network, Some(port)));
    }
    Some((text, None))
}

fn max_prefix(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(text: &str) -> Destination {
        Destination::parse(text).unwrap()
    }

    #[test]
    fn destinations_are_parsed_and_printed() {
        for (text, address, prefix, port) in [
            ("192.0.2.7", "192.0.2.7", 32, None),
            ("192.0.2.7:443", "192.0.2.7", 32, Some(443)),
            ("192.0.2.0/24", "192.0.2.0", 24, None),
            ("192.0.2.0/24:80", "192.0.2.0", 24, Some(80)),
            ("2001:db8::7", "2001:db8::7", 128, None),
            ("[2001:db8::7]:443", "2001:db8::7", 128, Some(443)),
            ("[2001:db8::/32]:443", "2001:db8::", 32, Some(443)),
            ("::1", "::1", 128, None),
        ] {
            let read = destination(text);
            assert_eq!(
                (read.address, read.prefix, read.port),
                (address.parse().unwrap(), prefix, port),
                "{text}"
            );
            assert_eq!(destination(&read.to_string()), read, "{text}");
        }
    }

    #[test]
    fn malformed_destinations_are_refused() {
        for bad in [
            "",
            "x",
            "192.0.2.7:",
            "192.0.2.7:0",
            "192.0.2.7:65536",
            "192.0.2.7/33",
            "[::1",
            "::1/129",
            "gitlab:443",
        ] {
            assert!(Destination::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_contain_their_addresses() {
        for (network, address, expected) in [
            ("192.0.2.0/24", "192.0.2.9", true),
            ("192.0.2.0/24", "192.0.3.9", false),
            ("192.0.2.7:443", "192.0.2.7", true),
            ("2001:db8::/32", "2001:db8::9", true),
            ("0.0.0.0/0", "::1", false),
        ] {
            assert_eq!(
                destination(network).contains(&address.parse().unwrap()),
                expected,
                "{network} {address}"
            );
        }
    }
}
