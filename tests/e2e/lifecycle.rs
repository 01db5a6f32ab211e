//! Machines while they run: several at a time, systemd's own tools, deaths, restarts of the agent.

use std::fs;
use std::path::Path;
use std::process::Command;

use nspawn_tests::{Machine, call, finish, image, sh};

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
        Command::new("systemd-run").args(["--quiet", "--wait", "--pipe", &option, "cat"]),
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
    machine.check_machinectl_shell();
    let status = call("machinectl", ["status", "--no-pager", name]).expect(0);
    status.expect_out(&format!("Unit: {unit}"));
    assert!(call("machinectl", ["list"]).out().contains(name));
    let status = call("systemctl", ["status", "--no-pager", "--full", &unit]).expect(0);
    status.expect_out("nspawn-agent.service");
    let console = fs::read_to_string(format!("/run/nspawn-ci/{name}/console")).unwrap();
    assert!(console.contains("Welcome to "), "{console}");
    let journal = sh(&format!(
        "journalctl --sync; journalctl --no-pager --unit={unit}"
    ))
    .expect(0);
    journal.expect_out("Started nspawn-");
}

#[test]
fn list_has_each_machine_with_the_path_of_its_image() {
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
fn programs_work_when_the_caller_ignores_sigchld() {
    let line = format!(
        "trap '' CHLD; m=$(nspawn-prepare {}) && nspawn-run $m true && nspawn-cleanup $m",
        image()
    );
    sh(&line).expect(0);
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
        .expect_error(125, "its agent ended");
    let back = format!(
        "until nspawn-run {} true 2>/dev/null; do sleep 0.05; done",
        machine.name
    );
    call("timeout", ["20", "sh", "-c", &back]).expect(0);
}
