//! Parses the host's default routes and IPv6 addresses, as the kernel lists them in `/proc/net`.

/// Flags of a route in `/proc/net/route` and `/proc/net/ipv6_route` (`linux/route.h`).
const ROUTE_UP: u32 = 0x1;
const ROUTE_REJECT: u32 = 0x200;
/// Scope of a link-local address in `/proc/net/if_inet6` (`net/ipv6.h`, `IPV6_ADDR_LINKLOCAL`).
const SCOPE_LINK: &str = "20";

/// Returns whether a usable IPv4 default route is in `/proc/net/route`.
///
/// The columns are: interface, destination, gateway, flags and more. The eighth is the mask.
pub fn has_ipv4_default(table: &str) -> bool {
    table.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.get(1) == Some(&"00000000")
            && fields.get(7) == Some(&"00000000")
            && fields.get(3).is_some_and(|flags| is_usable(flags))
    })
}

/// Returns the interfaces of the usable IPv6 default routes in `/proc/net/ipv6_route`.
pub fn ipv6_default_interfaces(table: &str) -> Vec<&str> {
    table.lines().filter_map(ipv6_default_interface).collect()
}

/// Returns the interface of a line, if the line is a usable default route.
///
/// The columns are: destination, its prefix, source, its prefix, next hop, metric and more. The
/// ninth is the flags, and the last is the interface.
fn ipv6_default_interface(line: &str) -> Option<&str> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let destination = fields.first()?;
    let is_default = destination.bytes().all(|byte| byte == b'0') && fields.get(1) == Some(&"00");
    let interface = *fields.last()?;
    (is_default && interface != "lo" && is_usable(fields.get(8)?)).then_some(interface)
}

/// Returns whether the interface has a link-local address in `/proc/net/if_inet6`.
///
/// The columns are: address, interface number, prefix, scope, flags, interface.
pub fn has_link_local_address(table: &str, interface: &str) -> bool {
    table.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.get(3) == Some(&SCOPE_LINK) && fields.get(5) == Some(&interface)
    })
}

fn is_usable(flags: &str) -> bool {
    u32::from_str_radix(flags, 16)
        .is_ok_and(|flags| flags & ROUTE_UP != 0 && flags & ROUTE_REJECT == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_default_routes_are_found() {
        let heading =
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let link = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert!(!has_ipv4_default(&format!("{heading}{link}")));
        let default = "eth0\t00000000\tFE0200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert!(has_ipv4_default(&format!("{heading}{link}{default}")));
        let unreachable = "*\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert!(!has_ipv4_default(&format!("{heading}{unreachable}")));
    }

    const ZERO: &str = "00000000000000000000000000000000";
    const ROUTER: &str = "20010db8000000000000000000000254";

    #[test]
    fn ipv6_default_routes_are_found() {
        let unreachable =
            format!("{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200       lo\n");
        assert!(ipv6_default_interfaces(&unreachable).is_empty());
        let network =
            format!("{ROUTER} 40 {ZERO} 00 {ZERO} 00000100 00000001 00000000 00000001     eth0\n");
        assert!(ipv6_default_interfaces(&network).is_empty());
        let default =
            format!("{ZERO} 00 {ZERO} 00 {ROUTER} 00000400 00000003 00000000 00000003     eth0\n");
        let all = format!("{unreachable}{network}{default}");
        assert_eq!(ipv6_default_interfaces(&all), ["eth0"]);
    }
}
