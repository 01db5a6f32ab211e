//! The program `nspawn-prepare`: creates a machine from an image, and returns when the machine
//! accepts commands.
//!
//! The modules, from the lowest to the highest. Each imports only modules that come before it:
//!
//! | module | purpose |
//! | --- | --- |
//! | [`diagnostics`], [`internal_form`] | name and diagnostics of the program; its internal forms |
//! | [`preflight`], [`slice`] | requirements of the host; limits of all machines together |
//! | [`recorder`] | the output of a machine, in files of limited size |
//! | [`layer`], [`network`] | what a machine writes to; how it is connected |
//! | [`cli`], [`options`] | definition of the command line; the parsed options |
//! | [`launcher`] | process of the machine's unit, until it becomes systemd-nspawn |
//! | [`create`] | specification of a machine and its plan |
//! | [`gitlab`], [`services`] | what only GitLab jobs need |
//! | [`standby`] | machines that are started ahead of time |
//! | [`create::queue`], [`create::run`] | waiting for a slot; running a plan |
//! | [`commands`] | the public command, and the internal forms that create machines |

#![deny(unsafe_code)]

mod cli;
mod commands;
mod create;
mod device;
mod diagnostics;
mod gitlab;
mod internal_form;
mod launcher;
mod layer;
mod network;
mod options;
mod preflight;
mod recorder;
mod services;
mod slice;
mod standby;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use nspawn_common::cli::sources;
use nspawn_common::exit_code::Exit;
use nspawn_common::program;

use diagnostics::PROGRAM;
use internal_form::Internal;

/// Returns the definition of the command line, for the man page and the completions.
pub fn command() -> clap::Command {
    sources::with_variables_in_help(&cli::command())
}

/// Runs the program. A failure is one line on stderr and an exit status.
pub fn main() -> ExitCode {
    program::main(PROGRAM, Exit::Failure, |arguments| {
        run(arguments)?;
        Ok(Exit::Success.code())
    })
}

fn run(arguments: &[OsString]) -> Result<()> {
    let Some(form) = Internal::parse(arguments)? else {
        return commands::prepare::run(arguments);
    };
    match form {
        Internal::Launch { machine, command } => launcher::launch(&machine, &command),
        Internal::Record { machine, command } => commands::record::run(&machine, &command),
        Internal::Network { machine, allowed } => network::pasta::connect(&machine, &allowed),
        Internal::Attach {
            machine,
            cache_size,
        } => gitlab::attach::attach(&machine, cache_size),
        Internal::Service { number, options } => commands::service::run(number, &options),
        Internal::RecordFilters { options } => launcher::filter_cache::record(&options),
        Internal::Refill { pool } => commands::standby::refill(&pool),
    }
}
