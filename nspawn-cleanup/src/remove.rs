//! The verb: which machines go, and that they go.

use std::ffi::OsStr;

use anyhow::{Context, Result};
use nspawn_common::exit_code::Exit;
use nspawn_common::lifecycle::caller;
use nspawn_common::lifecycle::list;
use nspawn_common::lifecycle::lock::Lock;
use nspawn_common::lifecycle::remove;
use nspawn_common::lifecycle::retention;
use nspawn_common::lifecycle::status;
use nspawn_common::lifecycle::usage;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::processes;
use nspawn_common::machine::state::State;
use nspawn_common::report;

use crate::PROGRAM;
use crate::cli::Options;

/// Which of the machines that are looked at go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Each of them.
    Any,
    /// Those that nobody owns, and that nobody is making or removing now.
    Stale,
    /// Each, but one that is to be kept.
    OfEndedJob,
}

/// Removes machines; one that can't be removed keeps none of the others. Returns the exit status.
pub fn each(names: &[MachineName], which: Which, options: &Options) -> u8 {
    let mut code = Exit::Success.code();
    for name in names {
        let done = consider(name, which, options);
        if let Err(error) = done.with_context(|| format!("machine {name} is not removed")) {
            code = report::print_error(PROGRAM, &error, Exit::Failure);
        }
    }
    code
}

// With its services, whose makers end with the machine's. While that is being made, there may be more of them.
fn consider(name: &MachineName, which: Which, options: &Options) -> Result<()> {
    if which == Which::Stale {
        return consider_one(name, which, options);
    }
    let remove_services = || {
        list::services_of(name)?
            .iter()
            .try_for_each(|it| consider_one(&it.name, Which::Any, options))
    };
    remove_services()?;
    consider_one(name, which, options)?;
    if options.dry_run {
        Ok(())
    } else {
        remove_services()
    }
}

fn consider_one(name: &MachineName, which: Which, options: &Options) -> Result<()> {
    let paths = MachinePaths::new(name);
    let parts = list::existing_parts(&paths).join(", ");
    if parts.is_empty()
        || status::is_taken_over(&paths)
        || (which == Which::Stale && status::is_in_use(&paths)?)
    {
        return Ok(());
    }
    if which == Which::OfEndedJob && keep_if_asked(name, &paths)? {
        return Ok(());
    }
    if options.dry_run {
        if which == Which::Stale && Lock::is_held(&paths) {
            return Ok(());
        }
        return crate::print_line(&format!("{name}: {parts}"));
    }
    let used = options.verbose.then(|| usage::describe(name));
    if let (true, Some(used)) = (remove(name, &paths, which)?, used) {
        report::print_diagnostic(
            PROGRAM,
            OsStr::new(&format!("removed machine {name}: {parts}; {used}")),
        );
    }
    Ok(())
}

fn remove(name: &MachineName, paths: &MachinePaths, which: Which) -> Result<bool> {
    caller::check_view()?;
    caller::check_writable()?;
    let lock = match which {
        Which::Stale => Lock::try_acquire(paths)?,
        Which::Any | Which::OfEndedJob => Some(Lock::acquire(paths)?),
    };
    let Some(lock) = lock else { return Ok(false) };
    // Somebody may have made it anew meanwhile.
    if which == Which::Stale && status::is_in_use(paths)? {
        return Ok(false);
    }
    remove::remove_machine(name, lock).map(|()| true)
}

// A machine whose state can't be read is nothing to look into.
fn keep_if_asked(name: &MachineName, paths: &MachinePaths) -> Result<bool> {
    let Ok(state) = State::read(name) else {
        return Ok(false);
    };
    let is_running = processes::is_running(paths);
    if !state.keep.applies_to(retention::has_failed(paths))
        || !retention::is_inspectable(&state, is_running)
    {
        return Ok(false);
    }
    if !retention::is_kept(paths) {
        retention::keep(paths, state.keep_for)?;
        report::print_diagnostic(
            PROGRAM,
            OsStr::new(&retention::describe(&state, is_running)),
        );
    }
    Ok(true)
}
