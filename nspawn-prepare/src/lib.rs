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

mod cache;
mod diagnosis;
mod egress;
mod equip;
mod host;
mod hosts;
mod launch;
mod layer;
mod limits;
mod link;
mod machine;
mod make;
mod mounts;
mod namespaces;
mod nat;
mod options;
mod plan;
mod prepare;
mod runner;
mod serve;
mod service;
mod services;
mod slots;
mod specification;
mod standby;
mod start;
mod uplink;
mod wishes;

use std::ffi::OsString;
use std::process::ExitCode;

use nspawn_common::args;
use nspawn_common::exit::{self, Exit};
use nspawn_common::interrupt;

/// The program's name in messages.
const PROGRAM: &str = "nspawn-prepare";

/// The command line's definition, for what is generated from it.
#[must_use]
pub fn command() -> clap::Command {
    args::with_variables_in_help(&options::command())
}

/// The program: one line on stderr and a status for every failure.
#[must_use]
pub fn main() -> ExitCode {
    interrupt::reset_child_signal();
    let argv: Vec<OsString> = std::env::args_os().skip(1).collect();
    let done = match argv.split_first() {
        Some((first, rest)) if first == launch::OPTION => launch::launch(rest),
        Some((first, rest)) if first == start::OPTION => start::start(rest),
        Some((first, rest)) if first == nat::OPTION => nat::connect(rest),
        Some((first, rest)) if first == equip::OPTION => equip::equip(rest),
        Some((first, rest)) if first == service::OPTION => service::main(rest),
        Some((first, rest)) if first == standby::OPTION => prepare::refill(rest),
        _ => prepare::main(&argv),
    };
    match done {
        Ok(()) => ExitCode::from(Exit::Success.code()),
        Err(error) => exit::fail(PROGRAM, &error, Exit::Failure),
    }
}
