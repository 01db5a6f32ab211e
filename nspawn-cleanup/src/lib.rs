//! The cleanup stage: stops machines and deletes everything that belongs to them.
//!
//! | module | contents |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | [`listing`] | the list of machines |
//! | [`remove`] | removal of machines |
//! | [`unused_caches`] | removal of caches that no job has used for a month |

#![deny(unsafe_code)]

mod cli;
mod listing;
mod remove;
mod unused_caches;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Result, bail};
use nspawn_common::cli::sources;
use nspawn_common::exit_code::Exit;
use nspawn_common::gitlab;
use nspawn_common::gitlab::Job;
use nspawn_common::lifecycle::calling_unit;
use nspawn_common::lifecycle::list;
use nspawn_common::machine::name::MachineName;
use nspawn_common::report;
use nspawn_common::sys::signals;

use cli::{Options, PROGRAM};
use remove::Selection;

/// Returns the definition of the command line, for generated documentation.
pub fn command() -> clap::Command {
    sources::with_variables_in_help(&cli::command())
}

/// Runs the program. Every failure is one line on stderr.
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
    if options.list {
        print_list(&options)
    } else if options.all || options.stale {
        remove_all(&options)
    } else {
        remove_named(&options)
    }
}

fn print_list(options: &Options) -> Result<u8> {
    if !options.machines.is_empty() || options.all || options.stale {
        bail!("--list can't be combined with --all, --stale and machine names");
    }
    require_root()?;
    listing::print()?;
    Ok(Exit::Success.code())
}

fn remove_all(options: &Options) -> Result<u8> {
    if !options.machines.is_empty() || (options.all && options.stale) {
        bail!("--all, --stale and machine names can't be combined");
    }
    require_root()?;
    if options.stale {
        let code = remove::remove_each(&list::all()?, Selection::Stale, options);
        unused_caches::remove_unused(options.dry_run)?;
        return Ok(code);
    }
    if !options.dry_run {
        list::delete_pools()?;
    }
    Ok(remove::remove_each(&list::all()?, Selection::All, options))
}

// Without names, the program removes the machine of the GitLab job that it is called for.
fn remove_named(options: &Options) -> Result<u8> {
    if !options.machines.is_empty() {
        let names: Vec<_> = options
            .machines
            .iter()
            .map(MachineName::new)
            .collect::<Result<_>>()?;
        require_root()?;
        return Ok(remove::remove_each(&names, Selection::All, options));
    }
    if !gitlab::is_active() {
        bail!("no machine is named; name one, or use --all or --stale; see --help");
    }
    let name = Job::from_env()?.machine_name()?;
    require_root()?;
    Ok(remove::remove_each(&[name], Selection::EndedJob, options))
}

fn require_root() -> Result<()> {
    if !calling_unit::is_root() {
        bail!("only root can remove machines; try sudo");
    }
    Ok(())
}
