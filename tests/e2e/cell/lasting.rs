//! What lasts from run to run, what ends, and that nothing is left.

use std::path::Path;
use std::time::Duration;

use nspawn_tests::{BackgroundCommand, Machine, call, left_of, sh, wait_until};

use super::{Cell, SOON, Sleep, unit_properties};

/// How long a machine without an init runs when those are killed who would end it, and some time more.
const LINGER: Duration = Duration::from_secs(40);

pub fn check(cell: &Cell, machine: &Machine, other: &Machine) {
    files(cell, machine, other);
    background(cell, machine);
    at_once(cell, machine);
    pipeline(machine);
}

fn files(cell: &Cell, machine: &Machine, other: &Machine) {
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
    // A layer of none is for what is temporary, and leaves the system as it is.
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

// It keeps nobody waiting, and goes on until the machine's end.
fn background(cell: &Cell, machine: &Machine) {
    let sleep = Sleep::new();
    let begin = format!(
        "{} & until pgrep -xf '{}'; do sleep 0.01; done",
        sleep.command(),
        sleep.command()
    );
    machine.sh(&begin).expect(0);
    assert_eq!(sleep.is_there(), cell.is_running_between_runs());
    if cell.is_running_between_runs() {
        machine.run(["pkill", "-xf", sleep.command()]).expect(0);
    }
}

// They are in one machine, which lasts for as long as one of them.
fn at_once(cell: &Cell, machine: &Machine) {
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
    first.end().expect(3);
    machine.run(["touch", "/tmp/third"]).expect(0);
    second.end().expect(4);
    let state = unit_properties(machine, "ActiveState");
    assert_eq!(
        state == "ActiveState=active\n",
        cell.is_running_between_runs(),
        "{state}"
    );
}

fn pipeline(machine: &Machine) {
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

/// Kills an nspawn-run that nobody is there to do the work of.
pub fn abandon(cell: &Cell, machine: &Machine) -> Sleep {
    let sleep = Sleep::new();
    if !cell.is_running_between_runs() {
        let running =
            BackgroundCommand::start(machine, &format!("echo on; exec {}", sleep.command()));
        running.signal("KILL");
        drop(running.end());
    }
    sleep
}

/// By now, or before long, the machine has ended by itself; and it is left alone by who tidies up, for its next run.
pub fn check_abandoned(cell: &Cell, machine: Machine, sleep: Sleep) {
    if !cell.is_running_between_runs() {
        assert!(!sleep.is_there());
        let unit = format!(
            "/sys/fs/cgroup/machine.slice/machine-ci.slice/nspawn-{}.service",
            machine.name
        );
        wait_until("its machine has ended", LINGER, || {
            !Path::new(&unit).exists()
        });
    }
    let stale = call("nspawn-cleanup", ["--stale", "--dry-run"]).expect(0);
    assert!(!stale.out().contains(&machine.name), "{}", stale.describe());
    machine.run(["true"]).expect(0);
    // Also where a command runs.
    let running = BackgroundCommand::start(&machine, &format!("echo on; {}", sleep.command()));
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
    running.end().expect_error(125, "");
    assert!(!sleep.is_there());
    machine.run(["true"]).expect_error(125, "no machine");
}

/// A machine that is killed under a command is no success, and only one without an init comes back.
pub fn check_ends(cell: &Cell, machine: &Machine) {
    machine.run(["touch", "/root/before"]).expect(0);
    let sleep = Sleep::new();
    let running = BackgroundCommand::start(machine, &format!("echo on; {}", sleep.command()));
    sh(&format!(
        "systemctl kill --signal=KILL nspawn-{}.service",
        machine.name
    ))
    .expect(0);
    running
        .end()
        .expect_error(125, "(SIGKILL) ended its systemd-nspawn");
    wait_until("all of it has ended", SOON, || !sleep.is_there());
    let next = machine.run(["test", "-e", "/root/before"]);
    if cell.is_running_between_runs() {
        next.expect_error(125, &machine.name);
    } else {
        next.expect(i32::from(!cell.keeps_files()));
    }
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
}
