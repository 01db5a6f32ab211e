//! The host's way to the outside, and the addresses that a machine has behind it.
//!
//! The machine's addresses are its own, and the same in every machine, since pasta translates them. With those of the
//! host, which pasta would take by itself, the machine could not reach the host, and `ssh MACHINE` would reach the host
//! instead (nss-mymachines(8)).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// The loopback interface of a host.
const LOOPBACK: &str = "lo";
/// The machine's network interface.
const INTERFACE: &str = "eth0";
/// The machine's IPv4 address and pasta's, in a network that is set aside for measurements (RFC 2544).
const IPV4: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 19, 0, 2), Ipv4Addr::new(198, 19, 0, 1)];
const IPV4_PREFIX: u8 = 30;
/// The machine's IPv6 address and pasta's, in a network of our own (RFC 4193).
const IPV6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd6e, 0x7370, 0x6177, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xfd6e, 0x7370, 0x6177, 0, 0, 0, 0, 1),
];
const IPV6_PREFIX: u8 = 64;
/// The largest packet that pasta carries, in bytes (passt(1), `--mtu`).
const MTU: u32 = 65520;
/// Flags of a route in `/proc/net/route` and `/proc/net/ipv6_route` (`linux/route.h`).
const ROUTE_UP: u32 = 0x1;
const ROUTE_REJECT: u32 = 0x200;

/// What the host has of a way to the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    has_ipv4: bool,
    has_ipv6: bool,
    /// The interface that pasta is told of where there is no default route to find one by.
    interface: Option<String>,
}

impl Uplink {
    /// Looks at the host's routes and interfaces.
    pub fn look() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let has_ipv4 = has_ipv4_route(&read("/proc/net/route"));
        let has_ipv6 = has_ipv6_route(&read("/proc/net/ipv6_route"));
        if has_ipv4 || has_ipv6 {
            return Ok(Self {
                has_ipv4,
                has_ipv6,
                interface: None,
            });
        }
        // Without a route pasta of 2023 refuses to start unless it is told an interface. A route may come later.
        let all = getifaddrs().context("can't list the host's network interfaces")?;
        let outer = all.filter(|interface| !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK));
        let interface =
            outer.max_by_key(|interface| interface.flags.contains(InterfaceFlags::IFF_UP));
        let interface = interface.map_or(LOOPBACK.to_owned(), |interface| interface.interface_name);
        Ok(Self {
            has_ipv4: true,
            has_ipv6: false,
            interface: Some(interface),
        })
    }

    /// Returns whether the host has no network interface beside its loopback.
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

    /// Returns the options of pasta(1) for the addresses, and for asking the host's first resolver on behalf of the
    /// machine. With the latter, pasta of 2023 also answers in its own name what the machine asks that resolver itself.
    pub fn options(&self, forwards_dns: bool) -> Vec<String> {
        let mut options = vec![format!("--ns-ifname={INTERFACE}")];
        let families = [
            (self.has_ipv4, IPV4.map(IpAddr::from)),
            (self.has_ipv6, IPV6.map(IpAddr::from)),
        ];
        for [own, gateway] in families
            .into_iter()
            .filter_map(|(is_there, addresses)| is_there.then_some(addresses))
        {
            options.push(format!("--address={own}"));
            options.push(format!("--gateway={gateway}"));
            options.extend(own.is_ipv4().then(|| format!("--netmask={IPV4_PREFIX}")));
            options.extend(forwards_dns.then(|| format!("--dns-forward={gateway}")));
        }
        match (self.has_ipv4, self.has_ipv6) {
            (true, false) => options.push("--ipv4-only".to_owned()),
            (false, true) => options.push("--ipv6-only".to_owned()),
            _ => {}
        }
        options.extend(
            self.interface
                .iter()
                .map(|interface| format!("--interface={interface}")),
        );
        options
    }

    /// Returns the commands of ip(8) that configure the interface in the machine.
    ///
    /// The addresses are marked as deprecated, so that systemd-machined tells nobody of them: the host can't reach the
    /// machine by them. The machine itself uses them all the same, having no others.
    pub fn configuration(&self) -> String {
        let own = |address: IpAddr, prefix: u8, more: &str| {
            format!("address add {address}/{prefix} dev {INTERFACE} {more} preferred_lft 0\n")
        };
        let route = |gateway: IpAddr| format!("route add default via {gateway} dev {INTERFACE}\n");
        let mut commands = format!("link set {INTERFACE} mtu {MTU}\n");
        if fs::exists("/proc/sys/net/ipv6").unwrap_or(false) {
            // There would be a link-local address, by which nothing is reached.
            commands.push_str(&format!("link set {INTERFACE} addrgenmode none\n"));
        }
        commands.push_str(&format!("link set {INTERFACE} up\n"));
        if self.has_ipv4 {
            commands.push_str(&own(IPV4[0].into(), IPV4_PREFIX, ""));
            commands.push_str(&route(IPV4[1].into()));
        }
        if self.has_ipv6 {
            commands.push_str(&own(IPV6[0].into(), IPV6_PREFIX, "nodad"));
            commands.push_str(&route(IPV6[1].into()));
        }
        commands
    }
}

/// Returns whether the host is known to have no network interface beside its loopback. A caller with a network of its own
/// can't tell.
pub fn is_missing() -> bool {
    let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    network("self") == network("1") && Uplink::look().is_ok_and(|uplink| uplink.is_loopback())
}

// Columns: interface, destination, gateway, flags, …, mask in the eighth.
fn has_ipv4_route(table: &str) -> bool {
    table.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.get(1) == Some(&"00000000")
            && fields.get(7) == Some(&"00000000")
            && fields.get(3).is_some_and(|flags| is_used(flags))
    })
}

// Columns: destination, its prefix, source, its prefix, next hop, metric, …, flags in the ninth, interface.
fn has_ipv6_route(table: &str) -> bool {
    table.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_default = fields
            .first()
            .is_some_and(|address| address.bytes().all(|byte| byte == b'0'));
        is_default
            && fields.get(1) == Some(&"00")
            && fields.last() != Some(&"lo")
            && fields.get(8).is_some_and(|flags| is_used(flags))
    })
}

fn is_used(flags: &str) -> bool {
    u32::from_str_radix(flags, 16)
        .is_ok_and(|flags| flags & ROUTE_UP != 0 && flags & ROUTE_REJECT == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_are_found() {
        let heading =
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let link = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert!(!has_ipv4_route(&format!("{heading}{link}")));
        let default = "eth0\t00000000\tFE0200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert!(has_ipv4_route(&format!("{heading}{link}{default}")));
        let unreachable = "*\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert!(!has_ipv4_route(&format!("{heading}{unreachable}")));

        let zero = "00000000000000000000000000000000";
        let next = "20010db8000000000000000000000254";
        assert!(!has_ipv6_route(&format!(
            "{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n"
        )));
        assert!(!has_ipv6_route(&format!(
            "{next} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth0\n"
        )));
        assert!(has_ipv6_route(&format!(
            "{zero} 00 {zero} 00 {next} 00000400 00000003 00000000 00000003     eth0\n"
        )));
    }

    #[test]
    fn only_families_that_the_host_has_are_configured() {
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
        assert!(!uplink(true, false).configuration().contains("fd6e"));
        assert!(
            uplink(false, true)
                .options(false)
                .contains(&"--ipv6-only".to_owned())
        );
        assert!(!uplink(false, true).configuration().contains("198.19"));
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
