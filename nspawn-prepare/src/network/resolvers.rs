//! The host's DNS resolvers, and the resolv.conf(5) that a machine gets from them.
//!
//! A machine can't reach a resolver on the host itself or on one of its links. pasta forwards
//! queries to such a resolver, and the machine's resolv.conf(5) names pasta's address instead.

use std::fs;
use std::net::IpAddr;

use anyhow::Result;

use crate::network::egress::HostAddresses;

/// File with the addresses of resolvers, on the host and in machines (resolv.conf(5)).
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Returns the addresses of the host's resolvers.
pub fn addresses() -> Vec<IpAddr> {
    nameservers(&host_resolv_conf())
}

/// The host's resolvers.
pub struct Resolvers {
    /// Content of the host's resolv.conf(5).
    text: String,
    /// Resolvers that a machine can't reach.
    near: Vec<IpAddr>,
}

impl Resolvers {
    /// Reads the host's resolv.conf(5).
    pub fn read() -> Result<Self> {
        let text = host_resolv_conf();
        let host = HostAddresses::list()?;
        let mut near = nameservers(&text);
        near.retain(|resolver| host.is_near(resolver));
        Ok(Self { text, near })
    }

    /// Returns the resolvers on the host itself or on one of its links.
    pub fn near(&self) -> &[IpAddr] {
        &self.near
    }

    /// Returns the resolver that pasta must forward to, if there is one.
    ///
    /// `None` means that the machine reaches all resolvers. pasta forwards to the first resolver
    /// only.
    pub fn forwarded(&self) -> Option<IpAddr> {
        if self.near.is_empty() {
            return None;
        }
        nameservers(&self.text).first().copied()
    }

    /// Returns the resolv.conf(5) of a machine that has its forwarder at this address.
    pub fn machine_resolv_conf(&self, forwarder: IpAddr) -> String {
        let Some(forwarded) = self.forwarded() else {
            return self.text.clone();
        };
        let mut lines = vec![format!("nameserver {forwarder}")];
        for line in self.text.lines().map(str::trim) {
            if line.starts_with(['#', ';']) {
                continue;
            }
            let replaced = nameservers(line)
                .first()
                .is_some_and(|resolver| *resolver == forwarded || self.near.contains(resolver));
            if !replaced {
                lines.push(line.to_owned());
            }
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

/// Returns the content of the host's resolv.conf(5), or nothing if that can't be read.
pub fn host_resolv_conf() -> String {
    fs::read_to_string(RESOLV_CONF).unwrap_or_default()
}

/// Returns the addresses of the `nameserver` lines, without zones such as `%eth0`.
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
        let forwarded = |text: &str| {
            let mut near = nameservers(text);
            near.retain(IpAddr::is_loopback);
            let resolvers = Resolvers {
                text: text.to_owned(),
                near,
            };
            resolvers.machine_resolv_conf("198.19.0.1".parse().unwrap())
        };
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
