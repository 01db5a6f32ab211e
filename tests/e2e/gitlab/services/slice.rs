//! The slice that a job and its services share, with the limits of the job.

use std::fs;
use std::os::unix::fs::symlink;

use nspawn_tests::gitlab_runner::{Attempt, Job, Runner};
use nspawn_tests::{call, image, keep_stale, left_of, remove_stale, sh};

use super::server;

const SLICES: &str = "/sys/fs/cgroup/machine.slice/machine-ci.slice";
/// Limits that have defaults.
const LIMITS: &str = "TasksMax,MemoryMax,MemorySwapMax";

fn slice_of(machine: &str) -> String {
    format!("machine-ci-{}.slice", machine.replace('-', "_"))
}

fn job_with_services() -> Job {
    Job::new(&image())
        .service_of(server("one", &["80"]))
        .service_of(server("two", &["81"]))
        .script(&["true"])
}

/// Returns properties of a unit of the host.
fn show(unit: &str, properties: &str) -> String {
    let line = format!("systemctl show --property={properties} {unit} | sort | xargs");
    sh(&line).expect(0).out().trim().to_owned()
}

#[test]
fn job_and_services_share_a_slice_with_the_limits_of_the_runner() {
    for init in ["--init=systemd", "--init=stub"] {
        let (runner, job) = (Runner::default(), job_with_services());
        let runner = runner.prepare_args(&[init, "--property=DevicePolicy=closed"]);
        let attempt = Attempt::prepared(&runner, &job);
        let machine = attempt.machine();
        let slice = slice_of(machine);
        let limits = show(&slice, LIMITS);
        assert!(!limits.contains("infinity"), "{limits}");
        for member in ["", "-1", "-2"] {
            let unit = format!("nspawn-{machine}{member}.service");
            assert_eq!(show(&unit, "Slice"), format!("Slice={slice}"));
            assert_eq!(show(&unit, LIMITS), limits);
            assert!(fs::exists(format!("{SLICES}/{slice}/{unit}/payload")).unwrap());
        }
        // The programs of the host are not part of the job.
        for helper in [format!("pasta-{machine}"), format!("command-{machine}-1")] {
            assert_eq!(
                show(&format!("{helper}.service"), "Slice"),
                "Slice=machine-ci.slice"
            );
        }
        attempt.cleanup().expect();
        assert_eq!(left_of(machine), "");
    }
}

#[test]
fn slice_outlives_stages_without_an_init() {
    let (runner, job) = (Runner::default(), job_with_services());
    let runner = runner.prepare_args(&["--init=none"]);
    let attempt = Attempt::prepared(&runner, &job);
    let slice = slice_of(attempt.machine());
    for _ in 0..2 {
        attempt.run_stage("build_script").expect();
        assert_eq!(show(&slice, "ActiveState"), "ActiveState=active");
        assert!(!show(&slice, LIMITS).contains("infinity"));
    }
    attempt.cleanup().expect();
    assert_eq!(left_of(attempt.machine()), "");
}

#[test]
fn job_without_services_has_no_slice() {
    let (runner, job) = (Runner::default(), Job::new(&image()).script(&["true"]));
    let attempt = Attempt::prepared(&runner, &job);
    let machine = attempt.machine();
    assert_eq!(
        show(&format!("nspawn-{machine}.service"), "Slice"),
        "Slice=machine-ci.slice"
    );
    assert!(!fs::exists(format!("{SLICES}/{}", slice_of(machine))).unwrap());
    attempt.cleanup().expect();
}

/// The job's machine may be removed first.
#[test]
fn last_machine_removes_the_slice() {
    let (runner, job) = (
        Runner::default().prepare_args(&["--init=stub"]),
        job_with_services(),
    );
    let attempt = Attempt::prepared(&runner, &job);
    let machine = attempt.machine();
    let slice = format!("{SLICES}/{}", slice_of(machine));
    // A service can't be in use without its job.
    let guard = keep_stale();
    sh(&format!("rm /run/nspawn-ci/{machine}/ready")).expect(0);
    let listed = call("nspawn-cleanup", ["--stale", "--dry-run"])
        .expect(0)
        .out();
    assert!(
        listed.contains(&format!("{machine}: unit, slice, ")),
        "{listed}"
    );
    drop(guard);
    for _ in 0..2 {
        remove_stale();
    }
    assert_eq!(left_of(machine), "");
    assert!(!fs::exists(slice).unwrap());
    attempt.cleanup().expect();
}

#[test]
fn machines_are_found_in_the_slice_without_their_state() {
    let (runner, job) = (
        Runner::default().prepare_args(&["--init=stub"]),
        job_with_services(),
    );
    let attempt = Attempt::prepared(&runner, &job);
    let machine = attempt.machine();
    sh(&format!("rm /run/nspawn-ci/{machine}*/state.json")).expect(0);
    for name in [
        machine.to_owned(),
        format!("{machine}-1"),
        format!("{machine}-2"),
    ] {
        call("nspawn-cleanup", [&name]).expect(0);
    }
    assert_eq!(left_of(machine), "");
    attempt.cleanup().expect();
}

/// systemd can't move a unit that runs to another slice.
#[test]
fn job_with_services_takes_over_no_standby_machine() {
    let name = format!("pooled-{}", std::process::id());
    let link = format!("/var/lib/machines/{name}");
    symlink(image(), &link).unwrap();
    let options = ["--init=stub", &name];
    call("nspawn-prepare", ["--standby=1"].iter().chain(&options)).expect(0);
    let origin = |job: Job| {
        let runner = Runner::default().prepare_args(&["--init=stub"]);
        let attempt = Attempt::prepared(&runner, &job);
        let state = fs::read(format!("/run/nspawn-ci/{}/state.json", attempt.machine())).unwrap();
        attempt.cleanup().expect();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        state["unit"].as_str().unwrap().to_owned()
    };
    let with_service = origin(Job::new(&name).service_of(server("one", &["80"])));
    let without = origin(Job::new(&name));
    call("nspawn-prepare", ["--standby=0"].iter().chain(&options)).expect(0);
    fs::remove_file(link).unwrap();
    assert!(with_service.starts_with("nspawn-gitlab-"), "{with_service}");
    assert!(without.starts_with("nspawn-standby-"), "{without}");
}
