//! Starting a machine that is there: what each run of one without an init begins with.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nspawn_common::agent::protocol;
use nspawn_common::error;
use nspawn_common::error::TimedOut;
use nspawn_common::lifecycle::caller;
use nspawn_common::lifecycle::lock::Lock;
use nspawn_common::lifecycle::ssh;
use nspawn_common::lifecycle::stop;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::processes;
use nspawn_common::machine::state::State;
use nspawn_common::sys::clock::Moment;
use nspawn_common::sys::signals;
use nspawn_common::systemd::machined;

use crate::create::{diagnosis, step};
use crate::limits;

/// The argument that asks for it: `--start MACHINE`.
pub const OPTION: &str = "--start";

/// How often a start is attempted while systemd-machined is restarted.
const ATTEMPTS: u32 = 5;
/// How long the agent of a machine that is up may take to answer.
const AGENT_LIMIT: Duration = Duration::from_secs(20);

/// Starts the machine, unless it runs.
pub fn start(arguments: &[OsString]) -> Result<()> {
    let [name] = arguments else {
        bail!("{OPTION} is for nspawn-run alone")
    };
    let paths = MachinePaths::named(&MachineName::new(name)?);
    caller::check()?;
    signals::catch()?;
    // Of a machine that is none there is nothing to make, which reading its state tells.
    let lock = Lock::acquire_of_existing(&paths)?;
    let state = State::read(paths.name())?;
    let paths = state.paths();
    let Some(_lock) = lock else {
        bail!("machine {} is being made", paths.name())
    };
    if processes::is_running(&paths) && protocol::hello(&paths, AGENT_LIMIT).is_ok() {
        return Ok(());
    }
    stop::stop_machine(paths.name())?;
    diagnosis::forget(&paths)?;
    let begun = Moment::now();
    let Err(error) = repeat(paths.name(), || run(&state)) else {
        return Ok(());
    };
    let error = if error::is_interrupted(&error) {
        error
    } else {
        diagnosis::of(&state, error, begun)
    };
    signals::ignore();
    stop::stop_machine(paths.name())?;
    Err(error)
}

fn run(state: &State) -> Result<()> {
    for command in &state.start {
        step::run(command, state.timeout)?;
        signals::check()?;
    }
    confirm(&state.name, &state.properties).map(drop)
}

/// Calls `start`, and again where it fails because systemd-machined was restarted, as by an upgrade of systemd: a
/// systemd-nspawn that is just then registering its machine gives up, before anything runs in it.
pub fn repeat<T>(name: &MachineName, start: impl Fn() -> Result<T>) -> Result<T> {
    for _ in 1..ATTEMPTS {
        let machined = machined::invocation();
        let error = match start() {
            Err(error) if machined::is_restarted(machined.as_deref()) => error,
            done => return done,
        };
        let paths = MachinePaths::named(name);
        if error::is_interrupted(&error)
            || error.is::<TimedOut>()
            || paths.start_error_file().exists()
        {
            return Err(error);
        }
        stop::stop_machine(name)?;
    }
    start()
}

/// Makes sure that a machine that was started takes commands, is registered, and has the limits that were `given`.
/// Returns what nothing bounds.
pub fn confirm(name: &MachineName, given: &[OsString]) -> Result<Vec<&'static str>> {
    // The machine may have been taken over just now.
    let paths = &State::paths_of(name);
    protocol::wait_for_agent(paths, AGENT_LIMIT).context("it booted but takes no commands")?;
    // systemd-nspawn of 262 goes on without.
    if !paths.registration_file().exists() {
        bail!("it is not registered, so that no other tool would know it");
    }
    ssh::publish(paths)?;
    limits::check(paths, given)
}
