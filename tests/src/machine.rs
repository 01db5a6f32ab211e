//! Machines that are removed at the end of their test.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use crate::command::{Done, call, finish};

/// Returns the name of the test host's image, which is of the host's own Debian release.
pub fn image() -> String {
    assert!(
        fs::exists("/run/systemd/system").unwrap_or(false),
        "this host does not run systemd; run these tests with tests/host"
    );
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.unwrap_or("bookworm").to_owned()
}

/// A machine that is removed when the value is dropped.
#[derive(Debug)]
pub struct Machine {
    /// Name of the machine.
    pub name: String,
}

impl Machine {
    /// Creates a machine from the test host's image.
    #[track_caller]
    #[must_use]
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// Creates a machine from the test host's image, with options of `nspawn-prepare`.
    #[track_caller]
    #[must_use]
    pub fn with(options: &[&str]) -> Self {
        Self::of(&image(), options)
    }

    /// Creates a machine from another image, with options of `nspawn-prepare`.
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

    /// Returns the command line `nspawn-run MACHINE WORDS…`, to which the caller may add.
    pub fn command<Word: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = Word>) -> Command {
        let mut command = Command::new("nspawn-run");
        command.arg(&self.name).args(words);
        command
    }

    /// Runs a command in the machine to its end.
    #[track_caller]
    pub fn run<Word: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = Word>) -> Done {
        finish(&mut self.command(words), b"")
    }

    /// Runs a line of shell in the machine.
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
