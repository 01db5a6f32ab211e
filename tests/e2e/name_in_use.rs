//! Names that a machine in use has, and `--replace`.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;

use nspawn_tests::gitlab_runner::{Attempt, Job, Runner};
use nspawn_tests::{Done, Machine, call, finish, image, left_of, sh};

const REFUSAL: &str = "a machine of that name is in use; remove it: nspawn-cleanup";

fn prepare(name: &str, options: &[&str]) -> Done {
    let image = image();
    call(
        "nspawn-prepare",
        [&["--name", name][..], options, &[&image]].concat(),
    )
}

/// Checks that a second machine of the name is refused, and that the first one goes on.
#[track_caller]
fn check_refused(machine: &Machine, options: &[&str]) {
    machine.sh("echo first >/root/mark").expect(0);
    let refused = prepare(&machine.name, options);
    refused.expect_error(1, &format!("{REFUSAL} {}", machine.name));
    machine.sh("grep first /root/mark").expect(0);
}

#[test]
fn machine_in_use_is_replaced_on_request_only() {
    for init in ["--init=systemd", "--init=stub", "--init=none"] {
        let options = [init, "--network=none"];
        let machine = Machine::with(&options);
        check_refused(&machine, &options);
        check_refused(&machine, &["--init=stub", "--keep=failure"]);
        let again = prepare(&machine.name, &[init, "--network=none", "--replace"]).expect(0);
        assert_eq!(again.out(), format!("{}\n", machine.name));
        machine.sh("test ! -e /root/mark").expect(0);
    }
}

#[test]
fn one_of_twelve_gets_a_name() {
    let machine = Machine {
        name: format!("twelve-{}", std::process::id()),
    };
    let options = ["--init=stub", "--network=none"];
    let results: Vec<_> = thread::scope(|scope| {
        let started: Vec<_> = (0..12)
            .map(|_| scope.spawn(|| prepare(&machine.name, &options)))
            .collect();
        started
            .into_iter()
            .map(|prepared| prepared.join().unwrap())
            .collect()
    });
    let (created, refused): (Vec<_>, Vec<_>) = results
        .into_iter()
        .partition(|prepared| prepared.code() == 0);
    assert_eq!(created.len(), 1);
    for prepared in refused {
        let _ = prepared.expect_error(1, REFUSAL);
    }
    machine.run(["true"]).expect(0);
}

#[test]
fn dead_and_incomplete_machines_are_replaced() {
    let machine = Machine::new();
    let check_replaced = || {
        prepare(&machine.name, &[]).expect(0);
        machine.sh("test ! -e /root/mark").expect(0);
    };
    machine.sh("touch /root/mark").expect(0);
    sh(&format!(
        "systemctl kill --signal=KILL nspawn-{}.service",
        machine.name
    ))
    .expect(0);
    check_replaced();
    // The machine of an interrupted nspawn-prepare runs, and is not ready.
    machine.sh("touch /root/mark").expect(0);
    fs::remove_file(machine.paths().ready_mark()).unwrap();
    check_replaced();
}

#[test]
fn machine_without_its_owner_is_replaced() {
    let mut owner = Command::new("sleep").arg("600").spawn().unwrap();
    let option = format!("--owner={}", owner.id());
    let machine = Machine::with(&["--init=stub", &option]);
    check_refused(&machine, &["--init=stub"]);
    owner.kill().unwrap();
    owner.wait().unwrap();
    prepare(&machine.name, &["--init=stub"]).expect(0);
    machine.run(["true"]).expect(0);
}

#[test]
fn kept_machine_is_replaced_unless_it_runs() {
    let name = format!("kept-name-{}", std::process::id());
    let machine = Machine { name: name.clone() };
    let failing = ["--property=ExecStartPre=/bin/false", "--keep=failure"];
    let failed = prepare(&name, &failing).expect(1);
    failed.expect_err("is kept for");
    prepare(&name, &["--init=stub"]).expect(0);
    fs::write(machine.paths().kept_mark(), "boottime 99999999999").unwrap();
    check_refused(&machine, &["--init=stub"]);
}

#[test]
fn prepare_stage_replaces_the_machine_of_its_own_job() {
    let (runner, job) = (Runner::default(), Job::new(&image()).script(&["true"]));
    let attempt = Attempt::prepared(&runner, &job);
    let mark = ["touch", "/root/mark"];
    call("nspawn-run", [&[attempt.machine()], &mark[..]].concat()).expect(0);
    let again = attempt.prepare().expect();
    drop(again);
    let missing = ["test", "!", "-e", "/root/mark"];
    call("nspawn-run", [&[attempt.machine()], &missing[..]].concat()).expect(0);
    drop(attempt.cleanup().expect());
    assert_eq!(left_of(attempt.machine()), "");
}

#[test]
fn queue_goes_on_after_a_refused_name() {
    let machine = Machine::with(&["--init=stub", "--network=none"]);
    let options = ["--init=stub", "--network=none", "--max-machines=1000"];
    prepare(&machine.name, &options).expect_error(1, REFUSAL);
    let mut next = Command::new("nspawn-prepare");
    next.args(options).arg(image()).stdin(Stdio::null());
    let name = finish(&mut next, b"").expect(0).out();
    drop(Machine {
        name: name.trim_end().to_owned(),
    });
}
