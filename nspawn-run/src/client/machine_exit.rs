//! The reason why the connection to a machine's agent broke.
//!
//! The reason comes from the host's journal. The machine can't write to it in the name of the
//! host's systemd.

use std::ffi::OsString;
use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nspawn_common::agent::client;
use nspawn_common::command::argv;
use nspawn_common::exit_code;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::sys::clock::Moment;
use serde_json::Value;

/// Time in which systemd usually reports the end of a machine. It is also the time limit for an
/// answer of the agent.
const USUAL_DELAY: Duration = Duration::from_millis(500);
/// Time limit for systemd to report the end of a machine whose agent does not answer. A machine that
/// shuts down in order stops its services first, which takes seconds on a slow host.
const MAX_DELAY: Duration = Duration::from_secs(20);

/// Cause if the machine runs and its agent answers again.
const AGENT_RESTARTED: &str = "its agent ended and was restarted";

/// Message IDs of systemd (`sd-messages.h`, unchanged from version 252 to 262).
const STOPPING: &str = "de5b426a63be47a7b6ac3eaac82e2f6f";
const PROCESS_EXIT: &str = "98e322203f7a4ed290d09fe03c09fe15";
const SUCCEEDED: &str = "7ad2d189f7e94e70a38c781354912448";
const FAILED: &str = "d9b373ed55a64feb8242e02dbe79a49c";

/// Exit status of systemd-nspawn when the machine reboots (systemd-nspawn(1), "Exit status").
const REBOOT_STATUS: &str = "133";

/// Returns what happened to a machine that ran at `since`, as a clause with the machine as "it".
pub fn cause(paths: &MachinePaths, since: Moment) -> String {
    let start = Instant::now();
    let mut journal = UnitJournal::follow(&paths.unit(), since);
    let mut wait_for_end = |limit: Duration| journal.as_mut().ok()?.wait_for_end(start + limit);
    if let Some(end) = wait_for_end(USUAL_DELAY) {
        return end;
    }
    let agent_answers = || client::ping(paths, USUAL_DELAY).is_ok();
    if agent_answers() {
        return AGENT_RESTARTED.to_owned();
    }
    if let Some(end) = wait_for_end(MAX_DELAY) {
        return end;
    }
    let cause = if !paths.cgroup().exists() {
        "it has ended for an unknown reason"
    } else if agent_answers() {
        AGENT_RESTARTED
    } else {
        "it runs, but its agent no longer answers"
    };
    cause.to_owned()
}

/// Follower of systemd's journal entries for a unit.
struct UnitJournal {
    child: Child,
    /// Output of journalctl that is not yet a whole line.
    unread: Vec<u8>,
    exit: UnitExit,
}

impl UnitJournal {
    fn follow(unit: &str, since: Moment) -> Result<Self> {
        let options = argv([
            "--quiet",
            "--follow",
            "--no-tail",
            "--output=json",
            "--output-fields=MESSAGE_ID,EXIT_CODE,EXIT_STATUS,UNIT_RESULT",
            &since.since_option(),
        ]);
        // Only PID 1 of the host has written entries that match.
        let matches = [OsString::from("_PID=1"), format!("UNIT={unit}").into()];
        let child = Command::new("journalctl")
            .args(options)
            .args(matches)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("can't start journalctl")?;
        Ok(Self {
            child,
            unread: Vec::new(),
            exit: UnitExit::default(),
        })
    }

    // Returns the cause of the unit's end if systemd reports the end before `deadline`.
    fn wait_for_end(&mut self, deadline: Instant) -> Option<String> {
        loop {
            while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                let entry = serde_json::from_slice(&line).unwrap_or_default();
                self.exit.record(&entry);
            }
            if let Some(cause) = self.exit.cause() {
                return Some(cause);
            }
            self.read_more(deadline)?;
        }
    }

    // Returns `None` after `deadline`, or if there is no more output.
    fn read_more(&mut self, deadline: Instant) -> Option<()> {
        let stdout = self.child.stdout.as_mut()?;
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).ok()?;
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => return None,
            Ok(0) | Err(Errno::EINTR) => return Some(()),
            Ok(_) => {}
            Err(_) => return None,
        }
        let mut buffer = [0; 8192];
        let count = stdout.read(&mut buffer).ok().filter(|count| *count > 0)?;
        self.unread.extend(&buffer[..count]);
        Some(())
    }
}

impl Drop for UnitJournal {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Facts about the end of a unit that its journal entries have reported so far.
#[derive(Debug, Default)]
struct UnitExit {
    is_stopping: bool,
    /// `EXIT_CODE` and `EXIT_STATUS` of the main process.
    process: Option<(String, String)>,
    /// Result of the unit, empty for success.
    result: Option<String>,
}

impl UnitExit {
    fn record(&mut self, entry: &Value) {
        let field = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        match &*field("MESSAGE_ID") {
            STOPPING => self.is_stopping = true,
            PROCESS_EXIT => self.process = Some((field("EXIT_CODE"), field("EXIT_STATUS"))),
            SUCCEEDED => self.result = Some(String::new()),
            FAILED => self.result = Some(field("UNIT_RESULT")),
            _ => {}
        }
    }

    // Returns `None` as long as the unit has no result.
    fn cause(&self) -> Option<String> {
        let result = self.result.as_deref()?;
        let process = self
            .process
            .as_ref()
            .map(|(code, status)| (code.as_str(), status.as_str()));
        Some(match (result, process) {
            ("oom-kill", _) => "the kernel killed it because its memory was used up".to_owned(),
            _ if self.is_stopping => "its unit was stopped".to_owned(),
            ("timeout", _) => "it reached its time limit".to_owned(),
            ("", None) => "it was shut down".to_owned(),
            (_, Some(("exited", REBOOT_STATUS))) => "it was rebooted".to_owned(),
            (_, Some(("killed" | "dumped", number))) => {
                format!("{} ended its systemd-nspawn", describe_signal(number))
            }
            (_, Some(_)) => "its PID 1 ended".to_owned(),
            (result, None) => format!("its unit failed with result {result:?}"),
        })
    }
}

fn describe_signal(number: &str) -> String {
    number
        .parse()
        .map_or_else(|_| format!("signal {number}"), exit_code::describe_signal)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cause_after(entries: &[Value]) -> Option<String> {
        let mut exit = UnitExit::default();
        entries.iter().for_each(|entry| exit.record(entry));
        exit.cause()
    }

    #[test]
    fn entries_of_a_unit_give_the_cause_of_its_end() {
        let exit = |code: &str, status: &str| json!({"MESSAGE_ID": PROCESS_EXIT, "EXIT_CODE": code, "EXIT_STATUS": status});
        let failed = |result: &str| json!({"MESSAGE_ID": FAILED, "UNIT_RESULT": result});
        let stopping = json!({"MESSAGE_ID": STOPPING});
        let succeeded = json!({"MESSAGE_ID": SUCCEEDED});
        for (entries, expected) in [
            (vec![succeeded.clone()], "it was shut down"),
            (
                vec![exit("exited", "133"), failed("exit-code")],
                "it was rebooted",
            ),
            (
                vec![exit("exited", "1"), failed("exit-code")],
                "its PID 1 ended",
            ),
            (
                vec![exit("killed", "9"), failed("signal")],
                "signal 9 (SIGKILL) ended its systemd-nspawn",
            ),
            (
                vec![exit("killed", "9"), failed("oom-kill")],
                "the kernel killed it because its memory was used up",
            ),
            (
                vec![stopping.clone(), succeeded.clone()],
                "its unit was stopped",
            ),
            (vec![stopping, failed("timeout")], "its unit was stopped"),
            (vec![failed("timeout")], "it reached its time limit"),
        ] {
            assert_eq!(cause_after(&entries).unwrap(), expected);
        }
    }

    #[test]
    fn invalid_entries_are_ignored() {
        let entries = [Value::Null, json!([1]), json!({"MESSAGE_ID": [1, 2]})];
        assert_eq!(cause_after(&entries), None);
    }
}
