//! What can be asked for.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Result;
use clap::{Arg, Command, value_parser};
use nspawn_common::cli::sources;
use nspawn_common::machine::paths::CONFIG_ROOT;

/// The options, taken apart.
#[derive(Debug)]
pub struct Options {
    pub machines: Vec<OsString>,
    pub all: bool,
    pub stale: bool,
    pub list: bool,
    pub dry_run: bool,
    pub verbose: bool,
}

/// The command line's definition.
pub fn command() -> Command {
    Command::new(super::PROGRAM)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Ends machines that nspawn-prepare made and deletes all that is left of them")
        .after_help(
            "A machine that is gone already is no error. Without a machine's name, in a GitLab job: the job's \
             machine, unless nspawn-prepare was told to keep it.\n\nExample:\n  nspawn-cleanup \"$m\"",
        )
        .arg(Arg::new("MACHINE").num_args(0..).value_parser(value_parser!(OsString)).help("Machines"))
        .arg(sources::flag("all").help("All machines that nspawn-prepare made on this host"))
        .arg(sources::flag("stale").help("What killed programs and a crashed host have left, and nothing that is in use"))
        .arg(sources::flag("list").help("Print the name of each machine, a tab and the path of its image, and remove nothing"))
        .arg(sources::flag("dry-run").help("Print what would be removed, and remove nothing"))
        .arg(sources::flag("verbose").short('v').help("Say on stderr what is removed"))
}

/// Reads the options; `None` if help was asked for and printed.
pub fn parse(argv: &[OsString]) -> Result<Option<Options>> {
    let file = Path::new(CONFIG_ROOT).join("cleanup.args");
    let Some(matches) = sources::parse(&command(), &[&file], argv)? else {
        return Ok(None);
    };
    Ok(Some(Options {
        machines: sources::list(&matches, "MACHINE"),
        all: sources::is_set(&matches, "all"),
        stale: sources::is_set(&matches, "stale"),
        list: sources::is_set(&matches, "list"),
        dry_run: sources::is_set(&matches, "dry-run"),
        verbose: sources::is_set(&matches, "verbose"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }
}
