//! `--init=`: the program that runs as a machine's PID 1.

use std::fmt;

use anyhow::Result;
use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::config::parse_keyword;

/// Value of `--init=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// The image's systemd. The machine boots.
    #[default]
    Systemd,
    /// The stub init of systemd-nspawn (systemd-nspawn(1), `--as-pid2`), which keeps the machine
    /// running for the agent.
    Stub,
    /// No process between commands. Each command starts the machine, and the last one stops it.
    None,
}

impl Init {
    /// Parses the value of the option.
    pub fn parse(word: &str) -> Result<Self> {
        parse_keyword(word)
    }

    fn keyword(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Stub => "stub",
            Self::None => "none",
        }
    }
}

impl ValueEnum for Init {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Systemd, Self::Stub, Self::None]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.keyword()))
    }
}

impl fmt::Display for Init {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.keyword())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_accepts_exactly_the_printed_keywords() {
        for init in Init::value_variants() {
            assert_eq!(Init::parse(&init.to_string()).unwrap(), *init);
        }
        for bad in ["", "Systemd", "disk", "overlay"] {
            assert!(Init::parse(bad).is_err(), "{bad}");
        }
        let error = Init::parse("x").unwrap_err().to_string();
        assert_eq!(error, "\"x\" must be one of systemd, stub, none");
    }
}
