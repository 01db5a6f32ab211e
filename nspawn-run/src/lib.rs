//! The second stage: runs a command in a machine, and ends as the command ended.
//!
//! | module | on which side |
//! | --- | --- |
//! | [`options`], [`run`] | the host: what is asked for, and the verb |
//! | [`machine`] | the host: the machine there is, or one for this command |
//! | [`call`] | the host: one call of the agent |
//! | [`death`], [`memory`], [`tasks`] | the host: why the agent went away; whether the OOM killer was at work; which limit leaves no process |
//! | [`services`] | the host: services of a job that have ended before it |
//! | [`streams`], [`terminal`] | the host: stdin, stdout, stderr |
//! | [`agent`] | the machine: the same program in its hidden form |

#![deny(unsafe_code)]

mod agent;
mod cli;
mod client;
mod commands;
mod service_logs;
mod target;

use std::ffi::OsString;
use std::process::ExitCode;

use nspawn_common::cli::sources;
use nspawn_common::exit_code::Exit;
use nspawn_common::report;
use nspawn_common::sys::signals;

/// The program's name in messages.
const PROGRAM: &str = "nspawn-run";

/// The command line's definition, for what is generated from it.
#[must_use]
pub fn command() -> clap::Command {
    sources::with_variables_in_help(&cli::command(true))
}

/// The program: the command's own status, or one line on stderr and 125.
#[must_use]
pub fn main() -> ExitCode {
    signals::reset_child_signal();
    let argv: Vec<OsString> = std::env::args_os().skip(1).collect();
    let done = match argv.first() {
        Some(first) if first == agent::OPTION => agent::main(false).map(|()| Exit::Success.code()),
        Some(first) if first == agent::ONCE_OPTION => {
            agent::main(true).map(|()| Exit::Success.code())
        }
        Some(first) if first == agent::STOP_OPTION => agent::stop().map(|()| Exit::Success.code()),
        _ => commands::exec::main(&argv),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => report::fail(PROGRAM, &error, Exit::RunFailure),
    }
}
