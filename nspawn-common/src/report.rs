//! Output for users: results on stdout, diagnostics on stderr.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Error, Result};

use crate::error::Fault;
use crate::exit_code::Exit;
use crate::gitlab;

/// Prints `error` and returns the exit status of the program.
///
/// All causes go on one line behind the program's name. The status is GitLab's if GitLab Runner
/// called the program, and `exit` otherwise.
pub fn print_error(program: &str, error: &Error, exit: Exit) -> u8 {
    print_diagnostic(program, OsStr::new(&format!("{error:#}")));
    if gitlab::is_active() {
        let fault = Fault::of(error).unwrap_or(Fault::Host);
        gitlab::ExitCodes::from_env().code(fault)
    } else {
        exit.code()
    }
}

/// Prints a line on stderr, behind the program's name.
pub fn print_diagnostic(program: &str, line: &OsStr) {
    let whole = [program.as_bytes(), b": ", line.as_bytes(), b"\n"].concat();
    // Write errors are ignored: there is nowhere left to report them.
    let _ = std::io::stderr().write_all(&whole);
}

/// Prints a line on stdout.
pub fn print_line(line: &OsStr) -> Result<()> {
    std::io::stdout()
        .write_all(&[line.as_bytes(), b"\n"].concat())
        .context("can't write to stdout")
}
