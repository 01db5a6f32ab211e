//! Exit statuses, each number written once, and the one place that reports an error.

use std::ffi::OsStr;
use std::fmt;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use anyhow::Error;
use nix::sys::signal::Signal;

use crate::gitlab;
use crate::sys::signals;

/// How a program of ours ends by its own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All done.
    Success,
    /// `nspawn-prepare` or `nspawn-cleanup` failed.
    Failure,
    /// `nspawn-run` itself failed: no such machine, the machine died.
    /// The convention of env(1), chroot(1) and docker.
    RunFailure,
    /// The command was found but can't be executed.
    NotExecutable,
    /// The command was not found.
    NotFound,
    /// The machine has no process left for a command. The agent says so, and no program ends with it.
    Exhausted,
}

impl Exit {
    /// The number given to the system.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Exhausted => 75, // EX_TEMPFAIL of sysexits.h(3)
            Self::Failure => 1,
            Self::RunFailure => 125,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
        }
    }

    /// The status behind the number that an agent gave for a command that it did not run. Success is
    /// not among them, whatever an agent says.
    #[must_use]
    pub fn of_refusal(code: u8) -> Self {
        let all = [Self::NotExecutable, Self::NotFound, Self::Exhausted];
        all.into_iter()
            .find(|exit| exit.code() == code)
            .unwrap_or(Self::RunFailure)
    }
}

/// What a shell reports for a command that signal `number` ended.
#[must_use]
pub fn code_of_signal(number: i32) -> u8 {
    u8::try_from(number).map_or(u8::MAX, |number| number.saturating_add(128))
}

/// A signal's number and name, for a person.
#[must_use]
pub fn describe_signal(number: i32) -> String {
    let name = Signal::try_from(number)
        .map(|signal| format!(" ({signal})"))
        .unwrap_or_default();
    format!("signal {number}{name}")
}

/// An error that the job's author can mend: a build failure under GitLab, not retried.
/// Every other error is the host's.
#[derive(Debug)]
pub struct JobError(pub String);

impl fmt::Display for JobError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for JobError {}

/// Prints `error` with all its causes on one line, prefixed by the program's name, and picks the
/// exit status: GitLab's when GitLab Runner called, else `code`.
pub fn report(program: &str, error: &Error, code: Exit) -> u8 {
    say(program, OsStr::new(&format!("{error:#}")));
    if !gitlab::is_active() {
        return code.code();
    }
    let codes = gitlab::ExitCodes::from_env();
    if error.downcast_ref::<JobError>().is_some() {
        codes.build
    } else {
        codes.system
    }
}

/// Ends a program that failed: [`report`], and by the signal that asked for it if one did. GitLab
/// Runner gets a status all the same.
#[must_use]
pub fn fail(program: &str, error: &Error, code: Exit) -> ExitCode {
    let code = report(program, error, code);
    if !gitlab::is_active() {
        signals::die_if_interrupted(error);
    }
    ExitCode::from(code)
}

/// Prints one diagnostic line on stderr. A stderr that is gone is nobody to tell.
pub fn say(program: &str, line: &OsStr) {
    let whole = [program.as_bytes(), b": ", line.as_bytes(), b"\n"].concat();
    let _ = std::io::stderr().write_all(&whole);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_agent_can_refuse_with_a_success() {
        for code in [0, 1, 2, 125, 255] {
            assert_eq!(Exit::of_refusal(code), Exit::RunFailure);
        }
        assert_eq!(Exit::of_refusal(127), Exit::NotFound);
        assert_eq!(Exit::of_refusal(Exit::Exhausted.code()), Exit::Exhausted);
    }

    #[test]
    fn signals_as_a_shell_has_them() {
        assert_eq!(code_of_signal(15), 143);
        assert_eq!(code_of_signal(9), 137);
        assert_eq!(code_of_signal(64), 192);
    }
}
