//! Starting a machine that is there: what each run of one without an init begins with.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nspawn_common::agent::client;
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
    let paths = MachinePaths::new(&MachineName::new(name)?);
    caller::check()?;
    signals::catch()?;
    // Of a machine that is none there is nothing to make, which reading its state tells.
    let lock = Lock::acquire_of_existing(&paths)?;
    let state = State::read(paths.name())?;
    let Some(_lock) = lock else {
        bail!("machine {} is being made", paths.name())
    };
    if processes::is_running(&paths) && client::ping(&paths, AGENT_LIMIT).is_ok() {
        return Ok(());
    }
    stop::stop_machine(&paths)?;
    diagnosis::forget(&paths)?;
    let begun = Moment::now();
    let Err(error) = repeat(&paths, || run(&paths, &state)) else {
        return Ok(());
    };
    let error = if error::is_interrupted(&error) {
        error
    } else {
        diagnosis::of(&state, error, begun)
    };
    signals::ignore();
    stop::stop_machine(&paths)?;
    Err(error)
}

fn run(paths: &MachinePaths, state: &State) -> Result<()> {
    for command in &state.start {
        step::run(command, state.timeout)?;
        signals::check()?;
    }
    confirm(paths, &state.properties).map(drop)
}

/// Calls `start`, and again where it fails because systemd-machined was restarted, as by an upgrade of systemd: a
/// systemd-nspawn that is just then registering its machine gives up, before anything runs in it.
pub fn repeat<T>(paths: &MachinePaths, start: impl Fn() -> Result<T>) -> Result<T> {
    for _ in 1..ATTEMPTS {
        let machined = machined::invocation();
        let error = match start() {
            Err(error) if machined::is_restarted(machined.as_deref()) => error,
            done => return done,
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

/// Makes sure that a machine that was started takes commands, is registered, and has the limits that were `given`.
/// Returns what nothing bounds.
pub fn confirm(paths: &MachinePaths, given: &[OsString]) -> Result<Vec<&'static str>> {
    client::wait_until_ready(paths, AGENT_LIMIT).context("it booted but takes no commands")?;
    // systemd-nspawn of 262 goes on without.
    if !paths.registration().exists() {
        bail!("it is not registered, so that no other tool would know it");
    }
    ssh::publish(paths)?;
    limits::check(paths, given)
}
