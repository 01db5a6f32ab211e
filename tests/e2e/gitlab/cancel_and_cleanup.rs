//! Cancelled jobs, jobs at their time limit, and cleanup.

use std::time::Duration;

use nspawn_tests::gitlab_runner::{
    Attempt, Failure, Interruption, Job, Outcome, Reaction, Report, Runner, When,
};
use nspawn_tests::{image, left_of, sh};

/// Time limit for what happens at once, on a busy host.
const SOON: Duration = Duration::from_secs(5);

/// Script that ignores signals, and whose children ignore them too.
const SLEEPING: &str =
    "#!/bin/bash\ntrap '' TERM HUP INT\nsleep 600 &\necho now\nsleep 600\necho too far\n";
/// Script line that waits until the processes of an earlier stage have ended.
///
/// It prints a line if they have not after ten seconds.
const WAIT_FOR_END: &str = "for i in $(seq 200); do pgrep -x sleep >/dev/null || exit 0; sleep 0.05; done; echo it runs on";

fn sleeping_job() -> Job {
    Job::new(&image()).stage_file("build_script", SLEEPING)
}

fn run(job: &Job) -> Report {
    Runner::default()
        .variable("NSPAWN_STOP_TIMEOUT", "1s")
        .run(job)
}

#[test]
fn canceled_script_can_handle_sigterm() {
    // The trap of bash also holds in a forked child until that executes another program.
    let job = Job::new(&image()).stage_file(
        "build_script",
        "#!/bin/bash\ntrap 'echo tidied; exit 0' TERM\nsh -c 'echo now; exec sleep 600' & wait\necho too far\n",
    );
    let report = Runner::default()
        .run(&job.interrupt_at("now", Reaction::Canceling))
        .expect(&Outcome::Canceled);
    let script = report.stage("build_script");
    assert!(
        !script.killed && script.reaction < SOON,
        "{}",
        report.describe()
    );
    // stdout and stderr are two pipes, so the order of their lines is not fixed.
    let (text, mut lines) = (
        script.text(),
        vec!["nspawn-run: interrupted by SIGTERM", "now", "tidied"],
    );
    lines.retain(|line| !text.lines().any(|there| there == *line));
    assert_eq!(
        (&*lines, text.lines().count(), script.code),
        (&[] as &[&str], 3, Some(82))
    );
}

#[test]
fn canceled_script_ends_at_once_and_its_after_script_runs() {
    let job = sleeping_job()
        .interrupt_at("now", Reaction::Canceling)
        .after_script(&["echo $CI_JOB_STATUS", WAIT_FOR_END]);
    let report = run(&job).expect(&Outcome::Canceled);
    let script = report.stage("build_script");
    assert!(
        !script.killed && script.reaction < SOON,
        "{}",
        report.describe()
    );
    assert_eq!(script.text().lines().next(), Some("now"));
    assert!(!script.text().contains("too far"), "{}", report.describe());
    assert_eq!(report.stage("after_script").text(), "canceled\n");
}

#[test]
fn aborted_job_ends_at_once_and_leaves_nothing() {
    let report = run(&sleeping_job()
        .interrupt_at("now", Reaction::Abort)
        .after_script(&["true"]))
    .expect(&Outcome::Canceled);
    assert!(!report.stage("build_script").killed && report.stage("build_script").reaction < SOON);
    assert_eq!(
        report.stages()[4..],
        ["build_script", "cleanup"],
        "{}",
        report.describe()
    );
}

#[test]
fn job_ends_at_once_at_its_time_limit() {
    let report = run(&sleeping_job().timeout(Duration::from_secs(10))).expect(&Outcome::TimedOut);
    let script = report.stage("build_script");
    assert_eq!(
        script.result,
        Err(Failure::Interrupted(Interruption::TimeOut))
    );
    assert!(
        !script.killed && script.reaction < SOON,
        "{}",
        report.describe()
    );
}

#[test]
fn script_ends_when_its_driver_is_killed() {
    let job = Job::new(&image());
    let stage = format!("step_{}", job.id());
    let driver = format!("^nspawn-run .* {stage}$");
    let job = job
        .stage_file(&stage, SLEEPING)
        .stage("upload_artifacts_on_failure", &[WAIT_FOR_END])
        .at_log("now", move |_| {
            drop(sh(&format!("pkill -KILL -f '{driver}'")).expect(0))
        });
    let report = job.run().expect_system_failure();
    assert_eq!(report.stage(&stage).code, None, "{}", report.describe());
    assert_eq!(report.stage("upload_artifacts_on_failure").text(), "");
}

#[test]
fn cancel_during_prepare_is_not_a_build_failure() {
    let job = Job::new(&image()).script(&["echo too far"]);
    let fifo = format!("/run/e2e-{}", job.id());
    sh(&format!("mkfifo {fifo}")).expect(0);
    let booting = fifo.clone();
    let job = job.at(When::Start("prepare"), move |_| {
        // The FIFO has a writer once the process of the unit runs.
        sh(&format!("timeout 60 cat {booting}")).expect(0);
        Reaction::Abort
    });
    let slow = format!("--property=ExecStartPre=/bin/sh -c 'echo now > {fifo}; exec sleep 60'");
    let report = Runner::default().prepare_args(&[&slow]).run(&job);
    sh(&format!("rm {fifo}")).expect(0);
    let report = report.expect(&Outcome::Canceled);
    assert_eq!(
        report.stages(),
        ["config", "prepare", "cleanup"],
        "{}",
        report.describe()
    );
    let prepare = report.stage("prepare");
    assert!(
        !prepare.killed && prepare.reaction < SOON,
        "{}",
        report.describe()
    );
    assert_eq!(prepare.code, Some(82), "{}", report.describe());
}

#[test]
fn cleanup_ends_a_running_script() {
    let job = Job::new(&image()).script(&[
        "echo now",
        "while :; do dd if=/dev/zero of=big bs=1M count=50 2>/dev/null; done",
    ]);
    let job = job.at_log("now", |moment| {
        let _ = moment.cleanup().expect();
        assert_eq!(left_of(moment.machine()), "");
    });
    let report = job.run().expect_system_failure();
    assert!(
        report.stage("build_script").text().contains("nspawn-run: "),
        "{}",
        report.describe()
    );
}

#[test]
fn cleanup_of_a_dead_machine_succeeds() {
    let (runner, job) = (Runner::default(), Job::new(&image()));
    let attempt = Attempt::prepared(&runner, &job);
    sh(&format!(
        "systemctl kill --signal=KILL nspawn-{}.service",
        attempt.machine()
    ))
    .expect(0);
    let record = attempt.cleanup().expect();
    assert_eq!(record.text(), "");
    assert_eq!(left_of(attempt.machine()), "");
}

#[test]
fn concurrent_cleanups_succeed() {
    let (runner, job) = (Runner::default(), Job::new(&image()));
    let attempt = Attempt::prepared(&runner, &job);
    let line = format!(
        "for i in 1 2 3 4; do nspawn-cleanup {0} & done; wait",
        attempt.machine()
    );
    let done = sh(&line).expect(0);
    assert_eq!(done.err(), "", "{}", done.describe());
    attempt.cleanup().expect();
    assert_eq!(left_of(attempt.machine()), "");
}
