//! Starting a machine that is there: what each run of one without an init begins with.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nspawn_common::clock::Moment;
use nspawn_common::interrupt::{self, Interrupted};
use nspawn_common::lifecycle;
use nspawn_common::lock::Lock;
use nspawn_common::name::MachineName;
use nspawn_common::paths::MachinePaths;
use nspawn_common::state::State;
use nspawn_common::wire;

use crate::{diagnosis, limits, plan};

/// The argument that asks for it: `--start MACHINE`.
pub const OPTION: &str = "--start";

/// How long the agent of a machine that is up may take to answer.
const AGENT_LIMIT: Duration = Duration::from_secs(20);

/// Starts the machine, unless it runs.
pub fn start(arguments: &[OsString]) -> Result<()> {
    let [name] = arguments else { bail!("{OPTION} is for nspawn-run alone") };
    let paths = MachinePaths::new(&MachineName::new(name)?);
    interrupt::catch()?;
    // Of a machine that is none there is nothing to make, which reading its state tells.
    let lock = Lock::acquire_of_existing(&paths)?;
    let state = State::read(paths.name())?;
    let Some(_lock) = lock else { bail!("machine {} is being made", paths.name()) };
    if lifecycle::is_running(&paths) && wire::hello(&paths, AGENT_LIMIT).is_ok() {
        return Ok(());
    }
    lifecycle::end(&paths)?;
    diagnosis::forget(&paths)?;
    let begun = Moment::now();
    let Err(error) = run(&paths, &state) else { return Ok(()) };
    let error = if error.is::<Interrupted>() { error } else { diagnosis::of(&state, error, begun) };
    interrupt::undo();
    lifecycle::end(&paths)?;
    Err(error)
}

fn run(paths: &MachinePaths, state: &State) -> Result<()> {
    for command in &state.start {
        plan::run(command, state.timeout)?;
        interrupt::check()?;
    }
    confirm(paths, &state.properties).map(drop)
}

/// Makes sure that a machine that was started takes commands, is registered, and has the limits that were `given`.
/// Returns what nothing bounds.
pub fn confirm(paths: &MachinePaths, given: &[OsString]) -> Result<Vec<&'static str>> {
    wire::wait_for_agent(paths, AGENT_LIMIT).context("it booted but takes no commands")?;
    // systemd-nspawn of 262 goes on without.
    if !paths.registration().exists() {
        bail!("it is not registered, so that no other tool would know it");
    }
    limits::check(paths, given)
}
