//! The frame of the programs: their arguments, and their exit status.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Error, Result};

use crate::error::Fault;
use crate::exit_code::Exit;
use crate::gitlab;
use crate::report;
use crate::sys::signals;

/// Runs a program with its arguments. `run` returns the exit status.
///
/// A failure is one line on stderr. The exit status is GitLab's if GitLab Runner called the
/// program, and `failure` otherwise.
pub fn main(name: &str, failure: Exit, run: impl FnOnce(&[OsString]) -> Result<u8>) -> ExitCode {
    signals::reset_child_signal();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match run(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(name, &error, failure),
    }
}

/// Prints `error` and returns the exit status, or ends the process by the signal behind `error`.
///
/// The caller then learns about the signal from the wait status. GitLab Runner gets an exit status
/// in every case.
fn fail(name: &str, error: &Error, exit: Exit) -> ExitCode {
    let code = report::print_error(name, error, exit);
    if let (Some(Fault::Interrupted(signal)), false) = (Fault::of(error), gitlab::is_active()) {
        signals::die_by(signal);
    }
    ExitCode::from(code)
}
