//! The last stage: ends machines and deletes all that is left of them.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, Command, value_parser};
use nspawn_common::args;
use nspawn_common::exit::{self, Exit};
use nspawn_common::gitlab::{self, Job};
use nspawn_common::lifecycle::{self, Lock};
use nspawn_common::name::MachineName;
use nspawn_common::paths::{CONFIG_ROOT, MachinePaths};

/// The program's name in messages.
const PROGRAM: &str = "nspawn-cleanup";

/// The program: one line on stderr for every machine that can't be removed, and a status.
#[must_use]
pub fn main() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().skip(1).collect();
    match cleanup(&argv) {
        Ok(code) => ExitCode::from(code),
        Err(error) => ExitCode::from(exit::report(PROGRAM, &error, Exit::Failure)),
    }
}

/// The command line's definition.
fn command() -> Command {
    let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    Command::new(PROGRAM)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Ends machines that nspawn-prepare made and deletes all that is left of them")
        .after_help("A machine that is gone already is no error.\n\nExample:\n  nspawn-cleanup \"$m\"")
        .arg(Arg::new("MACHINE").num_args(0..).value_parser(value_parser!(OsString)).help("Machines"))
        .arg(flag("all").help("All machines that nspawn-prepare made on this host"))
        .arg(flag("verbose").short('v').help("Say on stderr what is removed"))
}

fn cleanup(argv: &[OsString]) -> Result<u8> {
    let file = Path::new(CONFIG_ROOT).join("cleanup.args");
    let Some(matches) = args::parse(&command(), &[&file], argv)? else { return Ok(Exit::Success.code()) };
    let given = args::list(&matches, "MACHINE");
    let names = match (matches.get_flag("all"), given.is_empty()) {
        (true, true) => lifecycle::all()?,
        (true, false) => bail!("--all takes no machines beside it"),
        (false, true) if gitlab::is_active() => vec![Job::from_env()?.machine_name()?],
        (false, true) => bail!("no machine is named; see --help"),
        (false, false) => given.iter().map(MachineName::new).collect::<Result<_>>()?,
    };
    if !lifecycle::is_root() {
        bail!("only root can remove machines; try sudo");
    }
    Ok(remove_all(&names, matches.get_flag("verbose")))
}

// One that can't be removed keeps none of the others.
fn remove_all(names: &[MachineName], verbose: bool) -> u8 {
    let mut code = Exit::Success.code();
    for name in names {
        match remove(name) {
            Ok(removed) => {
                if verbose && removed {
                    exit::say(PROGRAM, OsStr::new(&format!("removed machine {name}")));
                }
            }
            Err(error) => code = exit::report(PROGRAM, &error, Exit::Failure),
        }
    }
    code
}

fn remove(name: &MachineName) -> Result<bool> {
    let paths = MachinePaths::new(name);
    if !lifecycle::exists(&paths) {
        return Ok(false);
    }
    let removed = Lock::acquire(&paths).and_then(|lock| lifecycle::remove(name, lock));
    removed.with_context(|| format!("machine {name} is not removed")).map(|()| true)
}
