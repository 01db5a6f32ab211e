//! The decision whether a machine is in use or stale.
//!
//! Any cleanup may remove a stale machine: one whose creation or removal was interrupted, or whose
//! owner, lifetime or unit has ended.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::command;
use crate::command::argv;
use crate::config::init::Init;
use crate::lifecycle::lock::Lock;
use crate::lifecycle::status::Status;
use crate::machine::paths::{MachinePaths, POOL_ROOT};
use crate::machine::processes;
use crate::machine::state::State;
use crate::machine::state::json::OtherVersion;
use crate::sys::process::ProcessId;
use crate::text;

/// Time limit for a query to systemd.
const QUERY_LIMIT: Duration = Duration::from_secs(10);

/// Returns whether the machine is in use: it is ready and running (or waits for its next command),
/// is kept for inspection, or is in a standby pool.
///
/// A machine that is neither in use nor locked is stale.
///
/// # Errors
/// Fails if systemd does not report the state of the machine's unit.
pub fn is_in_use(paths: &MachinePaths) -> Result<bool> {
    match Status::of(paths) {
        Status::Kept => Ok(true),
        Status::Ready => is_expected(paths),
        Status::Standby if has_pool(paths) => is_expected(paths),
        Status::Standby | Status::Incomplete => Ok(false),
    }
}

/// Returns whether the machine still serves its user, so that only a request to replace it may do
/// so: it is ready, or kept for inspection, and it is running or waits for its next command.
///
/// # Errors
/// Fails if systemd does not report the state of the machine's unit.
pub fn is_alive(paths: &MachinePaths) -> Result<bool> {
    match Status::of(paths) {
        Status::Kept | Status::Ready => is_expected(paths),
        Status::Standby | Status::Incomplete => Ok(false),
    }
}

/// Returns whether the name is a standby machine's, and the machine has another name since it was
/// taken over.
#[must_use]
pub fn is_taken_over(paths: &MachinePaths) -> bool {
    paths.name().is_for_standby() && !paths.state_dir().exists() && !paths.layer().exists()
}

/// Returns whether the machine runs only for its commands, and neither its lifetime nor its owner's
/// has ended.
#[must_use]
pub fn awaits_commands(paths: &MachinePaths) -> bool {
    State::read(paths.name()).is_ok_and(|state| state.init == Init::None && is_within_time(&state))
}

fn has_pool(paths: &MachinePaths) -> bool {
    let mark = fs::read_to_string(paths.standby_mark()).unwrap_or_default();
    mark.split_once('/')
        .is_some_and(|(pool, _)| Path::new(POOL_ROOT).join(pool).exists())
}

fn is_expected(paths: &MachinePaths) -> Result<bool> {
    let state = match State::read(paths.name()) {
        Ok(state) => state,
        // Only the other version of these programs knows the machine's lifetime and owner.
        Err(error) if error.is::<OtherVersion>() => return Ok(true),
        Err(_) => return is_active(&State::paths_of(paths.name())),
    };
    if state.init == Init::None {
        return Ok(is_within_time(&state));
    }
    if !state.owner.is_none_or(ProcessId::is_alive) || !job_is_in_use(&state)? {
        return Ok(false);
    }
    // A standby machine's unit was started without RuntimeMaxSec=, so its lifetime is checked here.
    if state.is_taken_over() && !is_within_time(&state) {
        return Ok(false);
    }
    is_active(&state.paths())
}

/// Returns whether the job of a service is in use. Any other machine has no job to check.
fn job_is_in_use(state: &State) -> Result<bool> {
    let Some(service) = &state.service else {
        return Ok(true);
    };
    let job = MachinePaths::named(&service.job);
    Ok(Lock::is_held(&job) || is_in_use(&job)?)
}

fn is_within_time(state: &State) -> bool {
    !state.is_over() && state.owner.is_none_or(ProcessId::is_alive)
}

/// Returns whether systemd considers the machine's unit active.
///
/// After the death of systemd-nspawn the unit may still have processes, although it is about to
/// end.
fn is_active(paths: &MachinePaths) -> Result<bool> {
    if !processes::is_running(paths) {
        return Ok(false);
    }
    let unit = paths.unit();
    let answer = command::run(&argv(["systemctl", "is-active", &unit]), QUERY_LIMIT)?;
    match &*answer.stdout {
        "deactivating" | "failed" | "inactive" => Ok(false),
        "active" | "activating" | "reloading" => Ok(true),
        _ => bail!(
            "can't get the state of the unit {unit}{}",
            text::indent(&answer.stderr)
        ),
    }
}
