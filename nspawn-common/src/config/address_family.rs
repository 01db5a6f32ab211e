//! `--allow-address-family=`: a family of sockets.

use std::fmt;

use anyhow::{Context, Result};

/// Names of all families, as in systemd.exec(5), with their numbers (linux/socket.h).
const FAMILIES: [(&str, u32); 45] = [
    ("AF_UNIX", 1),
    ("AF_INET", 2),
    ("AF_AX25", 3),
    ("AF_IPX", 4),
    ("AF_APPLETALK", 5),
    ("AF_NETROM", 6),
    ("AF_BRIDGE", 7),
    ("AF_ATMPVC", 8),
    ("AF_X25", 9),
    ("AF_INET6", 10),
    ("AF_ROSE", 11),
    ("AF_DECnet", 12),
    ("AF_NETBEUI", 13),
    ("AF_SECURITY", 14),
    ("AF_KEY", 15),
    ("AF_NETLINK", 16),
    ("AF_PACKET", 17),
    ("AF_ASH", 18),
    ("AF_ECONET", 19),
    ("AF_ATMSVC", 20),
    ("AF_RDS", 21),
    ("AF_SNA", 22),
    ("AF_IRDA", 23),
    ("AF_PPPOX", 24),
    ("AF_WANPIPE", 25),
    ("AF_LLC", 26),
    ("AF_IB", 27),
    ("AF_MPLS", 28),
    ("AF_CAN", 29),
    ("AF_TIPC", 30),
    ("AF_BLUETOOTH", 31),
    ("AF_IUCV", 32),
    ("AF_RXRPC", 33),
    ("AF_ISDN", 34),
    ("AF_PHONET", 35),
    ("AF_IEEE802154", 36),
    ("AF_CAIF", 37),
    ("AF_ALG", 38),
    ("AF_NFC", 39),
    ("AF_VSOCK", 40),
    ("AF_KCM", 41),
    ("AF_QIPCRTR", 42),
    ("AF_SMC", 43),
    ("AF_XDP", 44),
    ("AF_MCTP", 45),
];

/// Address family of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressFamily {
    name: &'static str,
    number: u32,
}

impl AddressFamily {
    /// Parses the name of a family.
    pub fn parse(word: &str) -> Result<Self> {
        let (name, number) = FAMILIES
            .into_iter()
            .find(|(name, _)| *name == word)
            .with_context(|| format!("{word:?} is no address family, such as AF_ALG"))?;
        Ok(Self { name, number })
    }

    /// Returns the number of the family.
    #[must_use]
    pub fn number(self) -> u32 {
        self.number
    }
}

impl fmt::Display for AddressFamily {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_accepts_exactly_the_printed_names() {
        for (index, (name, number)) in FAMILIES.into_iter().enumerate() {
            let family = AddressFamily::parse(name).unwrap();
            assert_eq!(
                (family.number(), family.to_string()),
                (number, name.to_owned())
            );
            assert_eq!(number, u32::try_from(index).unwrap() + 1, "{name}");
        }
        for word in [
            "",
            "ALG",
            "af_alg",
            "38",
            "AF_MCTP2",
            "AF_ALG AF_KEY",
            "~AF_ALG",
        ] {
            assert!(AddressFamily::parse(word).is_err(), "{word}");
        }
    }
}
