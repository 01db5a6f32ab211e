//! `--network=`: the network of a machine.

use std::fmt;

use anyhow::{Result, bail};

/// Value of `--network=`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// A private network with outgoing connections by pasta.
    #[default]
    Nat,
    /// A private network with a loopback interface only.
    None,
    /// The host's network.
    Host,
    /// A private network with a link to the host, set up by systemd-nspawn.
    Veth,
    /// A private network with a link to this bridge of the host.
    Bridge(String),
    /// A private network with a link to all machines of this zone.
    Zone(String),
    /// An existing network namespace, by its path.
    Namespace(String),
}

impl Network {
    /// Parses the value of the option.
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
                "{text:?} must be one of nat, none, host, veth, bridge=NAME, zone=NAME, namespace=/PATH"
            ),
        })
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
    fn parses_every_network_kind() {
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
