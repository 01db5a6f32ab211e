//! The first stage: makes a machine from an image and returns when it takes commands.
//!
//! | module | holds |
//! | --- | --- |
//! | [`prepare`] | the verb |
//! | [`options`], [`wishes`], [`runner`], [`host`] | what is asked for, by a job too, and what the host must have |
//! | [`machine`], [`plan`], [`make`] | the steps that make a machine, and taking them |
//! | [`start`] | starting one that is there |
//! | [`standby`], [`specification`] | machines that are started ahead, and whether one is what is asked for |
//! | [`services`], [`service`], [`serve`] | the machines of a job's services, one of them, and what they run |
//! | [`equip`], [`cache`], [`link`], [`hosts`] | what a job's machine gets once it runs: a cache, a link to its services |
//! | [`slots`] | waiting while there are too many |
//! | [`diagnosis`] | why one did not start |
//! | [`layer`], [`limits`] | what a machine writes to, and what it may use |
//! | [`nat`], [`uplink`], [`egress`] | a machine's network: pasta, addresses and routes, and what of the host it may reach |
//! | [`mounts`], [`namespaces`] | mounts with owners of their own, and the namespaces of machines |
//! | [`launch`] | what the machine's unit starts: mounts its root and becomes systemd-nspawn |

#![deny(unsafe_code)]

mod commands;
mod create;
mod gitlab;
mod launcher;
mod layer;
mod limits;
mod network;
mod options;
mod preflight;
mod services;
mod standby;

use std::ffi::OsString;
use std::process::ExitCode;

use nspawn_common::cli::sources;
use nspawn_common::exit_code::Exit;
use nspawn_common::report;
use nspawn_common::sys::signals;

/// The program's name in messages.
const PROGRAM: &str = "nspawn-prepare";

/// The command line's definition, for what is generated from it.
#[must_use]
pub fn command() -> clap::Command {
    sources::with_variables_in_help(&options::command())
}

/// The program: one line on stderr and a status for every failure.
#[must_use]
pub fn main() -> ExitCode {
    signals::reset_child_signal();
    let argv: Vec<OsString> = std::env::args_os().skip(1).collect();
    let done = match argv.split_first() {
        Some((first, rest)) if first == launcher::OPTION => launcher::launch(rest),
        Some((first, rest)) if first == create::start::OPTION => create::start::start(rest),
        Some((first, rest)) if first == network::pasta::OPTION => network::pasta::connect(rest),
        Some((first, rest)) if first == gitlab::attach::OPTION => gitlab::attach::equip(rest),
        Some((first, rest)) if first == commands::service::OPTION => commands::service::main(rest),
        Some((first, rest)) if first == standby::pool::OPTION => commands::prepare::refill(rest),
        _ => commands::prepare::main(&argv),
    };
    match done {
        Ok(()) => ExitCode::from(Exit::Success.code()),
        Err(error) => report::fail(PROGRAM, &error, Exit::Failure),
    }
}
