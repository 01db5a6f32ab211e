//! Signals to `nspawn-run`, its death, and the end of all processes of the command.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nspawn_common::agent::client;
use nspawn_common::agent::request::{Program, Request};
use nspawn_common::sys::pidfd::wait_for_exit;
use nspawn_tests::{BackgroundCommand, Machine, sh};

use super::{LIVING_SLEEP, NO_SLEEP};

#[test]
fn command_ends_when_nspawn_run_is_killed() {
    let machine = Machine::new();
    for _ in 0..40 {
        let mut command = machine.command(["sh", "-c", "echo on; sleep 300 & sleep 300"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        child
            .stdout
            .take()
            .unwrap()
            .read_exact(&mut [0; 3])
            .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
    machine.sh(NO_SLEEP).expect(0);
}

#[test]
fn command_ends_when_its_client_disconnects_before_the_start() {
    let machine = Machine::new();
    for _ in 0..10 {
        let request = Request {
            program: Program::Command(
                ["sh", "-c", "sleep 300 & sleep 300"]
                    .map(OsString::from)
                    .to_vec(),
            ),
            environment: Vec::new(),
            user: None,
            directory: None,
            terminal: None,
            kill_remaining: false,
            has_unreadable_stdin: false,
            user_manager: false,
        };
        let paths = machine.paths();
        let mut agent = client::connect(&paths, Duration::from_secs(10)).unwrap();
        let streams = [(); 3].map(|()| OwnedFd::from(File::open("/dev/null").unwrap()));
        client::send_request(&mut agent, &request, streams).unwrap();
    }
    machine.sh(NO_SLEEP).expect(0);
}

/// Starts `script` by `nspawn-run` with these options, and waits until it prints `on`.
fn start(options: &[&str], machine: &Machine, script: &str) -> BackgroundCommand {
    let mut command = Command::new("nspawn-run");
    command
        .args(options)
        .args([&*machine.name, "bash", "-c", script]);
    BackgroundCommand::start_command(&mut command)
}

#[test]
fn signal_ends_the_command_and_its_descendants() {
    let machine = Machine::new();
    for (signal, number) in [("TERM", 15), ("INT", 2), ("HUP", 1)] {
        let script = "trap 'echo tidied; exit 3' TERM; setsid sleep 300 & (sleep 300 &) ; kill -STOP $(pgrep -n -x sleep); echo on; wait";
        let running = start(&[], &machine, script);
        let started = Instant::now();
        running.signal(signal);
        let done = running.wait();
        let took = started.elapsed();
        assert_eq!(
            (&*done.out(), done.status.signal()),
            ("tidied\n", Some(number))
        );
        // Less than the grace period.
        assert!(took < Duration::from_secs(9), "took {took:?}");
        machine.sh(LIVING_SLEEP).expect(1);
    }
}

const IGNORES_SIGTERM: &str = "trap '' TERM; sleep 300 & echo on; while :; do wait; done";

#[test]
fn command_that_ignores_sigterm_is_killed_after_the_grace_period() {
    let machine = Machine::new();
    let running = start(&["--stop-timeout=2s"], &machine, IGNORES_SIGTERM);
    let started = Instant::now();
    running.signal("TERM");
    assert_eq!(running.wait().status.signal(), Some(15));
    let took = started.elapsed();
    assert!((2..20).contains(&took.as_secs()), "took {took:?}");
    machine.sh(LIVING_SLEEP).expect(1);
}

#[test]
fn command_that_ignores_sigterm_is_killed_by_a_second_signal() {
    let machine = Machine::new();
    let running = start(&["--stop-timeout=60s"], &machine, IGNORES_SIGTERM);
    let started = Instant::now();
    running.signal("TERM");
    // Signals that are sent together may arrive in either order.
    thread::sleep(Duration::from_millis(500));
    running.signal("INT");
    assert_eq!(running.wait().status.signal(), Some(2));
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "took {took:?}");
    machine.sh(NO_SLEEP).expect(0);
}

/// Tests a command that moves to another cgroup, as `su` does if logind creates a session for it.
#[test]
fn command_in_another_cgroup_is_ended() {
    let machine = Machine::new();
    let away = "mkdir -p /sys/fs/cgroup/away && echo $$ >/sys/fs/cgroup/away/cgroup.procs";
    let script = format!("{away}; sleep 300 & echo on; wait");
    let running = start(&["--stop-timeout=2s"], &machine, &script);
    let started = Instant::now();
    running.signal("TERM");
    assert_eq!(running.wait().status.signal(), Some(15));
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "took {took:?}");
    machine.sh(LIVING_SLEEP).expect(1);
    let script = format!("{away}; setsid sleep 300 & sleep 0.1; echo on; wait");
    let running = start(&[], &machine, &script);
    running.signal("KILL");
    drop(running.wait());
    machine.sh(NO_SLEEP).expect(0);
}

#[test]
fn orphans_are_reaped_while_a_command_runs() {
    let machine = Machine::new();
    let script = "(setsid sh -c 'echo $$ >/tmp/orphan; exit 0' &)
        until test -s /tmp/orphan; do sleep 0.05; done
        for _ in $(seq 100); do test -e /proc/$(cat /tmp/orphan) || exit 0; sleep 0.1; done; exit 1";
    machine.sh(script).expect(0);
}

#[test]
fn signal_arrives_while_output_is_blocked() {
    let machine = Machine::new();
    let mut command = machine.command(["head", "-c", "300000", "/dev/zero"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    assert!(!wait_for_exit(child.id().try_into().unwrap(), Duration::from_millis(700)).unwrap());
    sh(&format!("kill -TERM {}", child.id())).expect(0);
    assert_eq!(child.wait().unwrap().signal(), Some(15));
}

#[test]
fn ignored_signal_does_not_end_the_command() {
    let machine = Machine::new();
    let line = format!(
        "trap '' HUP; nspawn-run {} sh -c 'sleep 1; exit 7' & sleep 0.5; kill -HUP $!; wait $!",
        machine.name
    );
    sh(&line).expect(7);
}
