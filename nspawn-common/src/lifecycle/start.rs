//! Starts machines, and confirms that a started machine is usable.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::agent::client;
use crate::command;
use crate::error;
use crate::error::TimedOut;
use crate::lifecycle::caller;
use crate::lifecycle::diagnosis;
use crate::lifecycle::limits;
use crate::lifecycle::lock::Lock;
use crate::lifecycle::ssh;
use crate::lifecycle::stop;
use crate::machine::paths::MachinePaths;
use crate::machine::processes;
use crate::machine::state::State;
use crate::sys::clock::Moment;
use crate::sys::signals;
use crate::systemd::machined;

/// Maximum number of start attempts while systemd-machined is being restarted.
const ATTEMPTS: u32 = 5;
/// Time limit for the agent of a booted machine to answer.
const AGENT_LIMIT: Duration = Duration::from_secs(20);

/// Starts a machine with `--init=none` by the commands in its state, unless it already runs.
///
/// Calls `print` with the output of each command that has any.
pub fn start(paths: &MachinePaths, print: impl Fn(&str)) -> Result<()> {
    caller::check()?;
    // If the machine does not exist, reading its state reports that.
    let lock = Lock::acquire_of_existing(paths)?;
    let state = State::read(paths.name())?;
    let Some(_lock) = lock else {
        bail!("machine {} is being made", paths.name())
    };
    if processes::is_running(paths) && client::ping(paths, AGENT_LIMIT).is_ok() {
        return Ok(());
    }
    stop::stop_machine(paths)?;
    diagnosis::remove_start_error(paths)?;
    let begin = Moment::now();
    let Err(error) = retry(paths, || run_start_commands(paths, &state, &print)) else {
        return Ok(());
    };
    let error = if error::is_interrupted(&error) {
        error
    } else {
        diagnosis::explain(&state, error, begin)
    };
    signals::ignore();
    stop::stop_machine(paths)?;
    Err(error)
}

fn run_start_commands(paths: &MachinePaths, state: &State, print: impl Fn(&str)) -> Result<()> {
    for command in &state.start {
        let output = command::run_checked(command, state.timeout)?;
        if !output.is_empty() {
            print(&output);
        }
        signals::check()?;
    }
    confirm(paths, &state.properties).map(drop)
}

/// Calls `start`, and calls it again if it fails because systemd-machined was restarted.
///
/// An upgrade of systemd restarts systemd-machined. A systemd-nspawn that is registering its machine at that moment
/// gives up before anything runs in the machine.
pub fn retry<T>(paths: &MachinePaths, start: impl Fn() -> Result<T>) -> Result<T> {
    for _ in 1..ATTEMPTS {
        let machined = machined::invocation();
        let error = match start() {
            Err(error) if machined::is_restarted(machined.as_deref()) => error,
            result => return result,
        };
        if error::is_interrupted(&error)
            || error.is::<TimedOut>()
            || paths.start_error_file().exists()
        {
            return Err(error);
        }
        stop::stop_machine(paths)?;
    }
    start()
}

/// Checks that a started machine accepts commands, is registered, and has the limits in `properties`.
///
/// Returns the default limits that the kernel does not enforce.
pub fn confirm(paths: &MachinePaths, properties: &[OsString]) -> Result<Vec<&'static str>> {
    client::wait_until_ready(paths, AGENT_LIMIT).context("it booted but takes no commands")?;
    // systemd-nspawn 262 continues when it can't register the machine.
    if !paths.registration().exists() {
        bail!("it is not registered with systemd-machined, so other tools can't find it");
    }
    ssh::publish(paths)?;
    limits::check(paths, properties)
}
