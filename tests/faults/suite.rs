//! The table, and what all of its rows need.

use std::io::{BufRead, BufReader, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nspawn_common::sys::pidfd::wait_for_exit;
use nspawn_tests::{Machine, image, left_of};

/// No command of a try may take longer.
const LIMIT: Duration = Duration::from_secs(300);

/// The rows so far.
pub struct Suite {
    pub is_long: bool,
    filters: Vec<String>,
    passed: u32,
    failed: u32,
}

impl Suite {
    /// Those whose names contain one of `filters`, or all.
    pub fn new(is_long: bool, filters: Vec<String>) -> Self {
        println!(
            "{:<66} {:>5} {:>5} {:>9}",
            "fault", "tries", "right", "leftovers"
        );
        Self {
            is_long,
            filters,
            passed: 0,
            failed: 0,
        }
    }

    /// How often something is tried.
    pub fn times(&self, usually: u32, long: u32) -> u32 {
        if self.is_long { long } else { usually }
    }

    /// A row: `attempt` panics where something is not right.
    pub fn row(&mut self, fault: &str, tries: u32, mut attempt: impl FnMut(u32)) {
        if !self.filters.is_empty() && !self.filters.iter().any(|filter| fault.contains(&**filter))
        {
            return;
        }
        let right = (0..tries)
            .filter(|number| catch_unwind(AssertUnwindSafe(|| attempt(*number))).is_ok())
            .count();
        let left = left_of(&prefix());
        let leftovers = left.lines().count();
        println!("{fault:<66} {tries:>5} {right:>5} {leftovers:>9}");
        if right == tries as usize && leftovers == 0 {
            self.passed += 1;
        } else {
            self.failed += 1;
            print!("{left}");
        }
    }

    /// The closing line, and what it means.
    pub fn finish(self) -> ExitCode {
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// What the names of all this run's machines begin with.
pub fn prefix() -> String {
    format!("fault-{}", std::process::id())
}

/// A name for a machine.
pub fn name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", prefix(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A machine; it goes with its try.
pub fn machine(options: &[&str]) -> Machine {
    Machine::with(&[&["--name", &*name()], options].concat())
}

/// `nspawn-prepare` for a machine of this name.
pub fn prepare(name: &str) -> Command {
    let mut command = Command::new("nspawn-prepare");
    command.args(["--name", name, &image()]);
    command
}

/// A command in a machine, while it runs.
pub struct Running {
    child: Child,
    pid: u32,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Running {
    /// Starts `script`, which says `on` when it is.
    pub fn start(machine: &Machine, script: &str) -> Self {
        let mut this = Self::begin(machine, script);
        let mut line = String::new();
        this.stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "on\n");
        this
    }

    /// As [`Running::start`], but waits for nothing.
    pub fn begin(machine: &Machine, script: &str) -> Self {
        let mut child = machine
            .command(["sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self {
            pid: child.id(),
            child,
            stdout,
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end: exit status, stderr, and how long that took from now on.
    pub fn end(mut self) -> (Option<i32>, String, Duration) {
        let started = Instant::now();
        let pid = i32::try_from(self.pid).unwrap();
        let watcher = thread::spawn(move || {
            assert!(
                wait_for_exit(pid, LIMIT).unwrap_or(true),
                "nspawn-run does not end"
            );
        });
        let mut stderr = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        let status = self.child.wait().unwrap();
        let took = started.elapsed();
        watcher.join().unwrap();
        (status.code(), stderr, took)
    }
}
