//! Exit statuses of the programs.

use nix::sys::signal::Signal;

/// Exit status that a program chooses itself, as opposed to one of the command that it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Success.
    Success,
    /// Failure of `nspawn-prepare` or `nspawn-cleanup`.
    Failure,
    /// Failure of `nspawn-run` itself, for example because the machine does not exist.
    /// env(1), chroot(1) and docker use the same number.
    RunFailure,
    /// The command exists but can't be executed.
    NotExecutable,
    /// The command does not exist.
    NotFound,
    /// The limit on processes of the machine leaves no process for the command. Only the agent uses
    /// this status, in its answer to `nspawn-run`; no program exits with it.
    Exhausted,
}

impl Exit {
    /// Returns the number of this status.
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Exhausted => 75, // EX_TEMPFAIL of sysexits.h(3)
            Self::RunFailure => 125,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
        }
    }

    /// Returns the status for the number with which an agent refused a command.
    ///
    /// The result is never [`Exit::Success`], whatever number a hostile agent sends.
    pub fn from_refusal(code: u8) -> Self {
        let all = [Self::NotExecutable, Self::NotFound, Self::Exhausted];
        all.into_iter()
            .find(|exit| exit.code() == code)
            .unwrap_or(Self::RunFailure)
    }
}

/// Returns the exit status that a shell reports for a command that signal `number` ended.
pub fn of_signal(number: i32) -> u8 {
    u8::try_from(number).map_or(u8::MAX, |number| number.saturating_add(128))
}

/// Formats a signal for a message, for example `signal 9 (SIGKILL)`.
pub fn describe_signal(number: i32) -> String {
    let name = Signal::try_from(number)
        .map(|signal| format!(" ({signal})"))
        .unwrap_or_default();
    format!("signal {number}{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_is_never_a_success() {
        for code in [0, 1, 2, 125, 255] {
            assert_eq!(Exit::from_refusal(code), Exit::RunFailure);
        }
        assert_eq!(Exit::from_refusal(127), Exit::NotFound);
        assert_eq!(Exit::from_refusal(Exit::Exhausted.code()), Exit::Exhausted);
    }

    #[test]
    fn signals_become_the_status_of_a_shell() {
        assert_eq!(of_signal(15), 143);
        assert_eq!(of_signal(9), 137);
        assert_eq!(of_signal(64), 192);
    }
}
