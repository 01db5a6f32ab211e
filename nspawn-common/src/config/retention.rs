//! `--keep=`: when a machine is kept for inspection.

use std::fmt;

use anyhow::Result;
use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::config::parse_keyword;

/// Value of `--keep=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retention {
    /// The machine is never kept.
    #[default]
    Never,
    /// The machine is kept if it did not boot, or if a script of its job failed.
    Failure,
    /// The machine is always kept.
    Always,
}

impl Retention {
    /// Parses the value of the option.
    pub fn parse(word: &str) -> Result<Self> {
        parse_keyword(word)
    }

    /// Returns whether the policy keeps a machine, given whether something in it failed.
    #[must_use]
    pub fn applies_to(self, failed: bool) -> bool {
        match self {
            Self::Never => false,
            Self::Failure => failed,
            Self::Always => true,
        }
    }

    /// Returns the keyword of the value, which is also its default's form in `--help`.
    #[must_use]
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Failure => "failure",
            Self::Always => "always",
        }
    }
}

impl ValueEnum for Retention {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Never, Self::Failure, Self::Always]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.keyword()))
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.keyword())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_accepts_exactly_the_printed_keywords() {
        for retention in Retention::value_variants() {
            assert_eq!(
                Retention::parse(&retention.to_string()).unwrap(),
                *retention
            );
        }
        for bad in ["", "Never", "on-failure"] {
            assert!(Retention::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn failure_keeps_only_machines_in_which_something_failed() {
        assert!(Retention::Failure.applies_to(true) && !Retention::Failure.applies_to(false));
        assert!(Retention::Always.applies_to(false) && !Retention::Never.applies_to(true));
    }
}
