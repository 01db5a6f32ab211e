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

use crate::cli;
use crate::target::Machine;

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
