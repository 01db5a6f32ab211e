//! The last stage: ends machines and deletes all that is left of them.

mod cli;
mod listing;
mod remove;
mod unused_caches;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nspawn_common::cli::sources;
use nspawn_common::exit_code::Exit;
use nspawn_common::gitlab;
use nspawn_common::gitlab::Job;
use nspawn_common::lifecycle::caller;
use nspawn_common::lifecycle::list;
use nspawn_common::machine::name::MachineName;
use nspawn_common::report;
use nspawn_common::sys::signals;

use cli::Options;

/// The program's name in messages.
const PROGRAM: &str = "nspawn-cleanup";

/// The command line's definition, for what is generated from it.
#[must_use]
pub fn command() -> clap::Command {
    sources::with_variables_in_help(&cli::command())
}

/// The program: one line on stderr for every machine that can't be removed, and a status.
#[must_use]
pub fn main() -> ExitCode {
    signals::reset_child_signal();
    let argv: Vec<OsString> = std::env::args_os().skip(1).collect();
    match cleanup(&argv) {
        Ok(code) => ExitCode::from(code),
        Err(error) => ExitCode::from(report::print_error(PROGRAM, &error, Exit::Failure)),
    }
}

fn cleanup(argv: &[OsString]) -> Result<u8> {
    let Some(options) = cli::parse(argv)? else {
        return Ok(Exit::Success.code());
    };
    let Options {
        machines,
        all,
        stale,
        list,
        ..
    } = &options;
    if *list {
        if !machines.is_empty() || *all || *stale {
            bail!("--list goes without --all, --stale and the names of machines");
        }
        require_root()?;
        listing::print()?;
        return Ok(Exit::Success.code());
    }
    let removed = if *all || *stale {
        if !machines.is_empty() || (*all && *stale) {
            bail!("--all, --stale and the names of machines exclude each other");
        }
        require_root()?;
        if *all && !options.dry_run {
            list::delete_pools()?;
        }
        let which = if *stale {
            remove::Which::Stale
        } else {
            remove::Which::Any
        };
        let code = remove::each(&list::all()?, which, &options);
        if *stale {
            unused_caches::remove_unused(options.dry_run)?;
        }
        code
    } else if !machines.is_empty() {
        let names: Vec<_> = machines
            .iter()
            .map(MachineName::new)
            .collect::<Result<_>>()?;
        require_root()?;
        remove::each(&names, remove::Which::Any, &options)
    } else if gitlab::is_active() {
        let name = Job::from_env()?.machine_name()?;
        require_root()?;
        remove::each(&[name], remove::Which::OfEndedJob, &options)
    } else {
        bail!("no machine is named; see --help")
    };
    Ok(removed)
}

fn require_root() -> Result<()> {
    if !caller::is_root() {
        bail!("only root can remove machines; try sudo");
    }
    Ok(())
}

fn print_line(line: &str) -> Result<()> {
    std::io::stdout()
        .write_all(format!("{line}\n").as_bytes())
        .context("can't write to stdout")
}
