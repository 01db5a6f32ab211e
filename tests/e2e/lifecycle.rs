//! Machines from prepare to cleanup, and how systemd's own tools show them.

use std::fs;
use std::path::Path;

use nspawn_tests::{Machine, call, finish, image, left_of, sh};

#[test]
fn machines_of_one_image_do_not_share_files() {
    let file = format!("/etc/e2e-{}", std::process::id());
    let machines: Vec<Machine> = std::thread::scope(|scope| {
        let makers: Vec<_> = (0..10).map(|_| scope.spawn(Machine::new)).collect();
        makers
            .into_iter()
            .map(|maker| maker.join().unwrap())
            .collect()
    });
    for (number, machine) in machines.iter().enumerate() {
        machine
            .sh(&format!("test ! -e {file} && echo {number} > {file}"))
            .expect(0);
    }
    for (number, machine) in machines.iter().enumerate() {
        assert_eq!(
            machine.run(["cat", &file]).expect(0).out(),
            format!("{number}\n")
        );
    }
    assert!(
        !Path::new("/var/lib/machines")
            .join(image())
            .join(&file[1..])
            .exists()
    );
}

#[test]
fn systemd_tools_work_on_the_machine() {
    let machine = Machine::new();
    let (name, unit) = (&*machine.name, format!("nspawn-{}.service", machine.name));
    let option = format!("--machine={name}");
    let done = finish(
        std::process::Command::new("systemd-run")
            .args(["--quiet", "--wait", "--pipe", &option, "cat"]),
        b"x",
    );
    assert_eq!(done.expect(0).out(), "x");
    call(
        "systemd-run",
        [
            "--quiet", "--wait", "--pipe", &option, "sh", "-c", "exit 42",
        ],
    )
    .expect(42);
    let shell = format!("machinectl --quiet shell {name} /bin/sh -c 'echo shell in $(hostname)'");
    let done = call(
        "script",
        ["--quiet", "--return", "--command", &shell, "/dev/null"],
    )
    .expect(0);
    assert!(
        done.out().contains(&format!("shell in {name}")),
        "{}",
        done.describe()
    );
    let status = call("machinectl", ["status", "--no-pager", name]).expect(0);
    assert!(
        status.out().contains(&format!("Unit: {unit}")),
        "{}",
        status.describe()
    );
    assert!(call("machinectl", ["list"]).out().contains(name));
    let status = call("systemctl", ["status", "--no-pager", "--full", &unit]).expect(0);
    assert!(
        status.out().contains("nspawn-agent.service"),
        "no payload in {}",
        status.describe()
    );
    let journal = sh(&format!(
        "journalctl --sync; journalctl --no-pager --unit={unit}"
    ))
    .expect(0);
    assert!(
        journal.out().contains("Welcome to "),
        "no boot in {}",
        journal.describe()
    );
}

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
    call("nspawn-run", [&name("state"), "true"]).expect_error(125, "state.json can't be used");
    let names = ["dead", "killed", "state", "layer"].map(name);
    call("nspawn-cleanup", &names).expect(0);
    assert_eq!(left_of(&prefix), "");
}

#[test]
fn the_list_has_each_machine_with_the_path_of_its_image() {
    let machine = Machine::with(&["--init=stub"]);
    let broken = format!("broken-{}", std::process::id());
    sh(&format!(
        "mkdir /run/nspawn-ci/{broken} && echo '{{' >/run/nspawn-ci/{broken}/state.json"
    ))
    .expect(0);
    let list = call("nspawn-cleanup", ["--list"]).expect(0).out();
    call("nspawn-cleanup", [&broken]).expect(0);
    let path = fs::canonicalize(format!("/var/lib/machines/{}", image())).unwrap();
    for line in [
        format!("{}\t{}", machine.name, path.display()),
        format!("{broken}\t-"),
    ] {
        assert!(list.lines().any(|found| found == line), "{line}:\n{list}");
    }
    call("nspawn-cleanup", ["--list", &machine.name]).expect(1);
    machine.run(["true"]).expect(0);
}

#[test]
fn prepare_replaces_a_machine_of_the_same_name() {
    let name = format!("again-{}", std::process::id());
    let first = Machine::with(&["--name", &name]);
    first.sh("touch /root/old").expect(0);
    let second = Machine::with(&["--name", &name]);
    second
        .sh("test ! -e /root/old && touch /root/old")
        .expect(0);
    sh(&format!(
        "systemctl kill --signal=KILL nspawn-{name}.service"
    ))
    .expect(0);
    let third = Machine::with(&["--name", &name]);
    third.sh("test ! -e /root/old").expect(0);
}

#[test]
fn concurrent_prepares_and_cleanups_of_one_name_succeed() {
    let name = format!("race-{}", std::process::id());
    let rounds = format!(
        "for i in 1 2 3 4; do (for j in 1 2 3; do nspawn-prepare --name {name} {} >/dev/null && nspawn-cleanup {name} || echo bad; done) & done; wait",
        image()
    );
    let done = sh(&rounds).expect(0);
    assert_eq!(done.out(), "", "{}", done.describe());
    assert_eq!(left_of(&name), "");
}

#[test]
fn concurrent_cleanups_of_one_leftover_succeed() {
    let name = format!("fight-{}", std::process::id());
    // mkdir may fail, when a concurrent cleanup removes the directory that it made.
    let fight = format!(
        "for j in $(seq 100); do mkdir /run/nspawn-ci/{name} 2>/dev/null; nspawn-cleanup {name} || exit 1; done"
    );
    let all = format!("for i in 1 2 3 4 5 6 7 8 9 10; do ({fight}) & done; wait");
    assert_eq!(sh(&all).expect(0).err(), "");
    assert_eq!(left_of(&name), "");
}

#[test]
fn programs_work_when_the_caller_ignores_sigchld() {
    let line = format!(
        "trap '' CHLD; m=$(nspawn-prepare {}) && nspawn-run $m true && nspawn-cleanup $m",
        image()
    );
    sh(&line).expect(0);
}

#[test]
fn dry_run_prints_commands_that_work() {
    let name = format!("dry-{}", std::process::id());
    let printed = call(
        "nspawn-prepare",
        ["--dry-run", "--name", &name, "--setenv=A=b c", &image()],
    )
    .expect(0)
    .out();
    assert_eq!(left_of(&name), "");
    sh(&printed).expect(0);
    let done = call("nspawn-run", [&name, "printenv", "A"]);
    call("nspawn-cleanup", [&name]).expect(0);
    assert_eq!(done.expect(0).out(), "b c\n");
}

#[test]
fn json_option_prints_a_json_description() {
    let name = format!("json-{}", std::process::id());
    let done = call("nspawn-prepare", ["--json", "--name", &name, &image()]).expect(0);
    let value: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    call("nspawn-cleanup", [&name]).expect(0);
    assert_eq!(
        (value["name"].as_str(), value["image"].as_str()),
        (Some(&*name), Some(&*image()))
    );
}

#[test]
fn binds_and_properties_are_applied() {
    let dir = std::env::temp_dir().join(format!("e2e bind: $HOME %n {}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("file"), "from the host\n").unwrap();
    let bind = format!(
        "--bind={}:/mnt/rw",
        dir.display().to_string().replace(':', "\\:")
    );
    let mut command = std::process::Command::new("nspawn-prepare");
    // The source of the second bind is relative to the working directory.
    let options = [
        &*bind,
        "--bind-ro=.:/mnt/ro",
        "--property=TimeoutStopSec=7s",
        "-p",
        "Nice=3",
        &image(),
    ];
    let done = finish(command.args(options).current_dir(&dir), b"").expect(0);
    let machine = Machine {
        name: done.out().trim_end().to_owned(),
    };
    machine
        .sh("cat /mnt/ro/file && echo back >/mnt/rw/back && ! touch /mnt/ro/x")
        .expect(0);
    assert_eq!(fs::read_to_string(dir.join("back")).unwrap(), "back\n");
    fs::remove_dir_all(&dir).unwrap();
    let unit = format!("nspawn-{}.service", machine.name);
    let shown = call(
        "systemctl",
        [
            "show",
            "--property=TimeoutStopUSec,Nice,DevicePolicy,Slice",
            &unit,
        ],
    )
    .expect(0)
    .out();
    for line in [
        "TimeoutStopUSec=7s",
        "Nice=3",
        "DevicePolicy=closed",
        "Slice=machine-ci.slice",
    ] {
        assert!(
            shown.lines().any(|shown| shown == line),
            "no {line} in {shown}"
        );
    }
    // The payload is in the unit's cgroup, where these properties apply.
    let leader = call(
        "machinectl",
        ["show", "--property=Leader", "--value", &machine.name],
    )
    .expect(0)
    .out();
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", leader.trim())).unwrap();
    assert!(
        cgroup.contains(&format!("machine-ci.slice/{unit}/")),
        "{cgroup}"
    );
}

#[test]
fn options_are_read_from_the_environment() {
    let mut command = std::process::Command::new("nspawn-prepare");
    command
        .env("NSPAWN_IMAGE", image())
        .env("NSPAWN_SETENV", "A='1 2' B=3")
        .env("NSPAWN_JSON", "no")
        .args(["-E", "B=4"]);
    let name = finish(&mut command, b"").expect(0).out();
    let machine = Machine {
        name: name.trim_end().to_owned(),
    };
    assert_eq!(machine.sh("echo $A-$B").expect(0).out(), "1 2-4\n");
    finish(
        std::process::Command::new("nspawn-prepare").env("NSPAWN_JSON", "maybe"),
        b"",
    )
    .expect_error(1, "'maybe' for '--json");
}

#[test]
fn interrupted_prepare_leaves_nothing() {
    use std::os::unix::process::ExitStatusExt;
    for (signal, number) in [("TERM", 15), ("INT", 2), ("HUP", 1)] {
        let name = format!("interrupted-{}", std::process::id());
        let hang = "--property=ExecStartPre=/bin/sleep 60";
        let mut child = std::process::Command::new("nspawn-prepare")
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

#[test]
fn cause_of_death_is_not_that_of_an_earlier_machine() {
    let name = format!("causes-{}", std::process::id());
    for (line, cause) in [
        ("machinectl poweroff NAME", "it was shut down"),
        ("systemctl stop nspawn-NAME", "its unit was stopped"),
        ("nspawn-run NAME systemctl reboot", "it was rebooted"),
        ("machinectl poweroff NAME", "it was shut down"),
    ] {
        let machine = Machine::with(&["--name", &name]);
        let killer = format!(
            "(sleep 0.3; {}) >/dev/null 2>&1 &",
            line.replace("NAME", &name)
        );
        sh(&killer).expect(0);
        machine.run(["sleep", "60"]).expect_error(125, cause);
    }
}

#[test]
fn killed_agent_is_restarted() {
    let machine = Machine::new();
    machine
        .sh("kill -KILL $(cat /sys/fs/cgroup/system.slice/nspawn-agent.service/agent/cgroup.procs)")
        .expect_error(125, "its agent was ended");
    let back = format!(
        "until nspawn-run {} true 2>/dev/null; do sleep 0.05; done",
        machine.name
    );
    call("timeout", ["20", "sh", "-c", &back]).expect(0);
}

/// A kernel enforces limits only with their cgroup controllers, which a test host may lack.
#[test]
fn limit_that_is_not_enforced_is_an_error() {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap();
    for (limit, controller) in [
        ("MemoryMax=700M", "memory"),
        ("TasksMax=900", "pids"),
        ("CPUQuota=50%", "cpu"),
    ] {
        let done = call("nspawn-prepare", ["-p", limit, &image()]);
        if controllers.split_whitespace().any(|one| one == controller) {
            call("nspawn-cleanup", [done.expect(0).out().trim()]).expect(0);
        } else {
            let error = done.expect(1).err();
            assert!(
                error.contains(&format!("its limit {limit} did not take")),
                "{error}"
            );
        }
    }
    drop(Machine::with(&[
        "-p",
        "MemoryMax=infinity",
        "-p",
        "TasksMax=infinity",
    ]));
}
