//! Cleanup of machines in any state, and by several processes at once.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use nspawn_tests::{Machine, call, image, left_of, sh, wait_until};

/// Time limit for the journal.
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn cleanup_removes_all_traces_of_a_machine() {
    let name = format!("left-{}", std::process::id());
    let machine = Machine::with(&["--name", &name]);
    assert_eq!(machine.name, name);
    machine.sh("mkdir -p /var/a/b; echo x >/var/a/b/c; sleep 300 & mkdir /tmp/m; mount -t tmpfs none /tmp/m").expect(0);
    assert_ne!(left_of(&name), "");
    assert!(
        !fs::read_to_string("/proc/mounts").unwrap().contains(&name),
        "the machine's mounts are in the host"
    );
    call("nspawn-cleanup", [&name]).expect(0);
    assert_eq!(left_of(&name), "");
    call("nspawn-cleanup", [&name, "never-was"]).expect(0);
    machine.run(["true"]).expect_error(125, "no machine");
}

/// A monitor of the journal must be able to tell a failed machine from a removed one.
#[test]
fn removal_is_no_failure_in_the_journal() {
    for init in ["systemd", "stub", "none"] {
        let machine = Machine::with(&[&format!("--init={init}")]);
        machine.run(["true"]).expect(0);
        let name = machine.name.clone();
        drop(machine);
        let units = ["nspawn", "pasta"].map(|prefix| format!("UNIT={prefix}-{name}.service"));
        let entries = |options: &[&str]| {
            let matches = ["_PID=1", &*units[0], &*units[1]];
            call("journalctl", [options, &matches].concat())
                .expect(0)
                .out()
        };
        wait_until("the journal has the end of the machine", LIMIT, || {
            entries(&[]).contains("Deactivated successfully")
        });
        // systemd 262 warns about each unit on a kernel without the controller of processes.
        let warnings = entries(&["--quiet", "--priority=warning"]);
        let mut warnings = warnings
            .lines()
            .filter(|line| !line.contains(", ignoring: "));
        assert_eq!(warnings.next(), None, "{init}");
    }
}

#[test]
fn frozen_machine_is_removed() {
    let machine = Machine::new();
    sh(&format!("systemctl freeze nspawn-{}.service", machine.name)).expect(0);
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
}

/// The file of the layer is deleted at once. The kernel then discards it in the background.
#[test]
fn large_layer_is_removed_in_the_background() {
    let machine = Machine::with(&["--network=none"]);
    machine.sh("head -c 300M /dev/zero >/var/large").expect(0);
    // A reader of the cleanup's output does not wait for the background work.
    sh(&format!(
        "nspawn-cleanup --verbose {} 2>&1 | cat",
        machine.name
    ))
    .expect(0);
    assert!(!fs::exists(format!("/var/lib/nspawn-ci/machines/{}", machine.name)).unwrap());
    let again = Machine::with(&["--network=none", "--name", &machine.name]);
    again.sh("test ! -e /var/large").expect(0);
    drop(again);
    let is_detached = format!(
        "! losetup --list --noheadings --output=BACK-FILE | grep -F /{}/disk",
        machine.name
    );
    sh(&format!(
        "timeout 30 sh -c 'until {is_detached}; do sleep 0.1; done' >/dev/null"
    ))
    .expect(0);
    assert_eq!(left_of(&machine.name), "");
}

#[test]
fn cleanup_removes_dead_and_half_made_machines() {
    let prefix = format!("half-{}", std::process::id());
    let name = |which: &str| format!("{prefix}-{which}");
    let (dead, killed) = (
        Machine::with(&["--name", &name("dead")]),
        Machine::with(&["--name", &name("killed")]),
    );
    dead.sh("systemctl poweroff --force --force; sleep 60")
        .expect(125);
    sh(&format!(
        "systemctl kill --signal=KILL nspawn-{}.service",
        killed.name
    ))
    .expect(0);
    fs::create_dir_all(format!("/run/nspawn-ci/{}", name("state"))).unwrap();
    fs::write(format!("/run/nspawn-ci/{}/state.json", name("state")), "{").unwrap();
    fs::create_dir_all(format!(
        "/var/lib/nspawn-ci/machines/{}/upper/x",
        name("layer")
    ))
    .unwrap();
    call("nspawn-run", [&name("state"), "true"]).expect_error(125, "state.json (nspawn-cleanup");
    let names = ["dead", "killed", "state", "layer"].map(name);
    call("nspawn-cleanup", &names).expect(0);
    assert_eq!(left_of(&prefix), "");
}

#[test]
fn concurrent_prepares_and_cleanups_of_one_name_succeed() {
    let name = format!("race-{}", std::process::id());
    let rounds = format!(
        "for i in 1 2 3 4; do (for j in 1 2 3; do nspawn-prepare --replace --name {name} {} >/dev/null && nspawn-cleanup {name} || echo bad; done) & done; wait",
        image()
    );
    let done = sh(&rounds).expect(0);
    assert_eq!(done.out(), "", "{}", done.describe());
    assert_eq!(left_of(&name), "");
}

#[test]
fn concurrent_cleanups_of_one_leftover_succeed() {
    let name = format!("fight-{}", std::process::id());
    // mkdir may fail, when a concurrent cleanup removes the directory that it created.
    let fight = format!(
        "for j in $(seq 100); do mkdir /run/nspawn-ci/{name} 2>/dev/null; nspawn-cleanup {name} || exit 1; done"
    );
    let all = format!("for i in 1 2 3 4 5 6 7 8 9 10; do ({fight}) & done; wait");
    assert_eq!(sh(&all).expect(0).err(), "");
    assert_eq!(left_of(&name), "");
}

#[test]
fn interrupted_prepare_leaves_nothing() {
    for (signal, number) in [("TERM", 15), ("INT", 2), ("HUP", 1)] {
        let name = format!("interrupted-{}", std::process::id());
        let hang = "--property=ExecStartPre=/bin/sleep 60";
        let mut child = Command::new("nspawn-prepare")
            .args(["--name", &name, hang, &image()])
            .spawn()
            .unwrap();
        let unit = format!(
            "until systemctl is-active nspawn-{name} | grep -q activating; do sleep 0.02; done"
        );
        call("timeout", ["20", "sh", "-c", &unit]).expect(0);
        sh(&format!("kill -{signal} {}", child.id())).expect(0);
        assert_eq!(child.wait().unwrap().signal(), Some(number));
        assert_eq!(left_of(&name), "");
    }
}
