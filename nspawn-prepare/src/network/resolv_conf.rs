//! Reads the host's resolv.conf(5), and adapts it for a machine.

use std::fs;
use std::net::IpAddr;

/// Path of resolv.conf(5), on the host and in machines.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Returns the host's resolvers.
#[must_use]
pub fn resolvers() -> Vec<IpAddr> {
    nameservers(&host_resolv_conf())
}

/// Returns the host's resolv.conf(5) for a machine that reaches none of the resolvers that are near. If there are such,
/// `forwarder` stands in the place of the first of all, since that is the one which pasta asks.
pub fn resolv_conf(forwarder: IpAddr, is_near: impl Fn(&IpAddr) -> bool) -> String {
    with_forwarder(&host_resolv_conf(), forwarder, is_near)
}

fn host_resolv_conf() -> String {
    fs::read_to_string(RESOLV_CONF).unwrap_or_default()
}

fn with_forwarder(text: &str, forwarder: IpAddr, is_near: impl Fn(&IpAddr) -> bool) -> String {
    let all = nameservers(text);
    if !all.iter().any(&is_near) {
        return text.to_owned();
    }
    let mut lines = vec![format!("nameserver {forwarder}")];
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with(['#', ';']))
    {
        match nameservers(line).first() {
            Some(resolver) if is_near(resolver) || Some(resolver) == all.first() => {}
            _ => lines.push(line.to_owned()),
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

// The addresses of a resolv.conf(5).
fn nameservers(text: &str) -> Vec<IpAddr> {
    let values = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"));
    values
        .filter_map(|value| value.trim().split('%').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_of_the_host_alone_are_forwarded() {
        let forwarded =
            |text| with_forwarder(text, "198.19.0.1".parse().unwrap(), IpAddr::is_loopback);
        assert_eq!(
            forwarded(
                "# comment\nnameserver 127.0.0.53\nsearch a.test\nnameserver 192.0.2.3\nnameserver ::1\n"
            ),
            "nameserver 198.19.0.1\nsearch a.test\nnameserver 192.0.2.3\n"
        );
        assert_eq!(
            forwarded("nameserver 192.0.2.3\nnameserver ::1\n"),
            "nameserver 198.19.0.1\n"
        );
        assert_eq!(
            forwarded("nameserver 192.0.2.3\noptions edns0\n"),
            "nameserver 192.0.2.3\noptions edns0\n"
        );
    }

    #[test]
    fn nameservers_are_read() {
        let text = "# nameserver 1.1.1.1\nsearch x\nnameserver 127.0.0.53\n nameserver\tfe80::1%eth0\nnameserver x\n";
        assert_eq!(
            nameservers(text)
                .iter()
                .map(IpAddr::to_string)
                .collect::<Vec<_>>(),
            ["127.0.0.53", "fe80::1"]
        );
    }
}
