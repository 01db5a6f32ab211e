//! What network a machine has.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Result, bail};

use crate::nspawn::assign;

/// The resolvers behind systemd-resolved (systemd-resolved.service(8)).
const UPLINK: &str = "/run/systemd/resolve/resolv.conf";

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
        let (kind, value) = text.split_once('=').map_or((text, None), |(kind, value)| (kind, Some(value)));
        Ok(match (kind, value) {
            ("nat", None) => Self::Nat,
            ("none", None) => Self::None,
            ("host", None) => Self::Host,
            ("veth", None) => Self::Veth,
            ("bridge", Some(bridge)) if !bridge.is_empty() => Self::Bridge(bridge.to_owned()),
            ("zone", Some(zone)) if !zone.is_empty() => Self::Zone(zone.to_owned()),
            ("namespace", Some(path)) if path.starts_with('/') => Self::Namespace(path.to_owned()),
            _ => bail!("{text:?} is none of nat, none, host, veth, bridge=NAME, zone=NAME, namespace=/PATH"),
        })
    }

    /// The options of systemd-nspawn for it. The resolvers' file is a copy of the host's; where the root is
    /// read-only, it is the host's.
    #[must_use]
    pub fn options(&self, is_read_only: bool) -> Vec<OsString> {
        let how = if is_read_only { "bind" } else { "copy" };
        let from_host = || format!("{how}-host");
        let (own, resolvers) = match self {
            Self::Nat => (Some("--private-network".into()), format!("{how}-{}", resolver_source())),
            Self::None => (Some("--private-network".into()), "off".into()),
            Self::Host => (None, from_host()),
            Self::Veth => (Some("--network-veth".into()), "auto".into()),
            Self::Bridge(bridge) => (Some(format!("--network-bridge={bridge}").into()), "auto".into()),
            Self::Zone(zone) => (Some(format!("--network-zone={zone}").into()), "auto".into()),
            Self::Namespace(path) => (Some(format!("--network-namespace-path={path}").into()), from_host()),
        };
        own.into_iter().chain([assign("--resolv-conf", OsStr::new(&resolvers))]).collect()
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

/// The resolvers that a machine with [`Network::Nat`] is told of.
#[must_use]
pub fn resolvers() -> Vec<IpAddr> {
    let path = if resolver_source() == "uplink" { UPLINK } else { "/etc/resolv.conf" };
    nameservers(&fs::read_to_string(path).unwrap_or_default())
}

// A resolver on the host's loopback is out of a machine's reach.
fn resolver_source() -> &'static str {
    let configured = nameservers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    let is_local = configured.iter().all(IpAddr::is_loopback);
    if is_local && Path::new(UPLINK).exists() { "uplink" } else { "host" }
}

// The addresses of a resolv.conf(5).
fn nameservers(text: &str) -> Vec<IpAddr> {
    let values = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    values.filter_map(|value| value.trim().split('%').next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_asked_for() {
        for text in ["nat", "none", "host", "veth", "bridge=br0", "zone=a", "namespace=/run/netns/x"] {
            assert_eq!(Network::parse(text).unwrap().to_string(), text);
        }
        for bad in ["", "nat=", "bridge", "bridge=", "namespace=x", "tun"] {
            assert!(Network::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nameservers_are_read() {
        let text = "# nameserver 1.1.1.1\nsearch x\nnameserver 127.0.0.53\n nameserver\tfe80::1%eth0\nnameserver x\n";
        assert_eq!(nameservers(text).iter().map(IpAddr::to_string).collect::<Vec<_>>(), ["127.0.0.53", "fe80::1"]);
    }
}
