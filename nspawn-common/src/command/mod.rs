//! External programs, run with a time limit and with captured output.

pub mod btrfs;
pub mod ext4;
pub mod flock;
pub mod program_path;
pub mod running;
pub mod systemd_reexec;

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::shell;
use crate::text;

pub use program_path::{current_program, find_program, find_sibling};
pub use running::{Outcome, Running, memory_file};

/// Maximum number of lines of a failed program's stderr in an error. The first lines tell the
/// cause.
const MAX_ERROR_LINES: usize = 12;

/// Runs `argv` with an empty stdin, and kills it after `limit`.
///
/// A call of systemd's manager is repeated if systemd restarts: see [`manager`].
pub fn run(argv: &[OsString], limit: Duration) -> Result<Outcome> {
    let attempt = |argv: &[OsString]| run_with_stdin(Stdio::null(), argv, limit);
    let outcome = attempt(argv)?;
    let program = argv.first().and_then(|program| program.to_str());
    if program.is_some_and(systemd_reexec::is_caller) {
        systemd_reexec::repeat_if_lost(argv, outcome, attempt)
    } else {
        Ok(outcome)
    }
}

/// Runs `argv` with `stdin`, and kills it after `limit`.
pub fn run_with_stdin(
    stdin: impl Into<Stdio>,
    argv: &[OsString],
    limit: Duration,
) -> Result<Outcome> {
    Running::start(stdin, argv)?.finish(limit)
}

/// Runs `argv` like [`run`] and returns its stdout. Fails if the exit status is not 0.
///
/// The error contains the beginning of the program's stderr.
pub fn run_checked(argv: &[OsString], limit: Duration) -> Result<String> {
    check(argv, run(argv, limit)?)
}

/// Runs `argv` with `stdin`, otherwise like [`run_checked`].
pub fn run_checked_with_stdin(
    stdin: impl Into<Stdio>,
    argv: &[OsString],
    limit: Duration,
) -> Result<String> {
    check(argv, run_with_stdin(stdin, argv, limit)?)
}

fn check(argv: &[OsString], outcome: Outcome) -> Result<String> {
    if outcome.status.success() {
        return Ok(outcome.stdout);
    }
    let mut lines: Vec<&str> = outcome.stderr.lines().collect();
    let omitted = lines.len().saturating_sub(MAX_ERROR_LINES);
    lines.truncate(MAX_ERROR_LINES);
    let note = format!("and {omitted} more lines");
    if omitted > 0 {
        lines.push(&note);
    }
    bail!(
        "{} failed ({}){}",
        shell::join(&argv[..1]).to_string_lossy(),
        outcome.status,
        text::indent(&lines.join("\n"))
    )
}

/// Converts words to arguments.
pub fn argv<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.map(OsString::from).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn stdout_stderr_and_status_are_captured() {
        let outcome = run(&argv(["sh", "-c", "echo out; echo err >&2; exit 3"]), LIMIT).unwrap();
        assert_eq!(
            (outcome.status.code(), &*outcome.stdout, &*outcome.stderr),
            (Some(3), "out", "err")
        );
    }

    #[test]
    fn error_contains_stderr() {
        let command = argv(["sh", "-c", "echo no such thing >&2; exit 1"]);
        let error = run_checked(&command, LIMIT).unwrap_err();
        assert_eq!(
            error.to_string(),
            "sh failed (exit status: 1)\n  no such thing"
        );
        assert!(run_checked(&argv(["/nonexistent/tool"]), LIMIT).is_err());
    }

    #[test]
    fn long_stderr_is_cut() {
        let error = run_checked(&argv(["sh", "-c", "seq 20 >&2; exit 1"]), LIMIT).unwrap_err();
        assert!(
            error.to_string().ends_with("\n  12\n  and 8 more lines"),
            "{error}"
        );
    }

    #[test]
    fn programs_are_found_in_sbin_and_print_english() {
        let environment = run_checked(&argv(["sh", "-c", "echo $LC_ALL $PATH"]), LIMIT).unwrap();
        assert!(
            environment.starts_with("C.UTF-8 ") && environment.ends_with("/usr/sbin:/sbin"),
            "{environment}"
        );
        let unchanged = run_checked(&argv(["/bin/sh", "-c", "echo $PATH"]), LIMIT).unwrap();
        assert_eq!(unchanged, std::env::var("PATH").unwrap_or_default());
    }

    #[test]
    fn hanging_program_is_killed() {
        let error = run(&argv(["sleep", "60"]), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
    }

    #[test]
    fn process_left_behind_does_not_delay_the_result() {
        let command = argv(["sh", "-c", "sleep 60 & echo done"]);
        assert_eq!(run_checked(&command, LIMIT).unwrap(), "done");
    }
}
