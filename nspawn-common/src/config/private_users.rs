//! `--private-users=`: the user namespace of a machine.

use std::fmt;

use anyhow::{Result, bail};

pub use crate::sys::idmapped_mount::RANGE_SIZE;

/// Value of `--private-users=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrivateUsers {
    /// A UID range that no other machine and no user of the host has.
    #[default]
    Pick,
    /// No user namespace: the machine's root is the host's root.
    No,
    /// The UID range that begins with this ID.
    Base(u32),
}

impl PrivateUsers {
    /// Parses the value of the option.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "pick" | "yes" => return Ok(Self::Pick),
            "no" => return Ok(Self::No),
            _ => {}
        }
        let Ok(base) = text.parse::<u32>() else {
            bail!("{text:?} must be pick, no or a number");
        };
        let is_aligned = base >= RANGE_SIZE && base % RANGE_SIZE == 0;
        if !is_aligned || base >= u32::MAX - RANGE_SIZE {
            bail!(
                "{text} must be a multiple of {RANGE_SIZE}, and {RANGE_SIZE} user IDs must follow"
            );
        }
        Ok(Self::Base(base))
    }
}

impl fmt::Display for PrivateUsers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pick => out.write_str("pick"),
            Self::No => out.write_str("no"),
            Self::Base(base) => base.fmt(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_accepts_keywords_and_aligned_bases() {
        for (text, users) in [
            ("pick", PrivateUsers::Pick),
            ("no", PrivateUsers::No),
            ("655360", PrivateUsers::Base(655_360)),
        ] {
            assert_eq!(PrivateUsers::parse(text).unwrap(), users);
            assert_eq!(users.to_string(), text);
        }
        for bad in [
            "",
            "0",
            "1",
            "65537",
            "4294901760",
            "4294967296",
            "-1",
            "maybe",
        ] {
            assert!(PrivateUsers::parse(bad).is_err(), "{bad}");
        }
    }
}
