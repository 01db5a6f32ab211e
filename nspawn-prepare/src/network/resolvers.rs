//! The host's DNS resolvers, and the resolv.conf(5) that a machine gets from them.
//!
//! A resolver on the host itself or on one of its links is out of a machine's reach. pasta forwards the machine's
//! questions to it, so the machine uses pasta's address instead.

use std::fs;
use std::net::IpAddr;

/// File of resolver settings, on the host and in machines (resolv.conf(5)).
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Returns the addresses of the host's resolvers.
pub fn addresses() -> Vec<IpAddr> {
    nameservers(&host_resolv_conf())
}

/// Returns the host's resolv.conf(5), adapted to a machine that does not reach the resolvers for which `is_near` holds.
///
/// If there are such resolvers, `forwarder` replaces the first entry of all, because pasta forwards to the first one.
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

/// Returns the addresses of the `nameserver` lines. A zone such as `%eth0` is left out.
fn nameservers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|value| value.trim().split('%').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarder_replaces_resolvers_that_only_the_host_reaches() {
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
    fn nameserver_lines_are_parsed() {
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
