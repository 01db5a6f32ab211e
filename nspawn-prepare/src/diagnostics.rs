//! Name of this program, and its diagnostics.

use std::ffi::OsStr;

use nspawn_common::report;

/// Name of the program in messages.
pub const PROGRAM: &str = "nspawn-prepare";

/// Prints a line on stderr, behind the program's name.
pub fn print_diagnostic(line: impl AsRef<OsStr>) {
    report::print_diagnostic(PROGRAM, line.as_ref());
}
