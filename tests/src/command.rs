//! Programs that tests run to their end, and assertions on their results.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nspawn_common::sys::pidfd::wait_for_exit;

/// Time limit for each command of a test. A command that exceeds it is killed.
const LIMIT: Duration = Duration::from_secs(180);

/// A finished command.
#[derive(Debug)]
pub struct Done {
    argv: String,
    /// Exit status of the command.
    pub status: ExitStatus,
    /// Bytes that the command wrote to stdout.
    pub stdout: Vec<u8>,
    /// Bytes that the command wrote to stderr.
    pub stderr: Vec<u8>,
}

impl Done {
    /// Creates the result of a command that was started elsewhere.
    pub fn new(argv: String, output: Output) -> Self {
        Self {
            argv,
            status: output.status,
            stdout: output.stdout,
            stderr: output.stderr,
        }
    }

    /// Returns the exit status, and panics if a signal ended the command.
    #[track_caller]
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| panic!("{}", self.describe()))
    }

    /// Returns stdout as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Returns stderr as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails the test unless the exit status is `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{}", self.describe());
        self
    }

    /// Fails the test unless stderr is a message with `words`, and the exit status is `code`.
    ///
    /// [`expect_message`] describes messages.
    #[track_caller]
    pub fn expect_error(self, code: i32, words: &str) -> Self {
        let done = self.expect(code);
        let err = done.err();
        expect_message(err.lines(), "nspawn-", words, &done.describe());
        assert!(!err.contains("panicked"), "{}", done.describe());
        done
    }

    /// Fails the test unless stdout contains `words`.
    #[track_caller]
    pub fn expect_out(&self, words: &str) {
        expect_words(&self.out(), words, || self.describe());
    }

    /// Fails the test unless stderr contains `words`.
    #[track_caller]
    pub fn expect_err(&self, words: &str) {
        expect_words(&self.err(), words, || self.describe());
    }

    /// Returns the whole result as text, for the message of a failed test.
    pub fn describe(&self) -> String {
        let mut text = format!("{}\n{}", self.argv, self.status);
        for (name, bytes) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let _ = write!(text, "\n--- {name}\n{}", String::from_utf8_lossy(bytes));
        }
        text
    }
}

/// Fails the test unless `lines` are a single line with `words`, which begins with `program`.
///
/// Indented lines may follow, which quote the message of another tool.
#[track_caller]
pub fn expect_message<'a>(
    mut lines: impl Iterator<Item = &'a str>,
    program: &str,
    words: &str,
    description: &str,
) {
    let line = lines.next().unwrap_or_default();
    assert!(
        line.starts_with(program) && line.contains(words),
        "no {words:?} in the error of {description}"
    );
    assert!(
        lines.all(|line| line.starts_with("  ")),
        "more than one line: {description}"
    );
}

/// Fails the test unless `text` contains `words`. `describe` describes the origin of the text.
#[track_caller]
pub(crate) fn expect_words(text: &str, words: &str, describe: impl FnOnce() -> String) {
    assert!(text.contains(words), "no {words:?} in {}", describe());
}

/// Fails the test unless `text` has each of `lines`.
#[track_caller]
pub fn expect_lines(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(
            text.lines().any(|found| found == *line),
            "no {line} in {text}"
        );
    }
}

/// Starts `command` with pipes for its output. Returns its command line as well.
#[track_caller]
pub(crate) fn spawn(command: &mut Command, stdin: Stdio) -> (String, Child) {
    let argv = format!("{command:?}");
    let child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{argv}: {error}"));
    (argv, child)
}

/// Sends a signal to a process, which may have ended.
pub(crate) fn kill(pid: i32, signal: &str) {
    let _ = Command::new("kill")
        .args([&format!("-{signal}"), &pid.to_string()])
        .status();
}

/// Runs `command` to its end, with `stdin` as its input.
#[track_caller]
pub fn finish(command: &mut Command, stdin: &[u8]) -> Done {
    let (argv, mut child) = spawn(command, Stdio::piped());
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    let (mut pipe, input) = (child.stdin.take(), stdin.to_vec());
    let feeder = thread::spawn(move || pipe.as_mut().map(|pipe| pipe.write_all(&input)));
    let watcher = thread::spawn(move || {
        if !wait_for_exit(pid, LIMIT).unwrap_or(true) {
            kill(pid, "KILL");
        }
    });
    let output = child
        .wait_with_output()
        .unwrap_or_else(|error| panic!("{argv}: {error}"));
    drop((feeder.join(), watcher.join()));
    Done::new(argv, output)
}

/// Reads the first line of a process's output, and closes the pipe.
#[track_caller]
pub fn first_line(pipe: Option<impl Read>) -> String {
    let pipe = pipe.expect("the output is a pipe");
    let mut line = String::new();
    BufReader::new(pipe)
        .read_line(&mut line)
        .expect("the pipe can be read");
    line
}

/// Runs a program with arguments and an empty stdin to its end.
#[track_caller]
pub fn call<Word: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = Word>) -> Done {
    finish(Command::new(program).args(arguments), b"")
}

/// Runs a line of shell on the host.
#[track_caller]
pub fn sh(line: &str) -> Done {
    call("sh", ["-c", line])
}

/// Waits until `condition` holds, and fails the test if it does not within `limit`.
#[track_caller]
pub fn wait_until(description: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "not within {limit:?}: {description}"
        );
        thread::sleep(Duration::from_millis(30));
    }
}
