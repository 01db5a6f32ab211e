//! Starts machines, and confirms that a started machine is usable.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::agent::client;
use crate::command;
use crate::error;
use crate::error::TimedOut;
use crate::lifecycle::calling_unit;
use crate::lifecycle::diagnosis;
use crate::lifecycle::limit_enforcement;
use crate::lifecycle::lock::Lock;
use crate::lifecycle::ssh;
use crate::lifecycle::stop;
use crate::machine::name::MachineName;
use crate::machine::paths::MachinePaths;
use crate::machine::processes;
use crate::machine::state::State;
use crate::sys::clock::Moment;
use crate::sys::signals;
use crate::systemd::{journal, machined};

/// Maximum number of start attempts while systemd-machined is being restarted.
const ATTEMPTS: u32 = 5;
/// Time limit for the agent of a booted machine to answer.
const AGENT_LIMIT: Duration = Duration::from_secs(20);

/// Starts a machine with `--init=none` by the commands in its state, unless it already runs.
///
/// Calls `print` with the output of each command that has any.
pub fn start(name: &MachineName, print: impl Fn(&str)) -> Result<()> {
    calling_unit::check()?;
    // If the machine does not exist, reading its state reports that.
    let lock = Lock::acquire_of_existing(&MachinePaths::named(name))?;
    let state = State::read(name)?;
    let Some(_lock) = lock else {
        bail!("machine {name} is still being created; try again")
    };
    let paths = &state.paths();
    if processes::is_running(paths) && client::ping(paths, AGENT_LIMIT).is_ok() {
        return Ok(());
    }
    stop_before_start(name)?;
    diagnosis::remove_start_error(paths)?;
    let begin = Moment::now();
    let Err(error) = retry(name, || run_start_commands(&state, &print)) else {
        return Ok(());
    };
    let error = if error::is_interrupted(&error) {
        error
    } else {
        diagnosis::explain(&state, error, begin)
    };
    signals::ignore();
    stop::stop_machine(name)?;
    Err(error)
}

fn run_start_commands(state: &State, print: impl Fn(&str)) -> Result<()> {
    let deadline = Instant::now() + state.timeout;
    for command in &state.start {
        let limit = deadline.saturating_duration_since(Instant::now());
        let output = command::run_checked(command, limit)?;
        if !output.is_empty() {
            print(&output);
        }
        signals::check()?;
    }
    confirm(&state.name, &state.properties, deadline).map(drop)
}

/// Calls `start`, and calls it again if it fails because systemd-machined did not register the
/// machine.
///
/// systemd-machined may have been restarted, as by an upgrade of systemd, or may not yet have
/// forgotten an earlier start of the machine. systemd-nspawn gives up then before anything runs in
/// the machine.
pub fn retry<T>(name: &MachineName, start: impl Fn() -> Result<T>) -> Result<T> {
    let paths = &MachinePaths::named(name);
    for _ in 1..ATTEMPTS {
        let (machined, begin) = (machined::invocation(), Moment::now());
        let error = match start() {
            Err(error) => error,
            started => return started,
        };
        if error::is_interrupted(&error)
            || error.is::<TimedOut>()
            || paths.start_error_file().exists()
            || !(machined::is_restarted(machined.as_deref()) || is_unregistered(paths, begin))
        {
            return Err(error);
        }
        stop_before_start(name)?;
        machined::wait_until_forgotten(name)?;
    }
    start()
}

/// Returns whether systemd-nspawn has said since `begin` that it can't register the machine.
fn is_unregistered(paths: &MachinePaths, begin: Moment) -> bool {
    let entries = journal::entries(paths, begin).unwrap_or_default();
    entries.contains("Failed to register machine")
}

/// Stops what runs of the machine, and waits until systemd-machined has noticed.
///
/// systemd-machined refuses a machine of the name of another one that it has not yet seen end.
fn stop_before_start(name: &MachineName) -> Result<()> {
    stop::stop_machine(name)?;
    machined::wait_until_gone(&State::paths_of(name))
}

/// Checks that a started machine accepts commands, is registered, and has the limits in
/// `properties`.
///
/// Waits for its agent until `deadline`. Returns the default limits that the kernel does not
/// enforce.
pub fn confirm(
    name: &MachineName,
    properties: &[OsString],
    deadline: Instant,
) -> Result<Vec<&'static str>> {
    // A machine that was taken over just now has another name than its unit.
    let paths = &State::paths_of(name);
    let limit = deadline.saturating_duration_since(Instant::now());
    client::wait_until_ready(paths, limit.min(AGENT_LIMIT))
        .context("it booted, but does not accept commands")?;
    // systemd-nspawn 262 continues when it can't register the machine.
    if !paths.registration_file().exists() {
        bail!("it is not registered with systemd-machined, so other tools can't find it");
    }
    ssh::publish(paths)?;
    limit_enforcement::check(paths, properties)
}
