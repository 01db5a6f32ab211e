//! Machines that are stale, so that `nspawn-cleanup --stale` removes them, and those that are not.

use std::fs;
use std::process::Command;

use nspawn_tests::{Machine, call, finish, image, left_of, remove_stale, sh};

use super::stale;
use crate::cell::{Cell, Sleep};

#[test]
fn only_dead_and_half_made_machines_are_stale() {
    let machine = Machine::new();
    let (half, dead, layer) = (
        Machine::new(),
        Machine::new(),
        format!("stale-layer-{}", std::process::id()),
    );
    // This is the state after a prepare that was killed at its very end.
    fs::remove_file(format!("/run/nspawn-ci/{}/ready", half.name)).unwrap();
    // The machine's network ends after the machine.
    sh(&format!(
        "systemctl kill --signal=KILL nspawn-{0}; timeout 10 sh -c \
         'while [ -e /run/systemd/machines/{0} ] || [ -e /sys/fs/cgroup/machine.slice/machine-ci.slice/pasta-{0}.service ]; \
          do sleep 0.02; done'",
        dead.name
    ))
    .expect(0);
    fs::create_dir_all(format!("/var/lib/nspawn-ci/machines/{layer}/upper")).unwrap();
    let listed = stale();
    for line in [
        format!("{}: unit, network, layer, state", half.name),
        format!("{}: layer, state", dead.name),
        format!("{layer}: layer"),
    ] {
        assert!(listed.contains(&line), "no {line:?} in {listed:?}");
    }
    assert!(
        !listed.iter().any(|line| line.contains(&machine.name)),
        "{listed:?}"
    );
    half.run(["true"]).expect(0);
    // Other processes may do the same at the same time.
    remove_stale();
    for name in [&half.name, &dead.name, &layer] {
        assert_eq!(left_of(name), "");
    }
    machine.run(["true"]).expect(0);
}

#[test]
fn machine_of_another_version_is_not_stale() {
    let machine = Machine::with(&["--init=none"]);
    let state = format!("/run/nspawn-ci/{}/state.json", machine.name);
    let text = fs::read_to_string(&state).unwrap();
    fs::write(&state, text.replace("\"version\":3", "\"version\":99")).unwrap();
    remove_stale();
    machine
        .run(["true"])
        .expect_error(125, "a newer version of these programs created the machine");
    fs::write(&state, text).unwrap();
    machine.run(["true"]).expect(0);
}

#[test]
fn standby_machines_do_not_count_as_machines() {
    let standby = |count: &str| {
        call(
            "nspawn-prepare",
            [count, "--init=stub", "--network=none", &image()],
        )
        .expect(0)
    };
    standby("--standby=1");
    let machine = Machine::with(&["--network=none", "--max-machines=1", "--timeout=20s"]);
    machine.run(["true"]).expect(0);
    standby("--standby=0");
    drop(machine);
    assert_eq!(left_of("standby-"), "");
}

#[test]
fn machine_being_made_is_not_stale() {
    let name = format!("making-{}", std::process::id());
    let mut prepare = Command::new("nspawn-prepare");
    let mut child = prepare
        .args([
            "--name",
            &name,
            "--property=ExecStartPre=/bin/sleep 1",
            &image(),
        ])
        .spawn()
        .unwrap();
    sh(&format!(
        "timeout 10 sh -c 'until [ -e /run/nspawn-ci/{name}/state.json ]; do sleep 0.02; done'"
    ))
    .expect(0);
    remove_stale();
    assert!(child.wait().unwrap().success());
    call("nspawn-run", [&*name, "true"]).expect(0);
    call("nspawn-cleanup", [&name]).expect(0);
}

/// Tests that only the machine of the killed `nspawn-run --image` is stale.
#[test]
fn machines_between_runs_are_not_stale() {
    let image = image();
    let waiting: Vec<_> = ["disk", "tmpfs", "none"]
        .map(|layer| {
            Cell {
                init: "none",
                layer,
                image: &image,
            }
            .machine(&[])
        })
        .into();
    for machine in &waiting {
        machine.run(["touch", "/root/kept"]).expect(0);
    }
    let sleep = Sleep::new();
    let script = format!("echo on; {}", sleep.command());
    let running = sleep.start_with_image(&image, &["sh", "-c", &script]);
    let name = sleep.machine();
    remove_stale();
    assert!(
        sleep.is_running(),
        "the machine of a running command was removed"
    );
    running.signal("KILL");
    drop(running.wait());
    remove_stale();
    assert_eq!(left_of(&name), "");
    for (machine, layer) in waiting.iter().zip(["disk", "tmpfs", "none"]) {
        machine
            .run(["test", "-e", "/root/kept"])
            .expect(i32::from(layer == "none"));
    }
}

#[test]
fn dry_run_of_cleanup_removes_nothing() {
    let machine = Machine::new();
    let mut command = Command::new("nspawn-cleanup");
    let done = finish(command.args(["--dry-run", &machine.name]), b"").expect(0);
    assert_eq!(
        done.out(),
        format!("{}: unit, network, layer, state\n", machine.name)
    );
    machine.run(["true"]).expect(0);
}
