//! Checks of the machine: users, devices, network, limits and layer size.

use std::fs;
use std::sync::OnceLock;

use nspawn_common::config::private_users::PICKED_SIZE;
use nspawn_tests::{BackgroundCommand, Machine, expect_lines, sh, skip, wait_until};

use super::{Cell, Sleep, is_registered, unit_properties};

pub fn check(cell: &Cell, machine: &Machine, other: &Machine) {
    check_users(machine, other);
    check_devices(machine);
    check_network(machine);
    check_unit_of_running_command(cell, machine);
}

fn check_users(machine: &Machine, other: &Machine) {
    let base = |machine: &Machine| {
        let map = machine.run(["cat", "/proc/self/uid_map"]).expect(0).out();
        let map: Vec<u32> = map
            .split_whitespace()
            .map(|number| number.parse().unwrap())
            .collect();
        assert!(
            map[0] == 0 && map[1] >= PICKED_SIZE && map[2] == PICKED_SIZE,
            "{map:?}"
        );
        map[1]
    };
    assert!(base(machine).abs_diff(base(other)) >= PICKED_SIZE);
}

fn check_devices(machine: &Machine) {
    let script = "ls /dev | grep -E '^(loop|sd|vd|nvme|mem|kmsg|fuse)' && exit 1\n\
        mknod /tmp/disk b 7 0 2>/dev/null && head -c 1 /tmp/disk && exit 2\n\
        head -c 5 /dev/zero | wc -c; : >/dev/null";
    assert_eq!(machine.sh(script).expect(0).out(), "5\n");
}

fn check_network(machine: &Machine) {
    static HOST_RESOLVES: OnceLock<bool> = OnceLock::new();
    // Resolution depends on the network of the host.
    let resolve = "getent hosts deb.debian.org >/dev/null";
    let resolves = *HOST_RESOLVES.get_or_init(|| {
        let resolves = sh(resolve).code() == 0;
        if !resolves {
            skip("the host resolves no name");
        }
        resolves
    });
    let servers = "awk '/^nameserver/ { print $2 }' /etc/resolv.conf";
    let check = if resolves { resolve } else { "true" };
    let seen = machine
        .sh(&format!("{servers}; ls /sys/class/net >&2 && {check}"))
        .expect(0);
    assert_eq!(seen.out(), sh(servers).expect(0).out());
    assert_eq!(
        seen.err()
            .split_whitespace()
            .filter(|link| *link != "lo")
            .count(),
        1,
        "{}",
        seen.describe()
    );
}

// Every cell has the same kind of unit, cgroup and registration while a command runs.
fn check_unit_of_running_command(cell: &Cell, machine: &Machine) {
    let sleep = Sleep::new();
    let running =
        BackgroundCommand::start(machine, &format!("{} & echo on; wait", sleep.command()));
    let names =
        "ActiveState,TimeoutStopUSec,Nice,DevicePolicy,Slice,Delegate,MemoryMax,TasksMax,Id";
    let shown = unit_properties(machine, names);
    expect_lines(
        &shown,
        &[
            "ActiveState=active",
            "TimeoutStopUSec=7s",
            "Nice=3",
            "DevicePolicy=closed",
            "Slice=machine-ci.slice",
            "Delegate=yes",
        ],
    );
    for unlimited in ["MemoryMax=infinity", "TasksMax=infinity"] {
        assert!(!shown.contains(unlimited), "{shown}");
    }
    wait_until("the command sleeps", super::SOON, || sleep.is_running());
    sleep.check_cgroup(machine, "payload");
    // The limits apply to that cgroup, if this kernel has the controllers.
    for file in ["memory.max", "pids.max"] {
        let unit = format!(
            "/sys/fs/cgroup/machine.slice/machine-ci.slice/nspawn-{}.service/{file}",
            machine.name
        );
        assert!(
            fs::read_to_string(&unit).map_or(true, |value| value.trim() != "max"),
            "{unit}"
        );
    }
    assert!(is_registered(machine));
    running.signal("TERM");
    drop(running.wait());
    assert_eq!(is_registered(machine), cell.is_running_between_runs());
}

/// Checks that the layer has the requested size, and that its machine goes on when it is full.
pub fn check_size(cell: &Cell) {
    if cell.layer == "snapshot" {
        return;
    }
    let machine = cell.machine(&["--layer-size=48M"]);
    let places: &[_] = if cell.layer == "none" {
        &["/root", "/tmp", "/builds"]
    } else {
        &["/root"]
    };
    for place in places {
        let script = format!(
            "head -c 60M /dev/zero >{place}/big && exit 9; rm {place}/big && echo more >{place}/small"
        );
        let done = machine.sh(&script).expect(0);
        done.expect_err("No space left");
    }
}
