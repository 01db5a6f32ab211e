//! `--layer=`: where a machine's writes go.

use std::fmt;

use anyhow::Result;
use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::config::parse_keyword;

/// Value of `--layer=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layer {
    /// An overlay on the host's disk.
    #[default]
    Disk,
    /// An overlay in memory.
    Tmpfs,
    /// A copy of the image that shares its blocks.
    Snapshot,
    /// No layer. The root is read-only, and directories for temporary files are in memory.
    None,
}

impl Layer {
    /// Parses the value of the option.
    pub fn parse(word: &str) -> Result<Self> {
        parse_keyword(word)
    }

    /// Returns whether the machine's writes are lost when it stops.
    #[must_use]
    pub fn is_in_memory(self) -> bool {
        matches!(self, Self::Tmpfs | Self::None)
    }

    fn keyword(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Tmpfs => "tmpfs",
            Self::Snapshot => "snapshot",
            Self::None => "none",
        }
    }
}

impl ValueEnum for Layer {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Disk, Self::Tmpfs, Self::Snapshot, Self::None]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.keyword()))
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.keyword())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_accepts_exactly_the_printed_keywords() {
        for layer in Layer::value_variants() {
            assert_eq!(Layer::parse(&layer.to_string()).unwrap(), *layer);
        }
        for bad in ["", "Disk", "disk:", "overlay"] {
            assert!(Layer::parse(bad).is_err(), "{bad}");
        }
    }
}
