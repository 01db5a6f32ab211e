//! The table, and where attacks are made.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nspawn_tests::{Machine, sh};

use crate::network::Addresses;
use crate::probe::{Place, Probe};

/// The options of a machine without isolation.
pub const BARE: [&str; 3] = [
    "--private-users=no",
    "--network=host",
    "--layer-size=infinity",
];

/// Where an attack gets in, which shows that it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// On the host itself.
    Host,
    /// In a machine without isolation.
    Bare,
    /// In a machine that may: whose network nothing is kept from, who has made the key.
    Open,
    /// Nowhere: this host's kernel has no such thing, or what happens is seen from outside.
    Nowhere,
}

impl fmt::Display for Control {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Host => "host",
            Self::Bare => "bare",
            Self::Open => "open",
            Self::Nowhere => "-",
        })
    }
}

/// Machines that attack and are attacked.
pub struct Field {
    /// A machine as everybody gets it.
    pub machine: Machine,
    /// Another one beside it.
    pub neighbour: Machine,
    /// One without isolation.
    pub bare: Machine,
    /// The host's, which were there before the machines.
    pub addresses: Addresses,
}

impl Field {
    pub fn new() -> Self {
        let addresses = Addresses::add();
        Self {
            addresses,
            machine: machine(&[]),
            neighbour: machine(&[]),
            bare: machine(&BARE),
        }
    }

    /// Where `control` is.
    pub fn place(&self, control: Control) -> Option<Place<'_>> {
        match control {
            Control::Host => Some(Place::Host),
            Control::Bare => Some(Place::Machine(&self.bare)),
            Control::Open | Control::Nowhere => None,
        }
    }
}

/// The rows so far.
pub struct Suite {
    filters: Vec<String>,
    held: u32,
    broken: u32,
}

impl Suite {
    /// Those whose names contain one of `filters`, or all.
    pub fn new(filters: Vec<String>) -> Self {
        println!("{:<76} {:>7} {:>6}", "attack", "control", "result");
        Self {
            filters,
            held: 0,
            broken: 0,
        }
    }

    /// A row: `attack` panics where it got in, or has proved nothing.
    pub fn row(&mut self, name: &str, attack: impl FnOnce() -> Control) {
        if !self.filters.is_empty() && !self.filters.iter().any(|filter| name.contains(&**filter)) {
            return;
        }
        match catch_unwind(AssertUnwindSafe(attack)) {
            Ok(control) => {
                self.held += 1;
                println!("{name:<76} {control:>7} {:>6}", "held");
            }
            Err(_) => {
                self.broken += 1;
                println!("{name:<76} {:>7} {:>6}", "", "broken");
            }
        }
    }

    /// A row of one probe, which must get in at `control`.
    pub fn probe(&mut self, name: &str, control: Control, probe: &Probe, field: &Field) {
        self.row(name, || {
            let control = probe.prove(control, field);
            probe.is_kept_out(&field.machine);
            control
        });
    }

    /// The closing line, and what it means.
    pub fn finish(self) -> ExitCode {
        println!("{} held, {} broken", self.held, self.broken);
        if self.broken == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// What the names of all this run's machines begin with.
pub fn prefix() -> String {
    format!("attack-{}", std::process::id())
}

/// A name that nobody else has.
pub fn name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", prefix(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A machine of its own for one row.
pub fn machine(options: &[&str]) -> Machine {
    Machine::with(&[&["--name", &*name()], options].concat())
}

/// A directory of the host with a secret in it, which nothing may happen to.
pub struct Outside {
    pub path: PathBuf,
    /// What the file `secret` in it holds.
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

    /// The name of something in it.
    pub fn file(&self, name: &str) -> String {
        self.path.join(name).to_string_lossy().into_owned()
    }

    /// Whose a file in it is.
    pub fn owner_of(&self, name: &str) -> u32 {
        fs::symlink_metadata(self.path.join(name)).unwrap().uid()
    }

    /// All that there is to change of it.
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

/// A process of the host that does nothing, until it is dropped.
pub struct Victim(Child);

impl Victim {
    /// One whose command line has `word` in it.
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
