//! What network a machine has.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::net::IpAddr;

use anyhow::{Result, bail};

use crate::systemd::nspawn::assign;

/// The file resolv.conf(5), on the host and in machines.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// `--network=`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Its own, with connections to the outside by pasta.
    #[default]
    Nat,
    /// Its own loopback alone.
    None,
    /// The host's.
    Host,
    /// A link to the host, by systemd-nspawn.
    Veth,
    /// A link to a bridge of the host.
    Bridge(String),
    /// A link to all machines of this zone.
    Zone(String),
    /// A network namespace that there is.
    Namespace(String),
}

impl Network {
    /// Reads the option's value.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self> {
        let (kind, value) = text
            .split_once('=')
            .map_or((text, None), |(kind, value)| (kind, Some(value)));
        Ok(match (kind, value) {
            ("nat", None) => Self::Nat,
            ("none", None) => Self::None,
            ("host", None) => Self::Host,
            ("veth", None) => Self::Veth,
            ("bridge", Some(bridge)) if !bridge.is_empty() => Self::Bridge(bridge.to_owned()),
            ("zone", Some(zone)) if !zone.is_empty() => Self::Zone(zone.to_owned()),
            ("namespace", Some(path)) if path.starts_with('/') => Self::Namespace(path.to_owned()),
            _ => bail!(
                "{text:?} is none of nat, none, host, veth, bridge=NAME, zone=NAME, namespace=/PATH"
            ),
        })
    }

    /// Returns the options of systemd-nspawn for it. The machine's resolv.conf(5) is a copy of the host's, or the
    /// host's own where the root is read-only; that of [`Network::Nat`] is written before systemd-nspawn starts.
    #[must_use]
    pub fn options(&self, is_read_only: bool) -> Vec<OsString> {
        let how = if is_read_only { "bind" } else { "copy" };
        let from_host = || format!("{how}-host");
        let (own, resolvers) = match self {
            Self::Nat | Self::None => (Some("--private-network".into()), "off".into()),
            Self::Host => (None, from_host()),
            Self::Veth => (Some("--network-veth".into()), "auto".into()),
            Self::Bridge(bridge) => (
                Some(format!("--network-bridge={bridge}").into()),
                "auto".into(),
            ),
            Self::Zone(zone) => (Some(format!("--network-zone={zone}").into()), "auto".into()),
            Self::Namespace(path) => (
                Some(format!("--network-namespace-path={path}").into()),
                from_host(),
            ),
        };
        own.into_iter()
            .chain([assign("--resolv-conf", OsStr::new(&resolvers))])
            .collect()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nat => out.write_str("nat"),
            Self::None => out.write_str("none"),
            Self::Host => out.write_str("host"),
            Self::Veth => out.write_str("veth"),
            Self::Bridge(bridge) => write!(out, "bridge={bridge}"),
            Self::Zone(zone) => write!(out, "zone={zone}"),
            Self::Namespace(path) => write!(out, "namespace={path}"),
        }
    }
}

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
    fn what_can_be_asked_for() {
        for text in [
            "nat",
            "none",
            "host",
            "veth",
            "bridge=br0",
            "zone=a",
            "namespace=/run/netns/x",
        ] {
            assert_eq!(Network::parse(text).unwrap().to_string(), text);
        }
        for bad in ["", "nat=", "bridge", "bridge=", "namespace=x", "tun"] {
            assert!(Network::parse(bad).is_err(), "{bad}");
        }
    }

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
