//! Why a machine's agent went away: asked of the host's own journal, which the machine can't write to
//! in the name of the host's systemd.

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

/// How long systemd may take to tell of an end that takes its usual course.
const USUAL: Duration = Duration::from_millis(500);
/// How long it may take otherwise: a machine that shuts down in order stops its services first.
const LONGEST: Duration = Duration::from_secs(4);

/// What is said of a machine that runs.
const AGENT_ENDED: &str = "its agent was ended, which the machine has started again";

/// systemd's message IDs (`sd-messages.h`, the same in 252 to 262).
const STOPPING: &str = "de5b426a63be47a7b6ac3eaac82e2f6f";
const PROCESS_EXIT: &str = "98e322203f7a4ed290d09fe03c09fe15";
const SUCCEEDED: &str = "7ad2d189f7e94e70a38c781354912448";
const FAILED: &str = "d9b373ed55a64feb8242e02dbe79a49c";

/// What systemd-nspawn exits with when the machine reboots (systemd-nspawn(1), "Exit status").
const REBOOT: &str = "133";

/// What became of the machine since a time at which it ran, as the end of a sentence about it.
#[must_use]
pub fn cause(paths: &MachinePaths, since: Moment) -> String {
    let asked = Instant::now();
    let mut journal = Journal::follow(&paths.unit(), since);
    let mut end = |limit: Duration| journal.as_mut().ok()?.end(asked + limit);
    if let Some(end) = end(USUAL) {
        return end;
    }
    let agent_is_back = || client::ping(paths, USUAL).is_ok();
    if agent_is_back() {
        return AGENT_ENDED.to_owned();
    }
    end(LONGEST).unwrap_or_else(|| {
        let rest = if !paths.cgroup().exists() {
            "it is gone"
        } else if agent_is_back() {
            AGENT_ENDED
        } else {
            "it does not answer any more, but runs"
        };
        rest.to_owned()
    })
}

/// What systemd says of a unit, as it comes.
struct Journal {
    child: Child,
    unread: Vec<u8>,
    story: Story,
}

impl Journal {
    fn follow(unit: &str, since: Moment) -> Result<Self> {
        let fields = "--output-fields=MESSAGE_ID,EXIT_CODE,EXIT_STATUS,UNIT_RESULT";
        let of_systemd = [OsString::from("_PID=1"), format!("UNIT={unit}").into()];
        let options = argv([
            "--quiet",
            "--follow",
            "--no-tail",
            "--output=json",
            fields,
            &since.since_option(),
        ]);
        let child = Command::new("journalctl")
            .args(options)
            .args(of_systemd)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("can't start journalctl")?;
        Ok(Self {
            child,
            unread: Vec::new(),
            story: Story::default(),
        })
    }

    // The unit's end, if it is told before `deadline`.
    fn end(&mut self, deadline: Instant) -> Option<String> {
        loop {
            while let Some(length) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=length).collect();
                self.story
                    .hear(&serde_json::from_slice(&line).unwrap_or_default());
            }
            if let Some(end) = self.story.end() {
                return Some(end);
            }
            self.read_more(deadline)?;
        }
    }

    fn read_more(&mut self, deadline: Instant) -> Option<()> {
        let stdout = self.child.stdout.as_mut()?;
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).ok()?;
        match poll(
            &mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
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

impl Drop for Journal {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// What was heard of it.
#[derive(Debug, Default)]
struct Story {
    is_stopping: bool,
    /// The main process's `EXIT_CODE` and `EXIT_STATUS`.
    exit: Option<(String, String)>,
    /// Empty for success.
    result: Option<String>,
}

impl Story {
    fn hear(&mut self, entry: &Value) {
        let field = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        match &*field("MESSAGE_ID") {
            STOPPING => self.is_stopping = true,
            PROCESS_EXIT => self.exit = Some((field("EXIT_CODE"), field("EXIT_STATUS"))),
            SUCCEEDED => self.result = Some(String::new()),
            FAILED => self.result = Some(field("UNIT_RESULT")),
            _ => {}
        }
    }

    fn end(&self) -> Option<String> {
        let exit = self
            .exit
            .as_ref()
            .map(|(code, status)| (&**code, &**status));
        Some(match (&**self.result.as_ref()?, exit) {
            ("oom-kill", _) => "the kernel ended it for want of memory".to_owned(),
            _ if self.is_stopping => "its unit was stopped".to_owned(),
            ("timeout", _) => "it has run for as long as it may".to_owned(),
            ("", None) => "it was shut down".to_owned(),
            (_, Some(("exited", REBOOT))) => "it was rebooted".to_owned(),
            (_, Some(("killed" | "dumped", number))) => {
                format!("{} ended its systemd-nspawn", signal(number))
            }
            (_, Some(_)) => "its PID 1 was ended".to_owned(),
            (result, None) => format!("its unit failed with result {result:?}"),
        })
    }
}

fn signal(number: &str) -> String {
    number
        .parse()
        .map_or_else(|_| format!("signal {number}"), exit_code::describe_signal)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(entries: &[Value]) -> Option<String> {
        let mut story = Story::default();
        entries.iter().for_each(|entry| story.hear(entry));
        story.end()
    }

    #[test]
    fn the_ends_of_a_unit() {
        let exit = |code: &str, status: &str| json!({"MESSAGE_ID": PROCESS_EXIT, "EXIT_CODE": code, "EXIT_STATUS": status});
        let failed = |result: &str| json!({"MESSAGE_ID": FAILED, "UNIT_RESULT": result});
        let stopping = json!({"MESSAGE_ID": STOPPING});
        let succeeded = json!({"MESSAGE_ID": SUCCEEDED});
        for (entries, end) in [
            (vec![succeeded.clone()], "it was shut down"),
            (
                vec![exit("exited", "133"), failed("exit-code")],
                "it was rebooted",
            ),
            (
                vec![exit("exited", "1"), failed("exit-code")],
                "its PID 1 was ended",
            ),
            (
                vec![exit("killed", "9"), failed("signal")],
                "signal 9 (SIGKILL) ended its systemd-nspawn",
            ),
            (
                vec![exit("killed", "9"), failed("oom-kill")],
                "the kernel ended it for want of memory",
            ),
            (
                vec![stopping.clone(), succeeded.clone()],
                "its unit was stopped",
            ),
            (vec![stopping, failed("timeout")], "its unit was stopped"),
            (vec![failed("timeout")], "it has run for as long as it may"),
        ] {
            assert_eq!(told(&entries).unwrap(), end);
        }
    }

    #[test]
    fn what_is_no_entry_says_nothing() {
        assert_eq!(
            told(&[Value::Null, json!([1]), json!({"MESSAGE_ID": [1, 2]})]),
            None
        );
    }
}
