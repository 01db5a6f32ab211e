//! Input that a job controls: forged variables, malformed job responses, names with paths.

use nspawn_tests::gitlab_runner::{Attempt, Job, Outcome, Response, Runner};
use nspawn_tests::{call, image, left_of, sh};

fn with_forged_variables(job: Job) -> Job {
    [
        ("CI_JOB_ID", "1"),
        ("CI_JOB_IMAGE", "no-such-image"),
        ("CI_SERVER_URL", "https://forged.example"),
        ("BUILD_FAILURE_EXIT_CODE", "0"),
        ("SYSTEM_FAILURE_EXIT_CODE", "0"),
        ("JOB_RESPONSE_FILE", "/nonexistent"),
        ("BUILD_EXIT_CODE_FILE", "/forged"),
        ("NSPAWN_IMAGE", "no-such-image"),
        ("NSPAWN_BIND", "/etc:/host"),
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
    ]
    .into_iter()
    .fold(job, |job, (name, value)| job.variable(name, value))
}

#[test]
fn forged_variables_are_ignored() {
    let honest = Job::new(&image());
    let forgery = with_forged_variables(Job::new(&image()).with_id(honest.id()));
    let runner = Runner::default();
    let [mut one, mut other] = [
        Attempt::new(&runner, &honest),
        Attempt::new(&runner, &forgery),
    ];
    drop((one.config().expect(), other.config().expect()));
    assert_eq!(one.machine(), other.machine());
    let report = with_forged_variables(Job::new(&image()))
        .script(&["test ! -e /host", "exit 3"])
        .run();
    let _ = report.expect(&Outcome::ScriptFailure(3));
}

#[test]
fn forged_empty_job_number_is_ignored() {
    let job = Job::new(&image())
        .variable("CI_JOB_ID", "")
        .script(&["exit 3"]);
    let _ = job.run().expect(&Outcome::ScriptFailure(3));
}

#[test]
fn equal_job_numbers_of_two_servers_make_two_machines() {
    let runner = Runner::default();
    let job = Job::new(&image()).script(&["echo here > /root/file"]);
    let other_job = Job::new(&image())
        .with_id(job.id())
        .server("https://other.example")
        .script(&["test ! -e /root/file"]);
    let [one, other] = [
        Attempt::prepared(&runner, &job),
        Attempt::prepared(&runner, &other_job),
    ];
    assert_ne!(one.machine(), other.machine());
    one.run_stage("build_script").expect();
    other.run_stage("build_script").expect();
    one.cleanup().expect();
    other.run_stage("build_script").expect();
    other.cleanup().expect();
    assert_eq!(left_of(&format!("gitlab-{}-", job.id())), "");
}

#[test]
fn invalid_job_response_is_one_line_without_its_token() {
    const TOKEN: &str = "glcbt-64_never-log-this";
    let huge = format!(
        r#"{{"id": 7, "token": "{TOKEN}", "x": "{}"}}"#,
        "x".repeat(16 << 20)
    );
    let texts = [
        "",
        "\0",
        "[]",
        TOKEN,
        &format!(r#"{{"id": 7, "token": "{TOKEN}""#),
        &format!(r#"{{"id": "../{TOKEN}"}}"#),
        &format!(r#"{{"id": -1, "token": "{TOKEN}"}}"#),
        &huge,
    ];
    let contents = texts.map(|text| Response::Content(text.as_bytes().to_vec()));
    for response in contents.into_iter().chain([Response::Missing]) {
        let job = Job::new(&image())
            .script(&["echo too far"])
            .response(response);
        let runner = Runner::default();
        let mut attempt = Attempt::new(&runner, &job);
        let run = attempt.run_stage("build_script");
        for record in [attempt.config(), attempt.prepare(), run, attempt.cleanup()] {
            assert!(!record.text().contains(TOKEN), "{}", record.describe());
            assert!(record.log.len() < 1000, "{}", record.describe());
            assert_eq!(
                record
                    .expect_system_failure("$JOB_RESPONSE_FILE")
                    .text()
                    .lines()
                    .count(),
                1
            );
        }
    }
}

#[test]
fn forged_job_numbers_of_old_runners_are_refused() {
    let before = sh("ls -A /run /var/lib /var/lib/nspawn-ci").out();
    for id in [
        "../x",
        "7/../../x",
        "-1",
        "",
        "7 8",
        "7\n",
        "99999999999999999999",
    ] {
        let (runner, job) = (
            Runner::old(),
            Job::new(&image())
                .variable("CI_JOB_ID", id)
                .script(&["echo too far"]),
        );
        let mut attempt = Attempt::new(&runner, &job);
        let run = attempt.run_stage("build_script");
        for record in [attempt.config(), attempt.prepare(), run, attempt.cleanup()] {
            record.expect_system_failure("CI_JOB_ID");
        }
    }
    assert_eq!(sh("ls -A /run /var/lib /var/lib/nspawn-ci").out(), before);
}

#[test]
fn machine_names_with_paths_are_refused() {
    for name in ["../x", "a/b", "..", "/etc"] {
        call("nspawn-prepare", ["--name", name, &image()]).expect_error(1, "as a machine's name");
        call("nspawn-run", [name, "true"]).expect_error(125, "as a machine's name");
        call("nspawn-cleanup", [name]).expect_error(1, "as a machine's name");
    }
}
