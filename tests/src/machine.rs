//! Machines that are removed at the end of their test.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::processes;

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

/// Signals by which commands end, with their numbers.
pub const SIGNALS: [(&str, i32); 6] = [
    ("HUP", 1),
    ("INT", 2),
    ("KILL", 9),
    ("SEGV", 11),
    ("PIPE", 13),
    ("TERM", 15),
];

/// Prints the owner of the user namespace of the process in `$ARGV[0]`.
const PRINT_OWNER: &str = r#"
open(my $namespace, "<", "/proc/$ARGV[0]/ns/user") or die;
my $owner = pack("L", 0);
ioctl($namespace, 0xb704, $owner) or die "$!";
print unpack("L", $owner), "\n";
"#;

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

    /// Returns the machine's paths.
    #[track_caller]
    pub fn paths(&self) -> MachinePaths {
        MachinePaths::named(&MachineName::new(&self.name).expect("the name is valid"))
    }

    /// Returns the path by which the host reaches `path` in the mount namespace of the supervisor.
    #[track_caller]
    pub fn path_at_supervisor(&self, path: &Path) -> PathBuf {
        let supervisor = processes::supervisor(&self.paths()).expect("the machine runs");
        format!("/proc/{supervisor}/root{}", path.display()).into()
    }

    /// Returns the owner of the machine's user namespace (NS_GET_OWNER_UID in ioctl_ns(2)).
    #[track_caller]
    pub fn namespace_owner(&self) -> u32 {
        let leader = processes::leader(&self.paths()).expect("the machine runs");
        let done = call("perl", ["-e", PRINT_OWNER, &leader.to_string()]).expect(0);
        done.out().trim().parse().expect("perl prints a number")
    }

    /// Checks that `machinectl shell` runs commands in the machine.
    #[track_caller]
    pub fn check_machinectl_shell(&self) {
        let name = &self.name;
        let shell =
            format!("machinectl --quiet shell {name} /bin/sh -c 'echo shell in $(hostname)'");
        let done = call(
            "script",
            ["--quiet", "--return", "--command", &shell, "/dev/null"],
        )
        .expect(0);
        done.expect_out(&format!("shell in {name}"));
    }

    /// Checks that a command's exit status is one of `codes`, or belongs to one of [`SIGNALS`].
    #[track_caller]
    pub fn check_exit_statuses(&self, codes: &[i32]) {
        for code in codes {
            self.sh(&format!("exit {code}")).expect(*code);
        }
        for (signal, number) in SIGNALS {
            self.sh(&format!("ulimit -c 0; kill -{signal} $$"))
                .expect(128 + number);
        }
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
