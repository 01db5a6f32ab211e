//! Commands that run in the background of a test.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nspawn_common::sys::pidfd::wait_for_exit;

use crate::command;
use crate::command::{Done, call, kill};
use crate::machine::Machine;

/// Time limit for the end of a command, from the moment on which a test waits for it.
const LIMIT: Duration = Duration::from_secs(300);
/// Time limit for the end of a command after SIGTERM, when its test does not wait for it.
const TERMINATION_LIMIT: Duration = Duration::from_secs(20);
/// Line by which a command says that it has started.
const STARTED: &str = "on\n";

/// A command that runs in the background. It is terminated when the value is dropped.
#[must_use]
#[derive(Debug)]
pub struct BackgroundCommand {
    argv: String,
    /// Is `None` once the command has ended.
    child: Option<Child>,
    pid: u32,
    stdout: Option<BufReader<ChildStdout>>,
}

impl BackgroundCommand {
    /// Starts a shell script in a machine, and waits until it writes the line `on`.
    #[track_caller]
    pub fn start(machine: &Machine, script: &str) -> Self {
        Self::start_command(&mut machine.command(["sh", "-c", script]))
    }

    /// Starts a command, and waits until it writes the line `on`.
    #[track_caller]
    pub fn start_command(command: &mut Command) -> Self {
        let mut started = Self::spawn_command(command);
        let mut line = String::new();
        if let Some(stdout) = &mut started.stdout {
            let _ = stdout.read_line(&mut line);
        }
        assert!(
            line == STARTED,
            "the first line is {line:?}: {}",
            started.wait().describe()
        );
        started
    }

    /// Starts a shell script in a machine, and returns at once.
    #[track_caller]
    pub fn spawn(machine: &Machine, script: &str) -> Self {
        Self::spawn_command(&mut machine.command(["sh", "-c", script]))
    }

    /// Starts a command, and returns at once.
    #[track_caller]
    pub fn spawn_command(command: &mut Command) -> Self {
        let (argv, mut child) = command::spawn(command, Stdio::null());
        Self {
            argv,
            pid: child.id(),
            stdout: child.stdout.take().map(BufReader::new),
            child: Some(child),
        }
    }

    /// Returns the process ID of the command.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal to the command.
    #[track_caller]
    pub fn signal(&self, signal: &str) {
        call("kill", [&format!("-{signal}"), &self.pid.to_string()]).expect(0);
    }

    /// Waits until the command ends, and fails the test if it does not within the time limit.
    ///
    /// The stdout of the result holds what the command wrote after the line `on`, if the test
    /// waited for that line.
    #[track_caller]
    pub fn wait(mut self) -> Done {
        self.take_result()
    }

    /// Waits until the command ends, and returns how long this took as well.
    #[track_caller]
    pub fn wait_timed(self) -> (Done, Duration) {
        let started = Instant::now();
        let done = self.wait();
        (done, started.elapsed())
    }

    #[track_caller]
    fn take_result(&mut self) -> Done {
        let Some(mut child) = self.child.take() else {
            panic!("{} has ended already", self.argv);
        };
        let pid = self.raw_pid();
        let watcher = thread::spawn(move || {
            let has_ended = wait_for_exit(pid, LIMIT).unwrap_or(true);
            if !has_ended {
                kill(pid, "KILL");
            }
            has_ended
        });
        let mut stdout = Vec::new();
        if let Some(reader) = self.stdout.take() {
            stdout.extend(reader.buffer());
            child.stdout = Some(reader.into_inner());
        }
        let mut output = child
            .wait_with_output()
            .unwrap_or_else(|error| panic!("{}: {error}", self.argv));
        stdout.append(&mut output.stdout);
        output.stdout = stdout;
        let done = Done::new(self.argv.clone(), output);
        assert!(
            watcher.join().unwrap_or(false),
            "not ended within {LIMIT:?}: {}",
            done.describe()
        );
        done
    }

    fn raw_pid(&self) -> i32 {
        i32::try_from(self.pid).unwrap_or(i32::MAX)
    }
}

impl Drop for BackgroundCommand {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        if matches!(child.try_wait(), Ok(None)) {
            kill(self.raw_pid(), "TERM");
            if !wait_for_exit(self.raw_pid(), TERMINATION_LIMIT).unwrap_or(true) {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn result_holds_all_output_after_the_first_line() {
        let script = "echo on; echo more; seq 100000 >&2; seq 100000; exit 3";
        let done = BackgroundCommand::start_command(&mut shell(script)).wait();
        let numbers: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
        assert_eq!(done.out(), format!("more\n{numbers}"));
        assert_eq!((done.err(), done.code()), (numbers, 3));
    }

    #[test]
    #[should_panic(expected = "the first line is \"off\\n\"")]
    fn command_that_does_not_start_fails_the_test() {
        let _ = BackgroundCommand::start_command(&mut shell("echo off; exit 3"));
    }

    #[test]
    fn dropped_command_is_terminated() {
        let command = BackgroundCommand::start_command(&mut shell("echo on; exec sleep 600"));
        let pid = command.pid();
        drop(command);
        assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap());
    }
}
