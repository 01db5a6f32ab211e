//! The run stage: runs a command in a machine, and ends with its exit status.
//!
//! | module | contents |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | [`commands`] | a command of the caller, or a stage of a GitLab job |
//! | [`target`] | the machine for a command: an existing one, or a new one |
//! | [`client`] | the host's side of a command: its session with the agent, and its streams |
//! | [`service_logs`] | logs of services that ended before their job |
//! | [`agent`] | the machine's side of a command: the same program in an internal form |

#![deny(unsafe_code)]

mod agent;
mod cli;
mod client;
mod commands;
mod service_logs;
mod target;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use nspawn_common::cli::sources;
use nspawn_common::exit_code::Exit;
use nspawn_common::machine::state::SERVICE_OPTION;
use nspawn_common::program;

use agent::IdlePolicy;
use cli::PROGRAM;

/// Returns the definition of the command line, for generated documentation.
pub fn command() -> clap::Command {
    sources::with_variables_in_help(&cli::command(true))
}

/// Runs the program and returns the exit status of the command, or 125 after one line on stderr.
pub fn main() -> ExitCode {
    program::main(PROGRAM, Exit::RunFailure, run)
}

fn run(argv: &[OsString]) -> Result<u8> {
    match argv.first().and_then(|word| word.to_str()) {
        Some(agent::OPTION) => agent::main(IdlePolicy::Stay)?,
        Some(agent::ONCE_OPTION) => agent::main(IdlePolicy::Exit)?,
        Some(agent::STOP_OPTION) => agent::stop()?,
        Some(agent::ONLINE_OPTION) => agent::online::wait()?,
        Some(SERVICE_OPTION) => return commands::run_service(&argv[1..]),
        _ => return commands::main(argv),
    }
    Ok(Exit::Success.code())
}
