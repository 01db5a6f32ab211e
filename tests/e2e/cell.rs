//! Checks that hold for each combination of `--init` and `--layer`.
//!
//! | module | checks |
//! | --- | --- |
//! | [`commands`] | exit statuses, streams, arguments and signals of a command |
//! | [`machine`] | users, devices, network, limits and layer size of the machine |
//! | [`persistence`] | files and processes between runs, and the machine's end |

mod commands;
mod machine;
mod persistence;

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nspawn_tests::{BackgroundCommand, Done, Machine, call, sh, wait_until};

/// Time limit for what happens at once, on a busy host.
const SOON: Duration = Duration::from_secs(20);

/// A cell of the matrix of `--init` and `--layer`, with an image.
#[derive(Clone, Copy, Debug)]
pub struct Cell<'a> {
    pub init: &'static str,
    pub layer: &'static str,
    pub image: &'a str,
}

impl Cell<'_> {
    pub fn options(&self) -> [String; 2] {
        [
            format!("--init={}", self.init),
            format!("--layer={}", self.layer),
        ]
    }

    #[track_caller]
    pub fn prepare(&self, more: &[&str]) -> Done {
        let options = self.options();
        call(
            "nspawn-prepare",
            options
                .iter()
                .map(String::as_str)
                .chain(more.iter().copied())
                .chain([self.image]),
        )
    }

    #[track_caller]
    pub fn machine(&self, more: &[&str]) -> Machine {
        Machine {
            name: self.prepare(more).expect(0).out().trim_end().to_owned(),
        }
    }

    /// Returns whether a machine runs from its prepare to its cleanup.
    pub fn is_running_between_runs(&self) -> bool {
        self.init != "none"
    }

    /// Returns whether a run finds the files that an earlier one has written.
    pub fn keeps_files(&self) -> bool {
        self.is_running_between_runs() || self.layer != "none"
    }

    /// Checks everything that holds in every cell.
    pub fn check(&self) {
        // The killed run starts first, since its machine takes a while to end.
        let machine = self.machine(&[
            "--setenv=FOR_ALL=a $b",
            "-p",
            "TimeoutStopSec=7s",
            "-p",
            "Nice=3",
        ]);
        let other = self.machine(&[]);
        let sleep = persistence::kill_run(self, &other);
        commands::check(&machine);
        machine::check(self, &machine, &other);
        persistence::check(self, &machine, &other);
        machine::check_size(self);
        persistence::check_killed_machine(self, &machine);
        persistence::check_killed_run(self, other, sleep);
    }
}

/// A sleep of a unique duration, by which tests find its process on the host.
pub struct Sleep(String);

impl Sleep {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self(format!(
            "sleep 300.{}{:04}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ))
    }

    pub fn command(&self) -> &str {
        &self.0
    }

    /// Starts a command in a machine of its own, and waits until the command prints `on` and the sleep runs.
    #[track_caller]
    pub fn start_with_image(&self, image: &str, command: &[&str]) -> BackgroundCommand {
        let running = BackgroundCommand::start_command(
            Command::new("nspawn-run")
                .args(["--image", image])
                .args(command),
        );
        wait_until("the command sleeps", Duration::from_secs(5), || {
            self.is_running()
        });
        running
    }

    pub fn process(&self) -> Option<u32> {
        call("pgrep", ["-xf", &self.0])
            .out()
            .lines()
            .next()?
            .parse()
            .ok()
    }

    pub fn is_running(&self) -> bool {
        self.process().is_some()
    }

    /// Returns the cgroup of the process, as the host sees it.
    #[track_caller]
    pub fn cgroup(&self) -> String {
        fs::read_to_string(format!("/proc/{}/cgroup", self.process().unwrap())).unwrap()
    }

    /// Checks that the cgroup of the process is the payload of the machine, or is below it.
    ///
    /// `payload` is the part of the path from the payload on.
    #[track_caller]
    pub fn check_cgroup(&self, machine: &Machine, payload: &str) {
        let cgroup = self.cgroup();
        let expected = format!(
            "/machine-ci.slice/nspawn-{}.service/{payload}",
            machine.name
        );
        assert!(cgroup.contains(&expected), "{cgroup}");
    }

    /// Returns the name of the machine in which the process runs.
    #[track_caller]
    pub fn machine(&self) -> String {
        let cgroup = self.cgroup();
        let unit = cgroup
            .split("/nspawn-")
            .nth(1)
            .and_then(|unit| unit.split(".service").next());
        unit.unwrap().to_owned()
    }
}

/// Returns whether the machine is registered with systemd-machined.
pub fn is_registered(machine: &Machine) -> bool {
    let list = call("machinectl", ["list", "--no-legend"]).expect(0).out();
    list.lines()
        .any(|line| line.split_whitespace().next() == Some(&machine.name))
}

/// Returns properties of the machine's unit.
pub fn unit_properties(machine: &Machine, names: &str) -> String {
    sh(&format!(
        "systemctl show --property={names} nspawn-{}.service",
        machine.name
    ))
    .expect(0)
    .out()
}
