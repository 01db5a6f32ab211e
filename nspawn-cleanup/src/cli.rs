//! The command line.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Result;
use clap::{Arg, Command, value_parser};
use nspawn_common::cli::{sources, values};
use nspawn_common::machine::paths::CONFIG_ROOT;

/// The program's name in messages.
pub const PROGRAM: &str = "nspawn-cleanup";

/// Parsed options.
#[derive(Debug)]
pub struct Options {
    pub machines: Vec<OsString>,
    pub all: bool,
    pub stale: bool,
    pub list: bool,
    pub dry_run: bool,
    pub verbose: bool,
}

/// Returns the definition of the command line.
pub fn command() -> Command {
    Command::new(PROGRAM)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Stops machines that nspawn-prepare created, and deletes everything that belongs to them")
        .after_help(
            "A machine that does not exist is not an error. In a GitLab job, without a machine's name, the \
             program removes the job's machine, unless --keep of nspawn-prepare keeps it.

\
             Example:
  nspawn-cleanup \"$m\"",
        )
        .arg(
            Arg::new("MACHINE")
                .num_args(0..)
                .value_parser(value_parser!(OsString))
                .help("Names of machines to remove"),
        )
        .arg(values::flag("all").help("Remove all machines that nspawn-prepare created on this host"))
        .arg(values::flag("stale").help(
            "Remove what killed programs or a crashed host have left behind, and no machine in use",
        ))
        .arg(values::flag("list").help(
            "Print a line for the image of each machine, and for each layer of a stack: the machine's name, a tab and the \
             path; remove nothing",
        ))
        .arg(values::flag("dry-run").help("Print what would be removed, and remove nothing"))
        .arg(values::flag("verbose").short('v').help("Report each removal on stderr"))
}

/// Parses the command line. Returns `None` after it has printed the help or the version.
pub fn parse(argv: &[OsString]) -> Result<Option<Options>> {
    let file = Path::new(CONFIG_ROOT).join("cleanup.args");
    let Some(matches) = sources::parse(&command(), &[&file], argv)? else {
        return Ok(None);
    };
    Ok(Some(Options {
        machines: values::list(&matches, "MACHINE"),
        all: values::is_set(&matches, "all"),
        stale: values::is_set(&matches, "stale"),
        list: values::is_set(&matches, "list"),
        dry_run: values::is_set(&matches, "dry-run"),
        verbose: values::is_set(&matches, "verbose"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_is_consistent() {
        command().debug_assert();
    }
}
