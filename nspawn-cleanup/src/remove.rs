//! Removal of machines.

use std::ffi::OsStr;

use anyhow::{Context, Result};
use nspawn_common::exit_code::Exit;
use nspawn_common::lifecycle::calling_unit;
use nspawn_common::lifecycle::list;
use nspawn_common::lifecycle::lock::Lock;
use nspawn_common::lifecycle::remove;
use nspawn_common::lifecycle::retention;
use nspawn_common::lifecycle::stale;
use nspawn_common::lifecycle::usage;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::processes;
use nspawn_common::machine::state::State;
use nspawn_common::report;

use crate::cli::{Options, PROGRAM};

/// Condition under which a machine is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All machines are removed.
    All,
    /// Only stale machines are removed.
    Stale,
    /// The machine of an ended GitLab job is removed unless it is to be kept for inspection.
    EndedJob,
}

/// Removes the selected machines and returns the exit status.
///
/// A machine that can't be removed does not prevent the removal of the others.
pub fn remove_each(names: &[MachineName], selection: Selection, options: &Options) -> u8 {
    let mut code = Exit::Success.code();
    for name in names {
        let result = remove_with_services(name, selection, options);
        if let Err(error) = result.with_context(|| format!("can't remove machine {name}")) {
            code = report::print_error(PROGRAM, &error, Exit::Failure);
        }
    }
    code
}

// The processes that create the services of a job end with the job's machine. They may create more
// services until then, so services are removed before and after the job's machine.
fn remove_with_services(name: &MachineName, selection: Selection, options: &Options) -> Result<()> {
    if selection == Selection::Stale {
        return remove_selected(name, selection, options);
    }
    remove_services(name, options)?;
    remove_selected(name, selection, options)?;
    if options.dry_run {
        return Ok(());
    }
    remove_services(name, options)
}

fn remove_services(job: &MachineName, options: &Options) -> Result<()> {
    for service in list::services_of(job)? {
        remove_selected(&service.name, Selection::All, options)?;
    }
    Ok(())
}

fn remove_selected(name: &MachineName, selection: Selection, options: &Options) -> Result<()> {
    let paths = State::paths_of(name);
    let parts = list::existing_parts(&paths).join(", ");
    if parts.is_empty() || stale::is_taken_over(&paths) {
        return Ok(());
    }
    if selection == Selection::Stale && stale::is_in_use(&paths)? {
        return Ok(());
    }
    if selection == Selection::EndedJob && keep_if_requested(name, &paths, options.dry_run)? {
        return Ok(());
    }
    if options.dry_run {
        return print_removal(name, &paths, selection, &parts);
    }
    let used = options.verbose.then(|| usage::describe(name));
    let is_removed = remove(name, &paths, selection)?;
    if let (true, Some(used)) = (is_removed, used) {
        let line = format!("removed machine {name}: {parts}; {used}");
        report::print_diagnostic(PROGRAM, OsStr::new(&line));
    }
    Ok(())
}

// A stale machine that another process has locked is being created or removed.
fn print_removal(
    name: &MachineName,
    paths: &MachinePaths,
    selection: Selection,
    parts: &str,
) -> Result<()> {
    if selection == Selection::Stale && Lock::is_held(paths) {
        return Ok(());
    }
    report::print_line(OsStr::new(&format!("{name}: {parts}")))
}

// Returns whether the machine was removed.
fn remove(name: &MachineName, paths: &MachinePaths, selection: Selection) -> Result<bool> {
    calling_unit::check_view()?;
    calling_unit::check_writable()?;
    let lock = match selection {
        Selection::Stale => Lock::try_acquire(paths)?,
        Selection::All | Selection::EndedJob => Some(Lock::acquire(paths)?),
    };
    let Some(lock) = lock else {
        return Ok(false);
    };
    // Another process may have created a machine of this name before the lock was acquired.
    if selection == Selection::Stale && stale::is_in_use(paths)? {
        return Ok(false);
    }
    remove::remove_machine(name, lock)?;
    Ok(true)
}

// Returns whether the machine is kept for inspection. A machine without a readable state can't be
// kept, because nobody could inspect it.
fn keep_if_requested(name: &MachineName, paths: &MachinePaths, dry_run: bool) -> Result<bool> {
    let Ok(state) = State::read(name) else {
        return Ok(false);
    };
    let is_running = processes::is_running(&state.paths());
    if !state.keep.applies_to(retention::has_failed(paths))
        || !retention::is_inspectable(&state, is_running)
    {
        return Ok(false);
    }
    if !dry_run && !retention::is_kept(paths) {
        retention::keep(paths, state.keep_for)?;
        let line = retention::describe(&state, is_running);
        report::print_diagnostic(PROGRAM, OsStr::new(&line));
    }
    Ok(true)
}
