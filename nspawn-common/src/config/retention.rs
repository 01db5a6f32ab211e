//! `--keep=`: when a machine is kept for inspection.

use crate::config::keyword::keywords;

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
    /// Returns whether the policy keeps a machine, given whether something in it failed.
    #[must_use]
    pub fn applies_to(self, failed: bool) -> bool {
        match self {
            Self::Never => false,
            Self::Failure => failed,
            Self::Always => true,
        }
    }
}

keywords!(Retention {
    Never => "never",
    Failure => "failure",
    Always => "always",
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keyword;

    #[test]
    fn parse_accepts_exactly_the_printed_keywords() {
        keyword::check::<Retention>(&["", "Never", "on-failure"]);
    }

    #[test]
    fn failure_keeps_only_machines_in_which_something_failed() {
        assert!(Retention::Failure.applies_to(true) && !Retention::Failure.applies_to(false));
        assert!(Retention::Always.applies_to(false) && !Retention::Never.applies_to(true));
    }
}
