//! A job and its services, which share the limits of the runner.

use std::fs;

use nspawn_tests::gitlab_runner::{Attempt, Job, Outcome, Runner};
use nspawn_tests::{image, left_of, sh};
use serde_json::{Value, json};

const SLICES: &str = "/sys/fs/cgroup/machine.slice/machine-ci.slice";

fn slice_of(machine: &str) -> String {
    let name = machine.replace('-', "_");
    format!("{SLICES}/machine-ci-{name}.slice")
}

fn runner() -> Runner {
    Runner::default().prepare_args(&[
        "--init=stub",
        "--network=none",
        "--service-timeout=60s",
        "--property=MemoryMax=300M",
        "--property=TasksMax=200",
    ])
}

fn service(command: &str) -> Value {
    json!({ "name": image(), "alias": "db", "command": ["bash", "-c", command] })
}

/// A server that first runs a command.
fn server(command: &str) -> Value {
    service(&format!(
        "{command}; exec perl -e 'use IO::Socket::INET; \
         $s = IO::Socket::INET->new(LocalPort => 80, Listen => 9) or die; sleep 600'"
    ))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap().trim().to_owned()
}

#[test]
fn limits_of_the_runner_are_on_the_slice() {
    let job = Job::new(&image())
        .variable("NSPAWN_JOB_TASKS_MAX", "150")
        .service_of(server("true"))
        .script(&["cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max"]);
    let (runner, memory) = (runner(), (300 << 20).to_string());
    let attempt = Attempt::prepared(&runner, &job);
    let machine = attempt.machine();
    let slice = slice_of(machine);
    for (file, value) in [
        ("pids.max", "200"),
        ("memory.max", &memory),
        ("memory.swap.max", "0"),
    ] {
        assert_eq!(read(&format!("{slice}/{file}")), value, "{file}");
    }
    let shown = attempt.run_stage("build_script").expect().text();
    assert_eq!(shown, format!("150\n{memory}\n"));
    let show =
        format!("nspawn-run {machine}-1 cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max");
    assert_eq!(sh(&show).expect(0).out(), format!("200\n{memory}\n"));
    attempt.cleanup().expect();
    assert_eq!(left_of(machine), "");
}

/// Each takes less than its own limit, and both together take more than the job's.
#[test]
fn memory_of_the_job_and_its_services_has_one_limit() {
    let neighbour = Job::new(&image()).script(&["sleep 1", "echo unharmed"]);
    let runner = runner();
    let neighbour_attempt = Attempt::prepared(&runner, &neighbour);
    let hold = "head -c 180M /dev/zero >/dev/shm/held";
    let job = Job::new(&image())
        .service_of(server(hold))
        .script(&["head -c 200M /dev/zero | tail | wc -c", "echo not reached"]);
    let report = runner.run(&job);
    assert!(
        matches!(report.outcome, Outcome::ScriptFailure(_)),
        "{}",
        report.describe()
    );
    report.expect_log("which the job and its services share, is reached");
    neighbour_attempt.run_stage("build_script").expect();
    neighbour_attempt.cleanup().expect();
    assert_eq!(left_of(&report.machine), "");
}

#[test]
fn processes_of_the_job_and_its_services_have_one_limit() {
    let fork = "for n in $(seq 120); do sleep 600 & done";
    let job = Job::new(&image())
        .service_of(server(fork))
        .script(&[&format!("{fork}; true")]);
    let runner = runner();
    let attempt = Attempt::prepared(&runner, &job);
    let slice = slice_of(attempt.machine());
    let outcome = attempt.run_stage("build_script");
    assert_ne!(outcome.result, Ok(()), "{}", outcome.describe());
    let count: u64 = read(&format!("{slice}/pids.current")).parse().unwrap();
    assert!(count <= 200, "{count}");
    attempt.cleanup().expect();
    assert_eq!(left_of(attempt.machine()), "");
}

/// The files stay when their writer is killed, so that no later process gets memory.
#[test]
fn files_in_memory_that_use_it_up_fail_the_job() {
    for init in ["--init=stub", "--init=systemd"] {
        let runner = runner().prepare_args(&[init, "--property=MemoryMax=150M"]);
        let fill = "for n in 1 2 3 4 5 6 7 8 9; do head -c 30M /dev/zero >/dev/shm/$n; done; true";
        let job = Job::new(&image()).script(&[fill]).stage(
            "step_two",
            &["head -c 100M /dev/zero | tail | wc -c", "true"],
        );
        let report = runner.run(&job);
        assert!(
            matches!(report.outcome, Outcome::ScriptFailure(_)),
            "{init}: {}",
            report.describe()
        );
        report.expect_log("OOM killer");
        report.expect_log("MemoryMax= of its unit");
        assert_eq!(left_of(&report.machine), "");
    }
}
