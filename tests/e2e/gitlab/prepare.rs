//! Preparation of jobs: images, retries, and remains of earlier attempts.

use nspawn_tests::gitlab_runner::{Attempt, Job, Outcome, Runner};
use nspawn_tests::{image, left_of, sh};

#[test]
fn unknown_image_is_a_script_failure_and_the_log_lists_images() {
    for unknown in [
        "no-such-image",
        "registry.example:5000/group/tool:1.2",
        "../../etc",
        ".",
        "a\nb",
        " ",
    ] {
        let report = Job::new(unknown)
            .script(&["echo too far"])
            .run()
            .expect(&Outcome::ScriptFailure(1));
        assert_eq!(
            report.stages(),
            ["config", "prepare", "cleanup"],
            "{}",
            report.describe()
        );
        let prepared = report.stage("prepare").text();
        assert_eq!(prepared.lines().count(), 1, "{}", report.describe());
        assert!(
            prepared.starts_with("nspawn-prepare: ") && prepared.contains(&image()),
            "{prepared}"
        );
    }
}

#[test]
fn missing_image_is_a_script_failure_without_a_default() {
    let job = || Job::without_image().script(&["echo here"]);
    let report = job().run().expect(&Outcome::ScriptFailure(1));
    assert_eq!(
        report.stages(),
        ["config", "prepare", "cleanup"],
        "{}",
        report.describe()
    );
    report.expect_log("image");
    let default = Runner::default().prepare_args(&["--default-image", &image()]);
    let _ = default.run(&job()).expect(&Outcome::Success);
    let _ = Runner::default()
        .variable("NSPAWN_DEFAULT_IMAGE", &image())
        .run(&job())
        .expect(&Outcome::Success);
    // A default image does not replace an unknown image.
    let _ = default
        .run(&Job::new("no-such-image"))
        .expect(&Outcome::ScriptFailure(1));
}

#[test]
fn docker_names_of_images_are_understood() {
    let image = image();
    for name in [
        format!("debian:{image}"),
        format!("registry.example:5000/x/debian:{image}"),
        format!("registry.example/x/{image}:latest"),
        format!("{image}@sha256:{}", "0".repeat(64)),
    ] {
        let report = Job::new(&name)
            .script(&[". /etc/os-release", "echo $VERSION_CODENAME"])
            .run();
        assert_eq!(
            report
                .expect(&Outcome::Success)
                .stage("build_script")
                .text(),
            format!("{image}\n"),
            "{name}"
        );
    }
}

#[test]
fn image_option_overrides_the_image_of_the_job() {
    let fixed = Runner::default().prepare_args(&["--image", &image()]);
    let _ = fixed
        .run(&Job::new("no-such-image").script(&["true"]))
        .expect(&Outcome::Success);
}

#[test]
fn failing_boot_is_a_system_failure_and_retried() {
    let thrice = [["config", "prepare", "cleanup"]; 3].concat();
    for runner in [
        Runner::default().variable("NSPAWN_PROPERTY", "ExecStartPre=/bin/false"),
        Runner::default().prepare_args(&["--property=ExecStartPre=/bin/sleep 60", "--timeout=1s"]),
    ] {
        let report = runner
            .run(&Job::new(&image()).script(&["echo too far"]))
            .expect_system_failure();
        assert_eq!(report.stages(), thrice, "{}", report.describe());
        let prepared = report.stage("prepare").text();
        assert!(
            prepared.starts_with("nspawn-prepare: ") && prepared.contains("did not start"),
            "{prepared}"
        );
    }
}

#[test]
fn invalid_options_are_a_system_failure() {
    for runner in [
        Runner::default().prepare_args(&["--property=NoSuchProperty=1"]),
        Runner::default().prepare_args(&["--no-such-option"]),
        Runner::default().variable("NSPAWN_TIMEOUT", "soon"),
    ] {
        let report = runner
            .run(&Job::new(&image()).script(&["echo too far"]))
            .expect_system_failure();
        report.expect_log("nspawn-prepare: ");
    }
}

#[test]
fn second_attempt_can_succeed() {
    let job = Job::new(&image()).script(&["true"]);
    let mark = format!("/run/e2e-{}", job.id());
    let once = format!(
        "--property=ExecStartPre=/bin/sh -c 'test -e {mark} || {{ touch {mark}; exit 1; }}'"
    );
    let report = Runner::default().prepare_args(&[&once]).run(&job);
    sh(&format!("rm -f {mark}")).expect(0);
    let report = report.expect(&Outcome::Success);
    let tried = [
        "config",
        "prepare",
        "cleanup",
        "config",
        "prepare",
        "prepare_script",
    ];
    assert_eq!(report.stages()[..6], tried, "{}", report.describe());
}

#[test]
fn machine_left_by_a_killed_runner_is_replaced() {
    let (runner, job) = (
        Runner::default(),
        Job::new(&image()).script(&["test ! -e /root/old", "touch /root/old"]),
    );
    let killed = Attempt::prepared(&runner, &job);
    killed.run_stage("build_script").expect();
    let report = runner.run(&job).expect(&Outcome::Success);
    assert_eq!(
        report.stages()[..3],
        ["config", "prepare", "prepare_script"],
        "{}",
        report.describe()
    );
    killed.cleanup().expect();
}

#[test]
fn prepare_and_cleanup_work_in_any_order_and_number() {
    let (runner, job) = (Runner::default(), Job::new(&image()).script(&["true"]));
    let mut attempt = Attempt::new(&runner, &job);
    attempt.cleanup().expect();
    attempt.config().expect();
    attempt.cleanup().expect();
    attempt.prepare().expect();
    attempt.prepare().expect();
    attempt.run_stage("get_sources").expect();
    attempt.run_stage("build_script").expect();
    attempt.cleanup().expect();
    attempt.cleanup().expect();
    assert_eq!(left_of(attempt.machine()), "");
    attempt.prepare().expect();
    attempt.cleanup().expect();
    assert_eq!(left_of(attempt.machine()), "");
}
