//! Machines and containers of the image, in which rows run.

use std::process::{Command, Stdio};

use nspawn_tests::harness::{machine_of, name};
use nspawn_tests::{Machine, call};

use crate::row::{Place, Result, Row};

/// Time after which a row is killed in its place.
const LIMIT: &str = "180";
/// Time after which the command that runs a row is killed.
const OUTER_LIMIT: &str = "200";

/// A machine or a container that runs rows.
pub enum Runner {
    /// A machine.
    Machine(Machine),
    /// A container of podman, by its name.
    Container(String),
}

impl Runner {
    /// Creates a machine or a container of the image, with an option of `nspawn-prepare`.
    #[track_caller]
    pub fn new(place: Place, image: &str, option: &str) -> Self {
        if place == Place::Podman {
            return Self::new_container(image);
        }
        let init = match place {
            Place::Booted => "--init=systemd",
            Place::Stub => "--init=stub",
            Place::None | Place::Podman => "--init=none",
        };
        let mut options = vec![init];
        options.extend(option.split_whitespace());
        Self::Machine(machine_of(image, &options))
    }

    /// Creates a container with podman's defaults. The kernel of a test host needs the options on
    /// the network and on cgroups.
    fn new_container(image: &str) -> Self {
        let name = name();
        let tree = format!("/var/lib/machines/{image}:O");
        let words = [
            "run",
            "--detach",
            "--network=host",
            "--cgroups=disabled",
            "--name",
            &name,
        ];
        call(
            "podman",
            words
                .iter()
                .chain(&["--rootfs", &tree, "sleep", "infinity"]),
        )
        .expect(0);
        Self::Container(name)
    }

    /// Runs a row's script to its end.
    pub fn run(&self, row: &Row) -> Result {
        let mut words = vec!["--kill-after=5", OUTER_LIMIT];
        match self {
            Self::Machine(machine) => {
                words.extend(["nspawn-run", "--kill-remaining", &machine.name]);
            }
            Self::Container(name) => words.extend(["podman", "exec", name]),
        }
        let script = row.script();
        words.extend(["timeout", "--kill-after=5", LIMIT]);
        words.extend(["bash", "-e", "-o", "pipefail", "-c", &script]);
        let done = Command::new("timeout")
            .args(words)
            .stdin(Stdio::null())
            .output()
            .expect("timeout can be executed");
        let output = [done.stdout, done.stderr].concat();
        Result {
            status: done.status.code(),
            output: String::from_utf8_lossy(&output).into_owned(),
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if let Self::Container(name) = self {
            call("podman", ["rm", "--force", "--time=0", name]);
        }
    }
}
