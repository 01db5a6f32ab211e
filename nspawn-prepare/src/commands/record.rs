//! The internal form that records the output of a service's command.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;

use crate::recorder;

/// Becomes `command`, whose output is recorded as that of the machine's service.
pub fn run(machine: &MachineName, command: &[OsString]) -> Result<()> {
    let [program, arguments @ ..] = command else {
        bail!("can't record the output of a service of machine {machine}: there is no command");
    };
    let output = recorder::start(&MachinePaths::named(machine).command_output(), None)?;
    let error = Command::new(program)
        .args(arguments)
        .stdout(output.try_clone()?)
        .stderr(output)
        .exec();
    Err(error).with_context(|| format!("can't start {program:?}"))
}
