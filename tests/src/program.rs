//! The frame of the programs of this crate.

use std::process::ExitCode;

use anyhow::Result;

/// Runs a program with its arguments. Its failure is one line on stderr, behind `prefix`.
pub fn run_program(prefix: &str, run: impl FnOnce(&[String]) -> Result<()>) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{prefix}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
