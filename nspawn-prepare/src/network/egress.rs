//! Keeps machines from connecting to the host, to its links and to the metadata services of clouds.
//!
//! A machine's connections are those of its pasta, so a BPF program on the cgroup of pasta decides
//! about them. systemd's `IPAddressDeny=` is not enough: it does not know ports, and systemd starts
//! a unit without it if the kernel refuses it. Here, that is an error.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use nspawn_common::sys::bpf;
use nspawn_common::sys::bpf::Hook;

use crate::network::destination::Destination;
use crate::network::filter;

/// Networks that are the host itself or one of its links, on every host.
const LOCAL: [Destination; 6] = [
    Destination::ipv4_network(Ipv4Addr::new(127, 0, 0, 0), 8),
    Destination::ipv6_network(Ipv6Addr::LOCALHOST, 128),
    // A connection to 0.0.0.0 or :: reaches the loopback.
    Destination::ipv4_network(Ipv4Addr::UNSPECIFIED, 8),
    Destination::ipv6_network(Ipv6Addr::UNSPECIFIED, 128),
    // Clouds reveal an instance's secrets at 169.254.169.254.
    Destination::ipv4_network(Ipv4Addr::new(169, 254, 0, 0), 16),
    Destination::ipv6_network(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
];

/// Groups of hosts: multicast and broadcast.
const GROUPS: [Destination; 3] = [
    Destination::ipv4_network(Ipv4Addr::new(224, 0, 0, 0), 4),
    Destination::ipv6_network(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
    Destination::ipv4_network(Ipv4Addr::BROADCAST, 32),
];

/// Metadata services of Amazon and Alibaba, besides 169.254.169.254.
///
/// They reveal an instance's secrets.
const CLOUD_METADATA: [Destination; 2] = [
    Destination::ipv6_network(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128),
    Destination::ipv4_network(Ipv4Addr::new(100, 100, 100, 200), 32),
];

/// Events at which the kernel calls a filter, and whether the filter is for IPv6.
const HOOKS: [(Hook, bool); 4] = [
    (Hook::Inet4Connect, false),
    (Hook::Inet6Connect, true),
    (Hook::Udp4Sendmsg, false),
    (Hook::Udp6Sendmsg, true),
];

/// Returns whether an address is the host itself or one of its links, on every host.
pub fn is_local(address: &IpAddr) -> bool {
    LOCAL.iter().any(|network| network.contains(address))
}

/// Addresses of the host's network interfaces.
pub struct HostAddresses(Vec<IpAddr>);

impl HostAddresses {
    /// Lists the addresses.
    pub fn list() -> Result<Self> {
        let interfaces = getifaddrs().context("can't list the host's addresses")?;
        let addresses = interfaces.filter_map(|interface| ip_address(&interface.address?));
        Ok(Self(addresses.collect()))
    }

    /// Returns whether an address is the host itself or one of its links.
    pub fn is_near(&self, address: &IpAddr) -> bool {
        is_local(address) || self.0.contains(address)
    }
}

fn ip_address(address: &SockaddrStorage) -> Option<IpAddr> {
    if let Some(address) = address.as_sockaddr_in() {
        return Some(address.ip().into());
    }
    Some(address.as_sockaddr_in6()?.ip().into())
}

/// Refuses connections from this process's cgroup to closed destinations.
///
/// Destinations that are `allowed` stay open.
///
/// # Errors
/// Fails if the kernel has no BPF for cgroups, or refuses it to this process.
pub fn restrict(allowed: &[Destination]) -> Result<()> {
    let mut denied = [&LOCAL[..], &GROUPS, &CLOUD_METADATA].concat();
    for address in HostAddresses::list()?.0 {
        denied.push(Destination::new(address, None));
    }
    attach_filters(allowed, &denied).context(
        "the kernel can't filter the machine's connections (it needs CONFIG_CGROUP_BPF), so that the host would be \
         open to it; choose --network=none, or --network=host for jobs that may reach the host",
    )
}

fn attach_filters(allowed: &[Destination], denied: &[Destination]) -> Result<()> {
    let cgroup = own_cgroup()?;
    for (hook, is_ipv6) in HOOKS {
        bpf::attach(&cgroup, hook, &filter::assemble(is_ipv6, allowed, denied))?;
    }
    Ok(())
}

fn own_cgroup() -> Result<File> {
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    // The line of cgroups version 2 has nothing between two colons (cgroups(7)).
    let path = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .context("there is no cgroup of version 2")?;
    Ok(File::open(Path::new("/sys/fs/cgroup").join(path))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_the_host_and_its_links() {
        for (address, expected) in [
            ("127.0.0.53", true),
            ("0.0.0.0", true),
            ("169.254.169.254", true),
            ("::1", true),
            ("::", true),
            ("fe80::1", true),
            ("febf::1", true),
            ("192.0.2.1", false),
            ("224.0.0.251", false),
            ("255.255.255.255", false),
            ("fec0::1", false),
            ("ff02::fb", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_local(&address.parse().unwrap()), expected, "{address}");
        }
    }
}
