//! Requests to the agent, and messages about their results.

use std::ffi::OsStr;

use nspawn_common::agent::request::{Program, Request};
use nspawn_common::config::init::Init;
use nspawn_common::exit_code;
use nspawn_common::machine::state::State;
use nspawn_common::report;

use crate::cli::{Options, PROGRAM};

/// Creates the request to run `program` in a machine with this state.
///
/// `terminal` is the number of rows and columns of the terminal to create for the program.
pub fn create(
    state: &State,
    options: &Options,
    program: Program,
    terminal: Option<(u16, u16)>,
) -> Request {
    let mut environment = state.environment.clone();
    if let (Some(_), Some(term)) = (terminal, std::env::var_os("TERM")) {
        environment.push([OsStr::new("TERM="), &term].into_iter().collect());
    }
    environment.extend(options.environment.iter().cloned());
    Request {
        program,
        environment,
        user: options.user.clone(),
        directory: options.directory.clone(),
        terminal,
        // A machine without an init runs for its commands only. The processes of a command end with
        // the command even if another command keeps the machine running.
        kill_remaining: options.kill_remaining || state.init == Init::None,
        has_unreadable_stdin: false,
        user_manager: options.user_manager,
    }
}

/// Reports that a signal ended the command or the script, which `subject` says.
pub fn print_signal(number: u8, subject: &str) {
    let signal = exit_code::describe_signal(number.into());
    report::print_diagnostic(
        PROGRAM,
        OsStr::new(&format!("{signal} ended the {subject}")),
    );
}
