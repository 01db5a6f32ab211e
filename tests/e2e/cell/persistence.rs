//! Checks of files and processes between runs, of the machine's end, and of what is left.

use std::path::Path;
use std::time::Duration;

use nspawn_tests::{BackgroundCommand, Machine, call, left_of, sh, wait_until};

use super::{Cell, SOON, Sleep, unit_properties};

/// Time limit for the end of a machine without an init whose nspawn-run was killed.
///
/// Such a machine ends by itself after a while, since nspawn-run can no longer end it.
const LINGER: Duration = Duration::from_secs(40);

pub fn check(cell: &Cell, machine: &Machine, other: &Machine) {
    check_files(cell, machine, other);
    check_background_process(cell, machine);
    check_concurrent_commands(cell, machine);
    check_pipeline(machine);
}

fn check_files(cell: &Cell, machine: &Machine, other: &Machine) {
    machine
        .sh("echo kept >/root/kept; echo kept >/var/kept; rm -f /root/.profile")
        .expect(0);
    let seen = machine.sh("cat /root/kept /var/kept; test -e /root/.profile || echo removed");
    let expected = if cell.keeps_files() {
        "kept\nkept\nremoved\n"
    } else {
        ""
    };
    assert_eq!(seen.out(), expected, "{}", seen.describe());
    // The system is read-only with --layer=none, except directories for temporary files.
    let changes = machine.sh("echo x >/etc/own && echo x >/usr/own");
    assert_eq!(
        changes.code() == 0,
        cell.layer != "none",
        "{}",
        changes.describe()
    );
    let script = "test ! -e /root/kept && test ! -e /etc/own && test -e /root/.profile && ! pgrep -f '^sleep 300[.]'";
    other.sh(script).expect(0);
    let image = Path::new("/var/lib/machines").join(cell.image);
    for path in [
        "root/kept",
        "var/kept",
        "etc/own",
        "usr/own",
        "root/own",
        "root/.gitconfig",
    ] {
        assert!(!image.join(path).exists(), "{path} in the image");
    }
    assert!(image.join("root/.profile").exists());
}

// A background process does not delay the end of its run, and lives as long as the machine.
fn check_background_process(cell: &Cell, machine: &Machine) {
    let sleep = Sleep::new();
    let begin = format!(
        "{} & until pgrep -xf '{}'; do sleep 0.01; done",
        sleep.command(),
        sleep.command()
    );
    machine.sh(&begin).expect(0);
    assert_eq!(sleep.is_running(), cell.is_running_between_runs());
    if cell.is_running_between_runs() {
        machine.run(["pkill", "-xf", sleep.command()]).expect(0);
    }
}

// Concurrent commands share one machine, which runs until the last of them ends.
fn check_concurrent_commands(cell: &Cell, machine: &Machine) {
    let wait = |name: &str| {
        format!("for i in $(seq 400); do test -e /tmp/{name} && break; sleep 0.05; done")
    };
    let first = BackgroundCommand::start(
        machine,
        &format!("echo on; {}; test -e /tmp/second && exit 3", wait("second")),
    );
    let second = BackgroundCommand::start(
        machine,
        &format!("touch /tmp/second; echo on; {}; exit 4", wait("third")),
    );
    first.wait().expect(3);
    machine.run(["touch", "/tmp/third"]).expect(0);
    second.wait().expect(4);
    let state = unit_properties(machine, "ActiveState");
    assert_eq!(
        state == "ActiveState=active\n",
        cell.is_running_between_runs(),
        "{state}"
    );
}

fn check_pipeline(machine: &Machine) {
    let name = &machine.name;
    let unpack = "mkdir /tmp/new && tar -xC /tmp/new && find /tmp/new | wc -l; find /usr/share/perl5 | wc -l";
    let line = format!(
        "nspawn-run {name} tar -cC /usr/share/perl5 . | nspawn-run {name} sh -c '{unpack}'"
    );
    let done = sh(&line).expect(0);
    let counts: Vec<_> = done.out().lines().map(str::to_owned).collect();
    assert!(
        counts.len() == 2 && counts[0] == counts[1] && counts[0] != "0",
        "{}",
        done.describe()
    );
}

/// Kills an nspawn-run whose machine has no other process that would end it.
pub fn kill_run(cell: &Cell, machine: &Machine) -> Sleep {
    let sleep = Sleep::new();
    if !cell.is_running_between_runs() {
        let running =
            BackgroundCommand::start(machine, &format!("echo on; exec {}", sleep.command()));
        running.signal("KILL");
        drop(running.wait());
    }
    sleep
}

/// Checks that the machine of the killed nspawn-run ends by itself, and that it can be removed.
///
/// The machine is not stale, since another run may follow.
pub fn check_killed_run(cell: &Cell, machine: Machine, sleep: Sleep) {
    if !cell.is_running_between_runs() {
        assert!(!sleep.is_running());
        let unit = format!(
            "/sys/fs/cgroup/machine.slice/machine-ci.slice/nspawn-{}.service",
            machine.name
        );
        wait_until("the machine has ended", LINGER, || {
            !Path::new(&unit).exists()
        });
    }
    let stale = call("nspawn-cleanup", ["--stale", "--dry-run"]).expect(0);
    assert!(!stale.out().contains(&machine.name), "{}", stale.describe());
    machine.run(["true"]).expect(0);
    // Cleanup also removes a machine in which a command runs.
    let running = BackgroundCommand::start(&machine, &format!("echo on; {}", sleep.command()));
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
    running.wait().expect_error(125, "");
    assert!(!sleep.is_running());
    machine.run(["true"]).expect_error(125, "no machine");
}

/// Checks that a command fails when its machine is killed.
///
/// Only a machine without an init can run another command afterwards.
pub fn check_killed_machine(cell: &Cell, machine: &Machine) {
    machine.run(["touch", "/root/before"]).expect(0);
    let sleep = Sleep::new();
    let running = BackgroundCommand::start(machine, &format!("echo on; {}", sleep.command()));
    sh(&format!(
        "systemctl kill --signal=KILL nspawn-{}.service",
        machine.name
    ))
    .expect(0);
    running
        .wait()
        .expect_error(125, "(SIGKILL) ended its systemd-nspawn");
    wait_until("the process has ended", SOON, || !sleep.is_running());
    let next = machine.run(["test", "-e", "/root/before"]);
    if cell.is_running_between_runs() {
        next.expect_error(125, &machine.name);
    } else {
        next.expect(i32::from(!cell.keeps_files()));
    }
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
}
