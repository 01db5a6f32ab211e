//! A command of the caller.

use std::io;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nspawn_common::agent::request::Program;
use nspawn_common::exit_code;
use nspawn_common::sys::fs::is_null_device;

use crate::cli::Options;
use crate::client::connection::Outcome;
use crate::client::session;
use crate::client::session::Stdin;
use crate::client::stdio;
use crate::client::terminal;
use crate::commands::request;
use crate::target::Machine;

/// Signals that are not reported, as in a shell: they end pipelines and commands after Ctrl-C.
const SILENT_SIGNALS: [Signal; 2] = [Signal::SIGPIPE, Signal::SIGINT];

/// Runs the command in `machine` and returns the exit status.
pub fn run_command(machine: &Machine, options: &Options) -> Result<u8> {
    let has_terminal =
        options.terminal || (options.command.is_empty() && terminal::is_interactive());
    let program = if options.command.is_empty() {
        Program::Shell
    } else {
        Program::Command(options.command.clone())
    };
    let size = has_terminal.then(terminal::size);
    let mut request = request::create(&machine.state, options, program, size);
    let stdin = match stdio::find_stdin_error() {
        None if !has_terminal && is_null_device(io::stdin()) => Stdin::Empty,
        None => Stdin::Inherited,
        Some(error) if has_terminal || options.command.is_empty() => {
            return Err(error).context("can't read stdin");
        }
        // A command that does not read its stdin is not affected.
        Some(_) => {
            request.has_unreadable_stdin = true;
            Stdin::Empty
        }
    };
    let outcome = session::run(&machine.state, &request, stdin, options.stop_timeout)?;
    Ok(match outcome {
        Outcome::Exited(code) => code,
        Outcome::Signaled(number) => {
            if !SILENT_SIGNALS
                .iter()
                .any(|signal| *signal as i32 == i32::from(number))
            {
                request::print_signal(number, "command");
            }
            exit_code::of_signal(number.into())
        }
        Outcome::Refused(exit) => exit.code(),
    })
}
