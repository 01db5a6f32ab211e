//! Calls of systemd's manager, which survive its restart.
//!
//! An upgrade of systemd makes PID 1 execute itself again (systemctl(1), daemon-reexec). Units and
//! jobs continue, but all connections to it end. systemctl and systemd-run then fail, although the
//! request may have been fulfilled or may still be in progress.

use std::ffi::OsString;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::command::running::Outcome;
use crate::sys::signals;

/// Time limit for systemd to accept connections again.
const RETURN_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// Programs that call the manager.
const CALLERS: [&str; 2] = ["systemctl", "systemd-run"];
/// Exit status of `systemctl start` for a unit that does not exist (systemctl(1), "Exit status").
const NO_SUCH_UNIT: i32 = 5;
/// Messages of systemctl and systemd-run 252 to 262 about a connection that has ended.
///
/// Without a locale they are those of errno(3), and of dbus-daemon, through which systemctl 252
/// calls.
const LOST_CONNECTION: [&str; 7] = [
    "Connection reset by peer",
    "Connection refused",
    "Transport endpoint is not connected",
    "Broken pipe",
    "disconnected from message bus",
    "Remote peer disconnected",
    "Could not activate remote peer",
];

/// Returns whether `program` calls the manager.
pub(super) fn is_caller(program: &str) -> bool {
    CALLERS.contains(&program)
}

/// Repeats the call `argv` as long as its connection ends early.
///
/// `outcome` is that of the first attempt, and `attempt` runs a command once.
pub(super) fn repeat_if_lost(
    argv: &[OsString],
    mut outcome: Outcome,
    mut attempt: impl FnMut(&[OsString]) -> Result<Outcome>,
) -> Result<Outcome> {
    let deadline = Instant::now() + RETURN_LIMIT;
    let start = start_command(argv);
    let mut is_starting = false;
    loop {
        let is_lost = is_lost(&outcome);
        let is_missing = is_starting && outcome.status.code() == Some(NO_SUCH_UNIT);
        if !(is_lost || is_missing) || Instant::now() >= deadline {
            return Ok(outcome);
        }
        signals::check()?;
        thread::sleep(PAUSE);
        // systemd-run may have created its transient unit before the connection ended. Another
        // unit of the same name would be refused, so start that unit, unless it is missing.
        is_starting = start.is_some() && !is_missing;
        outcome = match &start {
            Some(start) if is_starting => attempt(start)?,
            _ => attempt(argv)?,
        };
    }
}

fn is_lost(outcome: &Outcome) -> bool {
    let is_in_stderr = |message: &&str| outcome.stderr.contains(*message);
    !outcome.status.success() && LOST_CONNECTION.iter().any(is_in_stderr)
}

// Returns the command that starts the unit of the systemd-run command `argv` if it exists, and that
// waits for the start in the same way.
fn start_command(argv: &[OsString]) -> Option<Vec<OsString>> {
    let options = || {
        argv.iter()
            .take_while(|word| *word != "--")
            .filter_map(|word| word.to_str())
    };
    let unit = options().find_map(|word| word.strip_prefix("--unit="))?;
    let mut command: Vec<OsString> = vec!["systemctl".into(), "start".into()];
    if options().any(|word| word == "--no-block") {
        command.push("--no-block".into());
    }
    command.push(unit.into());
    Some(command)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    const LOST: &str = "Failed to start transient service unit: Connection reset by peer";

    fn outcome(code: i32, stderr: &str) -> Outcome {
        Outcome {
            status: ExitStatus::from_raw(code << 8),
            stdout: String::new(),
            stderr: stderr.to_owned(),
        }
    }

    /// Returns the commands of all attempts but the first, and the last status.
    fn repeat(command: &str, outcomes: &[(i32, &str)]) -> (Vec<String>, Option<i32>) {
        let argv: Vec<_> = command.split(' ').map(OsString::from).collect();
        let mut outcomes = outcomes.iter().map(|(code, stderr)| outcome(*code, stderr));
        let first = outcomes.next().unwrap();
        let mut repeated = Vec::new();
        let attempt = |command: &[OsString]| {
            repeated.push(command.join(" ".as_ref()).into_string().unwrap());
            Ok(outcomes.next().unwrap())
        };
        let last = repeat_if_lost(&argv, first, attempt).unwrap();
        (repeated, last.status.code())
    }

    #[test]
    fn only_calls_with_a_lost_connection_are_repeated() {
        let stop = "systemctl stop a.service";
        assert_eq!(repeat(stop, &[(0, "")]), (vec![], Some(0)));
        let disconnected = "Failed to stop a.service: Message recipient disconnected from message bus without replying";
        assert_eq!(repeat(stop, &[(1, disconnected), (0, "")]).1, Some(0));
        let failed = [(1, "Job for a.service failed")];
        assert_eq!(repeat(stop, &failed), (vec![], Some(1)));
        let twice = vec![stop.to_owned(); 2];
        assert_eq!(
            repeat(stop, &[(1, LOST), (1, LOST), (0, "")]),
            (twice, Some(0))
        );
    }

    #[test]
    fn created_unit_is_started_and_missing_unit_is_created_again() {
        let run = "systemd-run --no-block --unit=a.service -- x --unit=b";
        let start = "systemctl start --no-block a.service";
        let commands = |commands: &[&str]| -> Vec<String> {
            commands
                .iter()
                .map(|command| (*command).to_owned())
                .collect()
        };
        assert_eq!(
            repeat(run, &[(1, LOST), (0, "")]),
            (commands(&[start]), Some(0))
        );
        assert_eq!(
            repeat(run, &[(1, LOST), (1, "Job failed")]),
            (commands(&[start]), Some(1))
        );
        let missing = [(1, LOST), (1, LOST), (5, "not found"), (1, LOST), (0, "")];
        assert_eq!(
            repeat(run, &missing),
            (commands(&[start, start, run, start]), Some(0))
        );
    }
}
