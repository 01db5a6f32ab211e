//! The tracer that gives a machine's user namespace its owner is refused, or ends early.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::{LAUNCHER_CGROUP, MachinePaths};
use nspawn_common::machine::processes;
use nspawn_common::sys::cgroup;
use nspawn_tests::{BackgroundCommand, Machine, call, image, left_of, sh};

use crate::suite::{Suite, name};

/// Longest time of an nspawn-prepare whose machine can't start.
const LIMIT: Duration = Duration::from_secs(30);

/// System calls that the machine's unit refuses, and the line that the host's journal gets.
const REFUSALS: [(&str, &str); 3] = [
    (
        "~ptrace",
        "can't trace systemd-nspawn: Operation not permitted",
    ),
    (
        "~ptrace:kill",
        "can't trace systemd-nspawn: the tracer has ended",
    ),
    (
        "~setfsuid",
        "can't change the owner of the machine's user namespace: system call",
    ),
];

pub fn rows(suite: &mut Suite) {
    let tries = suite.times(1, 5);
    for (filter, message) in REFUSALS {
        let row = format!("SystemCallFilter={filter}: the machine uses root's limits");
        suite.row(&row, tries, |_| machine_starts(filter, message));
    }
    suite.row("the container ends while it is traced", tries, |_| {
        let drop_in = DropIn::add("~setfsuid:kill");
        let begin = Instant::now();
        call("nspawn-prepare", ["--name", &drop_in.machine, &image()]).expect(1);
        assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
        assert_eq!(left_of(&drop_in.machine), "");
    });
    suite.row("the tracer is killed", suite.times(3, 30), |_| {
        // A try may come too late, and the machine then works.
        assert!((0..30).any(|_| is_tracer_killed()));
    });
}

/// A restriction of the unit of one machine.
struct DropIn {
    machine: String,
    directory: PathBuf,
}

impl DropIn {
    fn add(filter: &str) -> Self {
        let prefix = name();
        let directory = format!("/run/systemd/system/nspawn-{prefix}-.service.d").into();
        let drop_in = Self {
            machine: format!("{prefix}-x"),
            directory,
        };
        fs::create_dir_all(&drop_in.directory).unwrap();
        let text = format!("[Service]\nSystemCallFilter={filter}\nSystemCallErrorNumber=EPERM\n");
        fs::write(drop_in.directory.join("filter.conf"), text).unwrap();
        sh("systemctl daemon-reload").expect(0);
        drop_in
    }
}

impl Drop for DropIn {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
        sh("systemctl daemon-reload");
    }
}

fn machine_starts(filter: &str, message: &str) {
    let drop_in = DropIn::add(filter);
    let machine = Machine::with(&["--name", &drop_in.machine]);
    machine.run(["true"]).expect(0);
    assert_eq!(machine.namespace_owner(), 0);
    let journal = sh(&format!(
        "journalctl --sync; journalctl --output=cat --unit=nspawn-{}.service",
        machine.name
    ));
    let lines = journal.out();
    let lines: Vec<_> = lines
        .lines()
        .filter(|line| line.contains(message))
        .collect();
    assert_eq!(lines.len(), 1, "{}", journal.describe());
    assert!(lines[0].contains("the machine can use up the namespaces"));
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
}

/// Returns whether nspawn-prepare has failed because its tracer was killed, or was not found.
fn is_tracer_killed() -> bool {
    let name = name();
    let paths = MachinePaths::named(&MachineName::new(&name).unwrap());
    let begin = Instant::now();
    let mut command = Command::new("nspawn-prepare");
    let prepare = BackgroundCommand::spawn_command(command.args(["--name", &name, &image()]));
    let unit = paths.cgroup();
    let is_killed = loop {
        let members =
            [unit.join(LAUNCHER_CGROUP), unit.clone()].map(|path| cgroup::processes(&path));
        if let Some(tracer) = members.into_iter().flatten().find_map(tracer_of) {
            break kill(tracer, Signal::SIGKILL).is_ok();
        }
        if processes::leader(&paths).is_some() || begin.elapsed() > LIMIT {
            break false;
        }
    };
    let code = prepare.wait().code();
    assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
    if code == 0 {
        call("nspawn-run", [&name, "true"]).expect(0);
        call("nspawn-cleanup", [&name]).expect(0);
    }
    assert_eq!(left_of(&name), "");
    is_killed && code == 1
}

fn tracer_of(process: u32) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))?;
    let tracer = tracer.trim().parse().ok().filter(|pid| *pid != 0)?;
    Some(Pid::from_raw(tracer))
}
