//! `--private-users=`: the user namespace of a machine.

use std::fmt;

use anyhow::{Result, bail};

pub use crate::sys::idmapped_mount::IdRange;

/// Number of IDs of a range that is picked. Packages of foreign archives have owners above 65535,
/// and the users of an image have subordinate IDs from 100000 on (subuid(5)).
pub const PICKED_SIZE: u32 = 1 << 20;
/// Number of IDs of a range that is given without a number, as for systemd-nspawn.
pub const DEFAULT_SIZE: u32 = 1 << 16;

/// Value of `--private-users=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrivateUsers {
    /// A UID range that no other machine and no user of the host has.
    #[default]
    Pick,
    /// No user namespace: the machine's root is the host's root.
    No,
    /// This UID range.
    Range(IdRange),
}

impl PrivateUsers {
    /// Parses the value of the option.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "pick" | "yes" => return Ok(Self::Pick),
            "no" => return Ok(Self::No),
            _ => {}
        }
        parse_range(text).map(Self::Range)
    }
}

impl fmt::Display for PrivateUsers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pick => out.write_str("pick"),
            Self::No => out.write_str("no"),
            Self::Range(ids) => out.write_str(&format_range(*ids)),
        }
    }
}

/// Parses `BASE` or `BASE:SIZE`, both multiples of [`DEFAULT_SIZE`].
pub fn parse_range(text: &str) -> Result<IdRange> {
    let (base, size) = match text.split_once(':') {
        Some((base, size)) => (base.parse::<u32>(), size.parse()),
        None => (text.parse(), Ok(DEFAULT_SIZE)),
    };
    let (Ok(base), Ok(size)) = (base, size) else {
        bail!("{text:?} must be pick, no, a number, or two numbers with a colon between them");
    };
    let is_aligned = |number: u32| number >= DEFAULT_SIZE && number % DEFAULT_SIZE == 0;
    // The last ID means "no user" (chown(2)).
    let is_complete = base
        .checked_add(size)
        .is_some_and(|end| end <= u32::MAX - DEFAULT_SIZE);
    if !is_aligned(base) || !is_aligned(size) || !is_complete {
        bail!(
            "{text} must consist of multiples of {DEFAULT_SIZE}, and as many user IDs must follow"
        );
    }
    Ok(IdRange { base, size })
}

/// Returns the text from which [`parse_range`] makes the range.
#[must_use]
pub fn format_range(ids: IdRange) -> String {
    match ids {
        IdRange {
            base,
            size: DEFAULT_SIZE,
        } => base.to_string(),
        IdRange { base, size } => format!("{base}:{size}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(base: u32, size: u32) -> IdRange {
        IdRange { base, size }
    }

    #[test]
    fn parse_accepts_keywords_and_aligned_ranges() {
        for (text, users) in [
            ("pick", PrivateUsers::Pick),
            ("no", PrivateUsers::No),
            ("655360", PrivateUsers::Range(range(655_360, 65536))),
            (
                "1048576:1048576",
                PrivateUsers::Range(range(1_048_576, 1_048_576)),
            ),
            (
                "4293853184:983040",
                PrivateUsers::Range(range(4_293_853_184, 983_040)),
            ),
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
            ":",
            "65536:",
            ":65536",
            "65536:1",
            "65536:0",
            "65536:65536:65536",
            "4293853184:1048576",
            "4294901760:4294901760",
        ] {
            assert!(PrivateUsers::parse(bad).is_err(), "{bad}");
        }
    }
}
