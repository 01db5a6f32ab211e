//! The ways to call the program.

mod exec;
mod gitlab_stage;
mod request;

use std::ffi::OsString;

use anyhow::{Result, bail};
use nspawn_common::exit_code::Exit;
use nspawn_common::gitlab;
use nspawn_common::lifecycle::calling_unit;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::state::{SERVICE_OPTION, State};

use crate::cli;
use crate::cli::Options;
use crate::target::Machine;

/// Runs the command of the service in a machine, as the machine's state describes it, and returns
/// the exit status. Argument files apply as to any other command.
pub fn run_service(argv: &[OsString]) -> Result<u8> {
    let [machine] = argv else {
        bail!("can't use {SERVICE_OPTION}: it is for calls by these programs; see --help");
    };
    let name = MachineName::new(machine)?;
    let state = State::read(&name)?;
    let (Some(role), Some(options)) = (state.service, cli::parse(argv)?) else {
        bail!("can't run the command of a service: machine {name} is not a service");
    };
    let options = Options {
        command: role.command,
        user: role.user.map(OsString::from).or(options.user),
        directory: role.directory.or(options.directory),
        ..options
    };
    Machine::with_existing(&name, |machine| exec::run_command(machine, &options))
}

/// Parses the command line, runs the command and returns the exit status.
pub fn main(argv: &[OsString]) -> Result<u8> {
    let Some(options) = cli::parse(argv)? else {
        return Ok(Exit::Success.code());
    };
    if !calling_unit::is_root() {
        bail!("only root can reach machines; try sudo");
    }
    let result = match (&options.image, gitlab::is_active()) {
        (Some(_), true) => {
            bail!("can't use --image in a GitLab job: nspawn-prepare creates the machine")
        }
        (Some(image), false) => {
            Machine::with_new(image, |machine| exec::run_command(machine, &options))
        }
        (None, true) => gitlab_stage::run_stage(&options),
        (None, false) => {
            let name = MachineName::new(&options.machine)?;
            Machine::with_existing(&name, |machine| exec::run_command(machine, &options))
        }
    };
    result.map_err(calling_unit::explain)
}
