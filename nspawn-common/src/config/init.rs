//! `--init=`: the program that runs as a machine's PID 1.

use crate::config::keyword::keywords;

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

keywords!(Init {
    Systemd => "systemd",
    Stub => "stub",
    None => "none",
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keyword;

    #[test]
    fn parse_accepts_exactly_the_printed_keywords() {
        keyword::check::<Init>(&["", "Systemd", "disk", "overlay"]);
        let error = Init::parse("x").unwrap_err().to_string();
        assert_eq!(error, "\"x\" must be one of systemd, stub, none");
    }
}
