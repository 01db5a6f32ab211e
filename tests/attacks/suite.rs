//! The table of attacks, and the places that attack and are attacked.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use nspawn_tests::harness::{self, Harness, Row};
use nspawn_tests::{Machine, sh};

pub use nspawn_tests::harness::{machine, name, prefix};

use crate::network::Addresses;
use crate::probe::{Place, Probe};

/// Width of the column of attacks.
const NAME_WIDTH: usize = 76;

/// Options of nspawn-prepare for a machine without isolation.
pub const UNCONFINED: [&str; 3] = [
    "--private-users=no",
    "--network=host",
    "--layer-size=infinity",
];

/// Place where an attack gets in. It proves that the attack works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// The host itself.
    Host,
    /// A machine without isolation.
    Unconfined,
    /// A machine with the permission, such as an open network, or the owner of a key.
    Permitted,
    /// No place: this host's kernel lacks the feature, or the test observes the target itself.
    Absent,
}

impl fmt::Display for Control {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Host => "host",
            Self::Unconfined => "unconfined",
            Self::Permitted => "permitted",
            Self::Absent => "-",
        })
    }
}

/// The machines of the suite.
pub struct Fixture {
    /// The attacker, which has the default options.
    pub attacker: Machine,
    /// Another machine with the default options.
    pub neighbour: Machine,
    /// A machine without isolation.
    pub unconfined: Machine,
    /// Addresses of the host, which are older than the machines.
    pub addresses: Addresses,
}

impl Fixture {
    pub fn new() -> Self {
        let addresses = Addresses::add();
        Self {
            addresses,
            attacker: machine(&[]),
            neighbour: machine(&[]),
            unconfined: machine(&UNCONFINED),
        }
    }

    /// Returns the host or the machine of a control that all rows share.
    pub fn place(&self, control: Control) -> Option<Place<'_>> {
        match control {
            Control::Host => Some(Place::Host),
            Control::Unconfined => Some(Place::Machine(&self.unconfined)),
            Control::Permitted | Control::Absent => None,
        }
    }
}

/// The table.
pub struct Suite {
    harness: Harness,
}

impl Suite {
    pub fn new() -> Self {
        let columns = format!("{:>10} {:>6}", "control", "result");
        Self {
            harness: Harness::new(NAME_WIDTH, "attack", &columns),
        }
    }

    /// Runs a row. `attack` panics if it gets in, or if its control does not.
    pub fn row(&mut self, name: &str, attack: impl FnOnce() -> Control) {
        self.harness.run(name, || {
            let control = harness::attempt(attack);
            let result = if control.is_some() { "held" } else { "broken" };
            let place = control.map_or(String::new(), |control| control.to_string());
            Row {
                cells: format!("{place:>10} {result:>6}"),
                below: String::new(),
                has_passed: control.is_some(),
            }
        });
    }

    /// Runs a row of one probe, which must get in at `control`.
    pub fn probe(&mut self, name: &str, control: Control, probe: &Probe, fixture: &Fixture) {
        self.row(name, || {
            let control = probe.prove(control, fixture);
            probe.is_kept_out(&fixture.attacker);
            control
        });
    }

    /// Prints the numbers of rows. Returns the program's status.
    pub fn finish(self) -> ExitCode {
        self.harness.finish("held", "broken")
    }
}

/// A directory of the host with a secret in it, which must not change.
pub struct Outside {
    pub path: PathBuf,
    /// Content of the file `secret` in the directory.
    pub secret: String,
}

impl Outside {
    pub fn new() -> Self {
        let secret = name();
        let path = Path::new("/var/tmp").join(&secret);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("secret"), &secret).unwrap();
        Self { path, secret }
    }

    /// Returns the path of a file in the directory.
    pub fn file(&self, name: &str) -> String {
        self.path.join(name).to_string_lossy().into_owned()
    }

    /// Returns the user id of the owner of a file in the directory.
    pub fn owner_of(&self, name: &str) -> u32 {
        fs::symlink_metadata(self.path.join(name)).unwrap().uid()
    }

    /// Returns everything about the directory that can change.
    pub fn state(&self) -> String {
        let line = "cd \"$0\" && find . -printf '%p %y %U %G %m %s %T@ %C@ %n\\n' && find . -type f -exec sha256sum {} +";
        nspawn_tests::call("sh", ["-c", line, &self.path.to_string_lossy()])
            .expect(0)
            .out()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A process of the host that sleeps until it is dropped.
pub struct Victim(Child);

impl Victim {
    /// Starts a process with `word` in its command line.
    pub fn new(word: &str) -> Self {
        Self(
            Command::new("perl")
                .args(["-e", "sleep 600", word])
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn is_alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
            && sh(&format!(
                "grep -q '^State:.[SR]' /proc/{}/status",
                self.pid()
            ))
            .code()
                == 0
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}
