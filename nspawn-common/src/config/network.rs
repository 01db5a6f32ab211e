//! What network a machine has.

use std::ffi::{OsStr, OsString};
use std::fmt;

use anyhow::{Result, bail};

use crate::systemd::nspawn::assign;

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
}
