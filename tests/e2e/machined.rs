//! A systemd-machined that is missing, restarted, busy or slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nspawn_tests::{BackgroundCommand, Machine, call, image, left_of, sh};

#[test]
fn prepare_fails_clearly_without_machined() {
    let name = "no-machined";
    let _ = sh("systemctl mask --runtime --now systemd-machined.service systemd-machined.socket");
    let done = call("nspawn-prepare", ["--name", name, &image()]);
    sh("systemctl unmask --runtime systemd-machined.service systemd-machined.socket; systemctl start systemd-machined")
        .expect(0);
    done.expect_err("systemd-machined is not running");
    done.expect_error(1, "did not start");
    assert_eq!(left_of(name), "");
}

#[test]
fn cleanup_works_after_restart_of_dbus_or_machined() {
    for restart in [
        "systemctl restart dbus",
        "systemctl kill --signal=KILL systemd-machined",
    ] {
        let machine = Machine::new();
        sh(&format!("{restart}; sleep 0.5")).expect(0);
        call("nspawn-cleanup", [&machine.name]).expect(0);
        assert_eq!(left_of(&machine.name), "");
    }
}

/// Tests that a taken-over machine stays registered while systemd-machined is busy.
///
/// nspawn-prepare unregisters a standby machine and registers it under its new name.
/// systemd-machined forgets the old name only when it is idle.
#[test]
fn busy_machined_keeps_machines_from_standby_registered() {
    let options = ["--init=stub", "--network=none", &image()];
    let pool =
        |count: &'static str| call("nspawn-prepare", [count].iter().chain(&options)).expect(0);
    pool("--standby=3");
    let busy = "for i in 1 2 3 4 5 6; do (while test -d /run/e2e-busy; do machinectl list >/dev/null; done) & done";
    let busy = std::thread::spawn(move || sh(&format!("mkdir /run/e2e-busy; {busy}; wait")));
    let machines: Vec<_> = (0..3).map(|_| call("nspawn-prepare", options)).collect();
    sh("rmdir /run/e2e-busy").expect(0);
    busy.join().unwrap().expect(0);
    for prepared in machines {
        let machine = Machine {
            name: prepared.expect(0).out().trim_end().to_owned(),
        };
        machine.run(["true"]).expect(0);
        call("machinectl", ["show", &machine.name]).expect(0);
    }
    pool("--standby=0");
}

/// Tests that a start is repeated whose registration fails because systemd-machined is killed.
#[test]
fn machine_starts_although_machined_is_killed_meanwhile() {
    for options in [
        &["--init=systemd"][..],
        &["--init=stub"],
        &["--init=stub", "--network=none", "--layer=none"],
        &["--init=stub", "--layer-size=infinity"],
    ] {
        sh("systemctl kill --signal=STOP systemd-machined").expect(0);
        let killer = thread::spawn(|| sh("sleep 1; systemctl kill --signal=KILL systemd-machined"));
        let machine = Machine::with(options);
        killer.join().unwrap().expect(0);
        machine.run(["true"]).expect(0);
    }
}

/// Tests that a machine starts again although systemd-machined has not yet noticed its end.
#[test]
fn machine_starts_again_before_machined_has_noticed_its_end() {
    let machine = Machine::with(&["--init=none"]);
    let unit = format!("nspawn-{}.service", machine.name);
    for _ in 0..5 {
        let running = BackgroundCommand::start(&machine, "echo on; sleep 60");
        sh("systemctl kill --signal=STOP systemd-machined").expect(0);
        sh(&format!("systemctl kill --signal=KILL {unit}")).expect(0);
        running.wait().expect_error(125, "(SIGKILL)");
        let resume =
            std::thread::spawn(|| sh("sleep 0.3; systemctl kill --signal=CONT systemd-machined"));
        let next = machine.run(["true"]);
        resume.join().unwrap().expect(0);
        next.expect(0);
    }
}

/// Tests that a machine starts again although systemd-machined still has its former start.
///
/// systemd-machined forgets a machine that has ended only when it is idle. With so little time it
/// is idle rarely, and a new start fails about once in seven times.
#[test]
fn machine_starts_again_while_machined_is_slow() {
    let machine = Machine::with(&["--init=none", "--network=none"]);
    let slow = SlowMachined::new();
    let runs: Vec<_> = (0..30).map(|_| machine.run(["true"])).collect();
    drop(slow);
    for run in runs {
        run.expect(0);
    }
}

/// A systemd-machined that runs 0.2 ms at a time, until the value is dropped.
struct SlowMachined {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SlowMachined {
    fn new() -> Self {
        let main = sh("systemctl show --property=MainPID --value systemd-machined").out();
        let main = Pid::from_raw(main.trim().parse().unwrap());
        let is_over = Arc::<AtomicBool>::default();
        let end = Arc::clone(&is_over);
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                for (signal, time) in [(Signal::SIGSTOP, 150_000), (Signal::SIGCONT, 200)] {
                    let _ = kill(main, signal);
                    thread::sleep(Duration::from_micros(time));
                }
            }
        });
        Self {
            is_over,
            thread: Some(thread),
        }
    }
}

impl Drop for SlowMachined {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
