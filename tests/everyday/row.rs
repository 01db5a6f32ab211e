//! A row of the table: an everyday thing, the script that does it, and the result in each place.

/// A place where rows run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A machine that the image's systemd has booted.
    Booted,
    /// A machine with the stub init.
    Stub,
    /// A machine without init.
    None,
    /// A container of podman.
    Podman,
}

impl Place {
    /// Returns the word for the place, which exceptions of a row use as well.
    pub fn word(self) -> &'static str {
        match self {
            Self::Booted => "booted",
            Self::Stub => "stub",
            Self::None => "none",
            Self::Podman => "podman",
        }
    }
}

/// The places of rows that need no systemd.
pub const ALL: &[Place] = &[Place::Booted, Place::Stub, Place::None, Place::Podman];

/// The places of rows that need systemd.
pub const BOOTED: &[Place] = &[Place::Booted];

/// The places of rows whose processes or mounts outlive a command.
pub const LASTING: &[Place] = &[Place::Booted, Place::Stub, Place::Podman];

/// A place or a release in which a row fails.
#[derive(Debug)]
pub struct Exception {
    /// The word of a place, the name of a release, or "machine" for all machines.
    pub at: &'static str,
    /// A part of the row's output there, by which the test recognizes the failure.
    pub message: &'static str,
    /// The reason, or nothing if it is podman's default.
    pub reason: &'static str,
}

/// A thing that people do in CI.
#[derive(Debug)]
pub struct Row {
    /// The thing, as users would call it.
    pub name: &'static str,
    script: &'static str,
    expected: Option<&'static str>,
    /// The places in which the row makes sense.
    pub places: &'static [Place],
    /// The option of `nspawn-prepare` that the row needs, or nothing.
    pub option: &'static str,
    /// A command of the host without which the row proves nothing, because the kernel lacks something.
    pub control: Option<&'static str>,
    /// Remark for users beside the results.
    pub remark: &'static str,
    /// The places and releases in which the row fails.
    pub exceptions: Vec<Exception>,
}

/// Returns a row that succeeds in all places if its script ends with 0.
pub fn row(name: &'static str, script: &'static str) -> Row {
    Row {
        name,
        script,
        expected: None,
        places: ALL,
        option: "",
        control: None,
        remark: "",
        exceptions: Vec::new(),
    }
}

impl Row {
    /// Demands this output, without spaces around it.
    pub fn prints(mut self, expected: &'static str) -> Self {
        self.expected = Some(expected);
        self
    }

    /// Limits the row to these places.
    pub fn only(mut self, places: &'static [Place]) -> Self {
        self.places = places;
        self
    }

    /// Gives the machines of the row this option. The row does not run in podman's containers then.
    pub fn with(mut self, option: &'static str) -> Self {
        self.option = option;
        self
    }

    /// Runs the row only if this command succeeds on the host.
    pub fn if_host(mut self, command: &'static str) -> Self {
        self.control = Some(command);
        self.remark("It is tested only where the host's kernel has it.")
    }

    /// Adds a remark for users.
    pub fn remark(mut self, remark: &'static str) -> Self {
        self.remark = remark;
        self
    }

    /// Demands that the row fails in all machines.
    pub fn fails(self, message: &'static str, reason: &'static str) -> Self {
        self.except("machine", message, reason)
    }

    /// Demands that the row fails in podman's containers.
    pub fn podman_fails(self, message: &'static str) -> Self {
        self.except("podman", message, "")
    }

    /// Demands that the row fails in a place or in the machines of a release.
    pub fn except(mut self, at: &'static str, message: &'static str, reason: &'static str) -> Self {
        self.exceptions.push(Exception {
            at,
            message,
            reason,
        });
        self
    }

    /// Returns whether the row makes sense in a place.
    pub fn runs_in(&self, place: Place) -> bool {
        self.places.contains(&place) && (place != Place::Podman || self.option.is_empty())
    }

    /// Returns the failure that is expected in a place of this release.
    pub fn exception(&self, place: Place, release: &str) -> Option<&Exception> {
        self.exceptions.iter().find(|exception| {
            exception.at == place.word()
                || place != Place::Podman && [release, "machine"].contains(&exception.at)
        })
    }

    /// Returns the whole script, which runs in a directory of its own.
    pub fn script(&self) -> String {
        format!("{PRELUDE}{}", self.script)
    }

    /// Compares a result with the expected one. Returns an error that describes the difference.
    pub fn judge(
        &self,
        place: Place,
        release: &str,
        result: &Result,
    ) -> std::result::Result<(), String> {
        let (status, output) = (result.status, result.output.trim());
        let has_passed =
            status == Some(0) && self.expected.is_none_or(|expected| output == expected);
        match self.exception(place, release) {
            None if has_passed => Ok(()),
            None => Err(format!(
                "status {status:?}, expected output {:?}: {output}",
                self.expected
            )),
            Some(_) if has_passed => Err("it works, against the table".to_owned()),
            // A time limit, a missing program or a failure of nspawn-run is not the failure that the row names.
            Some(_) if matches!(status, None | Some(124 | 125 | 127 | 137)) => {
                Err(format!("status {status:?}: {output}"))
            }
            Some(exception) if output.contains(exception.message) => Ok(()),
            Some(exception) => Err(format!("no {:?} in: {output}", exception.message)),
        }
    }
}

/// Result of a script.
pub struct Result {
    /// The exit status.
    pub status: Option<i32>,
    /// stdout and stderr.
    pub output: String,
}

/// The start of each script. `as_ci` runs a command as another user, `wait_for` waits until a command
/// succeeds, and `call` makes a system call and prints its result.
const PRELUDE: &str = r#"exec 2>&1
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
cd "$(mktemp -d)"
chmod 777 .
as_ci() { runuser -u ci -- "$@"; }
wait_for() { for _ in {1..300}; do if "$@" &>/dev/null; then return; fi; sleep 0.1; done; return 1; }
call() { python3 -c '
import ctypes, os, sys
result = ctypes.CDLL(None, use_errno=True).syscall(*map(int, sys.argv[1:]))
print("succeeded" if result >= 0 else os.strerror(ctypes.get_errno()))
sys.exit(result < 0)' "$@"; }
end_linger() { loginctl disable-linger ci; wait_for test ! -e "/run/user/$(id -u ci)"; }
wait_port() { wait_for bash -c ": </dev/tcp/${2-127.0.0.1}/$1"; }
"#;
