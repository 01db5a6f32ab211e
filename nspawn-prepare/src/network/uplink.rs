//! The host's uplink, and the addresses that a machine has behind it.
//!
//! Every machine has the same addresses of its own, which pasta translates. By default, pasta would
//! give the machine the host's addresses. The machine could then not reach the host, and `ssh
//! MACHINE` would connect to the host (nss-mymachines(8)).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::network::host_routes;

/// Loopback interface of the host.
const LOOPBACK: &str = "lo";
/// Network interface of the machine.
const INTERFACE: &str = "eth0";
/// IPv4 addresses of the machine and of pasta.
///
/// They belong to a network that is reserved for benchmarks (RFC 2544).
const IPV4: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 19, 0, 2), Ipv4Addr::new(198, 19, 0, 1)];
const IPV4_PREFIX: u8 = 30;
/// IPv6 addresses of the machine and of pasta, in a unique local network (RFC 4193).
const IPV6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd6e, 0x7370, 0x6177, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xfd6e, 0x7370, 0x6177, 0, 0, 0, 0, 1),
];
const IPV6_PREFIX: u8 = 64;
/// Size of the largest packet that pasta carries, in bytes (passt(1), `--mtu`).
const MTU: u32 = 65520;

/// The host's connection to the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    has_ipv4: bool,
    has_ipv6: bool,
    /// Interface that pasta must use, because the host has no default route that names one.
    interface: Option<String>,
}

impl Uplink {
    /// Reads the host's routes and interfaces.
    pub fn detect() -> Result<Self> {
        let read = |name: &str| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
        let has_ipv4 = host_routes::has_ipv4_default(&read("route"));
        let has_ipv6 = has_ipv6(has_ipv4, &read("ipv6_route"), &read("if_inet6"));
        if has_ipv4 || has_ipv6 {
            return Ok(Self {
                has_ipv4,
                has_ipv6,
                interface: None,
            });
        }
        Ok(Self {
            has_ipv4: true,
            has_ipv6: false,
            interface: Some(interface_without_route()?),
        })
    }

    /// Returns whether the host has no network interface besides its loopback.
    pub fn is_loopback(&self) -> bool {
        self.interface.as_deref() == Some(LOOPBACK)
    }

    /// Returns pasta's own address in the machine's network.
    pub fn gateway(&self) -> IpAddr {
        if self.has_ipv4 {
            IPV4[1].into()
        } else {
            IPV6[1].into()
        }
    }

    /// Returns the options of pasta(1) for the addresses and the interface.
    ///
    /// With `forwards_dns`, pasta asks the host's first resolver for the machine. pasta of 2023
    /// then also answers questions that the machine sends to that resolver directly.
    pub fn options(&self, forwards_dns: bool) -> Vec<String> {
        let mut options = vec![format!("--ns-ifname={INTERFACE}")];
        if self.has_ipv4 {
            options.extend(address_options(IPV4.map(IpAddr::from), forwards_dns));
        }
        if self.has_ipv6 {
            options.extend(address_options(IPV6.map(IpAddr::from), forwards_dns));
        }
        match (self.has_ipv4, self.has_ipv6) {
            (true, false) => options.push("--ipv4-only".to_owned()),
            (false, true) => options.push("--ipv6-only".to_owned()),
            _ => {}
        }
        if let Some(interface) = &self.interface {
            options.push(format!("--interface={interface}"));
        }
        options
    }

    /// Returns the commands of ip(8) that configure the interface in the machine.
    ///
    /// The addresses are marked as deprecated, so that systemd-machined does not announce them: the
    /// host can't reach the machine by them. The machine itself uses them nevertheless, because it
    /// has no others. With `nesting` they are not: the pasta of a container in the machine copies the
    /// machine's addresses and routes, but since 2026 no deprecated addresses.
    pub fn configuration(&self, nesting: bool) -> String {
        let lifetime = if nesting { "" } else { "preferred_lft 0" };
        let address = |address: IpAddr, prefix: u8, flags: &str| {
            format!("address add {address}/{prefix} dev {INTERFACE} {flags} {lifetime}\n")
        };
        let route = |gateway: IpAddr| format!("route add default via {gateway} dev {INTERFACE}\n");
        let mut commands = format!("link set {INTERFACE} mtu {MTU}\n");
        if fs::exists("/proc/sys/net/ipv6").unwrap_or(false) {
            // The kernel would add a link-local address, by which nothing can be reached.
            commands.push_str(&format!("link set {INTERFACE} addrgenmode none\n"));
        }
        commands.push_str(&format!("link set {INTERFACE} up\n"));
        if self.has_ipv4 {
            commands.push_str(&address(IPV4[0].into(), IPV4_PREFIX, ""));
            commands.push_str(&route(IPV4[1].into()));
        }
        if self.has_ipv6 {
            commands.push_str(&address(IPV6[0].into(), IPV6_PREFIX, "nodad"));
            commands.push_str(&route(IPV6[1].into()));
        }
        commands
    }
}

fn address_options([machine, gateway]: [IpAddr; 2], forwards_dns: bool) -> Vec<String> {
    let mut options = vec![
        format!("--address={machine}"),
        format!("--gateway={gateway}"),
    ];
    if machine.is_ipv4() {
        options.push(format!("--netmask={IPV4_PREFIX}"));
    }
    if forwards_dns {
        options.push(format!("--dns-forward={gateway}"));
    }
    options
}

/// Returns the interface that pasta must use on a host without a default route.
///
/// pasta of 2023 refuses to start without a route, unless it is given an interface. The host may
/// get a route later.
fn interface_without_route() -> Result<String> {
    let interfaces = getifaddrs().context("can't list the host's network interfaces")?;
    let is_loopback = InterfaceFlags::IFF_LOOPBACK;
    let best = interfaces
        .filter(|interface| !interface.flags.contains(is_loopback))
        .max_by_key(|interface| interface.flags.contains(InterfaceFlags::IFF_UP));
    Ok(best.map_or(LOOPBACK.to_owned(), |interface| interface.interface_name))
}

/// Returns whether the host is known to have no network interface besides its loopback.
///
/// A caller in a network namespace of its own can't know.
pub fn is_missing() -> bool {
    let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    network("self") == network("1") && Uplink::detect().is_ok_and(|uplink| uplink.is_loopback())
}

/// Returns whether the machine can use IPv6.
///
/// `routes` is the content of `/proc/net/ipv6_route`, and `addresses` that of `/proc/net/if_inet6`.
/// pasta turns IPv6 off if the interface of the default route has no link-local address. The
/// machine would have an IPv6 address and a default route, and every connection would fail with "No
/// route to host". This was measured with passt of 2023. A host without IPv4 has nothing better
/// than to try.
fn has_ipv6(has_ipv4: bool, routes: &str, addresses: &str) -> bool {
    let interfaces = host_routes::ipv6_default_interfaces(routes);
    let has_link_local = interfaces
        .iter()
        .any(|interface| host_routes::has_link_local_address(addresses, interface));
    has_link_local || (!has_ipv4 && !interfaces.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_needs_a_link_local_address_on_the_interface_of_the_default_route() {
        let zero = "00000000000000000000000000000000";
        let router = "20010db8000000000000000000000254";
        let route =
            format!("{zero} 00 {zero} 00 {router} 00000400 00000003 00000000 00000003     eth0\n");
        let global = "20010db8000000000000000000000002 02 40 00 80     eth0\n\
                      00000000000000000000000000000001 01 80 10 80       lo\n\
                      fe80000000000000000000fffe000003 03 40 20 80     eth1\n";
        let link_local = "fe80000000000000000000fffe000002 02 40 20 80     eth0\n";
        let both = format!("{global}{link_local}");
        assert!(has_ipv6(true, &route, &both));
        assert!(!has_ipv6(true, &route, global));
        assert!(has_ipv6(false, &route, global));
        assert!(!has_ipv6(false, "", &both));
    }

    #[test]
    fn only_address_families_of_the_host_are_configured() {
        let uplink = |has_ipv4, has_ipv6| Uplink {
            has_ipv4,
            has_ipv6,
            interface: None,
        };
        assert!(
            uplink(true, false)
                .options(false)
                .contains(&"--ipv4-only".to_owned())
        );
        assert!(!uplink(true, false).configuration(false).contains("fd6e"));
        assert!(
            uplink(false, true)
                .options(false)
                .contains(&"--ipv6-only".to_owned())
        );
        assert!(!uplink(false, true).configuration(false).contains("198.19"));
        assert_eq!(uplink(false, true).gateway(), IpAddr::from(IPV6[1]));
        let both = uplink(true, true).options(true).join(" ");
        assert!(
            both.contains("198.19.0.2")
                && both.contains("fd6e:7370:6177::2")
                && !both.contains("only"),
            "{both}"
        );
    }
}
