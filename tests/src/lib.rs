//! What the end-to-end tests share: machines that go away by themselves, and commands whose
//! failure shows all there is to see.

pub mod api;
pub mod harness;
mod http;
pub mod sequencer;
pub mod stand_in;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nspawn_common::sys::pidfd::wait_for_exit;

/// No command of a test may take longer.
const LIMIT: Duration = Duration::from_secs(180);

/// A finished command.
#[derive(Debug)]
pub struct Done {
    argv: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its stdout.
    pub stdout: Vec<u8>,
    /// Its stderr.
    pub stderr: Vec<u8>,
}

impl Done {
    /// What a command that was started elsewhere has ended with.
    #[must_use]
    pub fn new(argv: String, output: Output) -> Self {
        Self {
            argv,
            status: output.status,
            stdout: output.stdout,
            stderr: output.stderr,
        }
    }

    /// The exit status; a panic if a signal ended it.
    #[track_caller]
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| panic!("{}", self.describe()))
    }

    /// Its stdout as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its stderr as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails the test unless the exit status is `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{}", self.describe());
        self
    }

    /// Fails the test unless it failed with `code` and one line on stderr that contains `words`;
    /// a tool's own words may stand below it, indented.
    #[track_caller]
    pub fn expect_error(self, code: i32, words: &str) -> Self {
        let done = self.expect(code);
        let err = done.err();
        let (line, below) = err.split_once('\n').unwrap_or((&err, ""));
        assert!(
            line.starts_with("nspawn-") && line.contains(words),
            "no {words:?} in the error of {}",
            done.describe()
        );
        assert!(
            below.lines().all(|line| line.starts_with("  ")),
            "more than one line: {}",
            done.describe()
        );
        assert!(!err.contains("panicked"), "{}", done.describe());
        done
    }

    /// All there is to see.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!("{}\n{}", self.argv, self.status);
        for (name, bytes) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let _ = write!(text, "\n--- {name}\n{}", String::from_utf8_lossy(bytes));
        }
        text
    }
}

/// Runs `command` with `stdin` as its input to its end.
#[track_caller]
pub fn finish(command: &mut Command, stdin: &[u8]) -> Done {
    let argv = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{argv}: {error}"));
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    let (mut to_child, input) = (child.stdin.take(), stdin.to_vec());
    let feeder = std::thread::spawn(move || to_child.as_mut().map(|pipe| pipe.write_all(&input)));
    let watcher = std::thread::spawn(move || {
        if !wait_for_exit(pid, LIMIT).unwrap_or(true) {
            let _ = Command::new("kill")
                .args(["-KILL", &pid.to_string()])
                .status();
        }
    });
    let output = child
        .wait_with_output()
        .unwrap_or_else(|error| panic!("{argv}: {error}"));
    drop((feeder.join(), watcher.join()));
    Done::new(argv, output)
}

/// Runs a program with arguments and an empty stdin to its end.
#[track_caller]
pub fn call<Word: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = Word>) -> Done {
    finish(Command::new(program).args(arguments), b"")
}

/// Runs a line of the host's shell.
#[track_caller]
pub fn sh(line: &str) -> Done {
    call("sh", ["-c", line])
}

/// The image that every test host has: its own release's.
#[must_use]
pub fn image() -> String {
    assert!(
        fs::exists("/run/systemd/system").unwrap_or(false),
        "not a host with systemd; run these tests by tests/host"
    );
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.unwrap_or("bookworm").to_owned()
}

/// A machine, removed at the end of its test.
#[derive(Debug)]
pub struct Machine {
    /// The machine's name.
    pub name: String,
}

impl Machine {
    /// Makes one of the test host's own image.
    #[track_caller]
    #[must_use]
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// The same with these options.
    #[track_caller]
    #[must_use]
    pub fn with(options: &[&str]) -> Self {
        Self::of(&image(), options)
    }

    /// Makes one of another image.
    #[track_caller]
    #[must_use]
    pub fn of(image: &str, options: &[&str]) -> Self {
        let done = call("nspawn-prepare", options.iter().chain(&[image])).expect(0);
        let name = done.out();
        assert_eq!(name.lines().count(), 1, "{}", done.describe());
        Self {
            name: name.trim_end().to_owned(),
        }
    }

    /// `nspawn-run` for this machine, ready to be given options' values, stdin and more.
    #[must_use]
    pub fn command<Word: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = Word>) -> Command {
        let mut command = Command::new("nspawn-run");
        command.arg(&self.name).args(words);
        command
    }

    /// Runs a command in it.
    #[track_caller]
    pub fn run<Word: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = Word>) -> Done {
        finish(&mut self.command(words), b"")
    }

    /// Runs a line of its shell.
    #[track_caller]
    pub fn sh(&self, line: &str) -> Done {
        self.run(["sh", "-c", line])
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Command::new("nspawn-cleanup").arg(&self.name).status();
    }
}

/// What there is of machines on the host whose names begin with `prefix`: units, mounts, loop devices, layers,
/// states, registrations, processes. A test that ends with some has found a leak.
#[must_use]
pub fn left_of(prefix: &str) -> String {
    let line = format!(
        "systemctl list-units --all --plain --no-legend 'nspawn-{prefix}*' 'pasta-{prefix}*'; \
         grep -F '/{prefix}' /proc/mounts; losetup --list --noheadings --output=BACK-FILE | grep -F '/{prefix}'; \
         ls -d /run/nspawn-ci/{prefix}* /var/lib/nspawn-ci/machines/{prefix}* /run/systemd/machines/{prefix}* \
         /sys/fs/cgroup/machine.slice/machine-ci.slice/*-{prefix}* 2>/dev/null; \
         pgrep -a systemd-nspawn | grep -F -e '--machine={prefix}'; true"
    );
    sh(&line).out()
}

/// Fails unless it is so before long.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < deadline, "still not so: {what}");
        thread::sleep(Duration::from_millis(30));
    }
}

/// Has Debian's packages installed on this host.
#[track_caller]
pub fn install(packages: &str) {
    let options =
        "--quiet --yes --no-install-recommends --option Dpkg::Options::=--force-unsafe-io";
    let line = format!(
        "dpkg --status {packages} >/dev/null 2>&1 || \
         {{ apt-get --quiet update && DEBIAN_FRONTEND=noninteractive apt-get install {options} {packages}; }}"
    );
    sh(&line).expect(0);
}

/// Bytes that look random, the same for the same seed (xorshift64*).
#[must_use]
pub fn random(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
    };
    (0..count).map(|_| next()).collect()
}

/// A shell function `flags HEX FILE…` that sets inode flags (`ioctl_iflags(2)`): 10 is immutable, 20
/// append-only. Small images have no chattr.
pub const FLAGS: &str = "flags() { perl -e '$flags = shift; for (@ARGV) { open F, \"<\", $_ or die; \
    ioctl F, 0x40086602, pack(\"L!\", hex $flags) or die \"$_: $!\" }' \"$@\"; }";
