//! Calls of systemd as the manager of units, across its restarts.
//!
//! An upgrade of systemd has PID 1 execute itself anew (systemctl(1), daemon-reexec). Units and jobs go on, and all
//! connections to it end: systemctl and systemd-run then fail, although what they asked for may have been done, or is
//! being done.

use std::ffi::OsString;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::command;
use crate::command::Outcome;
use crate::sys::signals;

/// Time limit for systemd to take connections again.
const RETURN_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// Programs that call the manager.
const CALLERS: [&str; 2] = ["systemctl", "systemd-run"];
/// Exit status of `systemctl start` for a unit that does not exist (systemctl(1), "Exit status").
const NO_SUCH_UNIT: i32 = 5;
/// Words that systemctl and systemd-run print where their connection has ended, in 252 to 262. Without a locale they
/// are those of errno(3), and of dbus-daemon, through which systemctl of 252 calls.
const LOST: [&str; 7] = [
    "Connection reset by peer",
    "Connection refused",
    "Transport endpoint is not connected",
    "Broken pipe",
    "disconnected from message bus",
    "Remote peer disconnected",
    "Could not activate remote peer",
];

/// Returns whether `program` calls the manager.
pub(crate) fn is_caller(program: &str) -> bool {
    CALLERS.contains(&program)
}

/// Repeats the call `argv`, whose `outcome` is that of the first attempt, as long as its connection ends early.
/// `attempt` runs a command once.
pub(crate) fn settle(
    argv: &[OsString],
    mut outcome: Outcome,
    mut attempt: impl FnMut(&[OsString]) -> Result<Outcome>,
) -> Result<Outcome> {
    let deadline = Instant::now() + RETURN_LIMIT;
    let wait = start_command(argv);
    let mut is_waiting = false;
    loop {
        let is_lost = is_lost(&outcome);
        let is_missing = is_waiting && outcome.status.code() == Some(NO_SUCH_UNIT);
        if !(is_lost || is_missing) || Instant::now() >= deadline {
            return Ok(outcome);
        }
        signals::check()?;
        thread::sleep(PAUSE);
        // A transient unit may have been made before the connection ended. A second one of its name is refused.
        is_waiting = wait.is_some() && !is_missing;
        outcome = attempt(wait.as_deref().filter(|_| is_waiting).unwrap_or(argv))?;
    }
}

fn is_lost(outcome: &Outcome) -> bool {
    !outcome.status.success() && LOST.iter().any(|words| outcome.stderr.contains(words))
}

// The command that starts the unit of systemd-run's `argv` if there is one by now, and waits for it as that does.
fn start_command(argv: &[OsString]) -> Option<Vec<OsString>> {
    let options = || {
        argv.iter()
            .take_while(|word| *word != "--")
            .filter_map(|word| word.to_str())
    };
    let unit = options().find_map(|word| word.strip_prefix("--unit="))?;
    let mut command = command::argv(["systemctl", "start"]);
    command.extend(
        options()
            .filter(|word| *word == "--no-block")
            .map(OsString::from),
    );
    command.push(unit.into());
    Some(command)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    const LOST: &str = "Failed to start transient service unit: Connection reset by peer";

    fn ended(code: i32, stderr: &str) -> Outcome {
        Outcome {
            status: ExitStatus::from_raw(code << 8),
            stdout: String::new(),
            stderr: stderr.to_owned(),
        }
    }

    /// Returns the commands of all attempts but the first, and the last status.
    fn settled(argv: &[OsString], outcomes: &[(i32, &str)]) -> (Vec<String>, Option<i32>) {
        let mut outcomes = outcomes.iter().map(|(code, stderr)| ended(*code, stderr));
        let (first, mut asked) = (outcomes.next().unwrap(), Vec::new());
        let attempt = |command: &[OsString]| {
            asked.push(command.join(" ".as_ref()).into_string().unwrap());
            Ok(outcomes.next().unwrap())
        };
        let last = settle(argv, first, attempt).unwrap();
        (asked, last.status.code())
    }

    #[test]
    fn a_lost_call_is_repeated_and_no_other_failure() {
        let stop = command::argv(["systemctl", "stop", "a.service"]);
        assert_eq!(settled(&stop, &[(0, "")]), (vec![], Some(0)));
        let gone = "Failed to stop a.service: Message recipient disconnected from message bus without replying";
        assert_eq!(settled(&stop, &[(1, gone), (0, "")]).1, Some(0));
        assert_eq!(
            settled(&stop, &[(1, "Job for a.service failed")]),
            (vec![], Some(1))
        );
        let twice = vec!["systemctl stop a.service".to_owned(); 2];
        assert_eq!(
            settled(&stop, &[(1, LOST), (1, LOST), (0, "")]),
            (twice, Some(0))
        );
    }

    #[test]
    fn a_unit_that_was_made_is_waited_for_and_another_is_made_where_none_was() {
        let run = command::argv([
            "systemd-run",
            "--no-block",
            "--unit=a.service",
            "--",
            "x",
            "--unit=b",
        ]);
        let (start, again) = (
            "systemctl start --no-block a.service",
            "systemd-run --no-block --unit=a.service -- x --unit=b",
        );
        let asked = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            settled(&run, &[(1, LOST), (0, "")]),
            (asked(&[start]), Some(0))
        );
        assert_eq!(
            settled(&run, &[(1, LOST), (1, "Job failed")]),
            (asked(&[start]), Some(1))
        );
        let all = [(1, LOST), (1, LOST), (5, "not found"), (1, LOST), (0, "")];
        assert_eq!(
            settled(&run, &all),
            (asked(&[start, start, again, start]), Some(0))
        );
    }
}
