//! The host's gitlab-runner in the machines of jobs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nspawn_tests::gitlab_runner::{Job, Outcome, Runner};
use nspawn_tests::{call, finish, image, sh};
use serde_json::json;

/// Makes an executable file named gitlab-runner.
fn program(name: &str, text: &str) -> PathBuf {
    let directory = PathBuf::from(format!("/run/e2e-{name}-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join("gitlab-runner");
    fs::write(&path, text).unwrap();
    sh(&format!("chmod 755 {}", path.display())).expect(0);
    path
}

fn remove(path: &Path) {
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn scripts_can_call_but_not_change_the_runner_of_the_host() {
    let text = "#!/bin/sh\necho \"the host's: $*\"\n";
    let path = program("shown", text);
    let option = format!("--gitlab-runner={}", path.display());
    let job = Job::new(&image()).stage(
        "upload_artifacts_on_success",
        &["gitlab-runner artifacts-uploader --name x"],
    );
    let attack = "! echo x >/usr/local/bin/gitlab-runner; ! mount -o remount,bind,rw /usr/local/bin/gitlab-runner";
    let job = job.script(&[
        attack,
        "! umount /usr/local/bin/gitlab-runner || ! rm /usr/local/bin/gitlab-runner",
    ]);
    let report = Runner::default()
        .prepare_args(&[&option])
        .run(&job)
        .expect(&Outcome::Success);
    report.expect_log("the host's: artifacts-uploader --name x");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    remove(&path);
}

#[test]
fn scripts_find_the_runner_on_a_path_of_their_own() {
    let path = program("on-path", "#!/bin/sh\necho \"the host's\"\n");
    let job = Job::new(&image())
        .variable("PATH", "/opt/tools:/bin")
        .script(&["gitlab-runner"]);
    let report = Runner::default()
        .prepare_args(&[&format!("--gitlab-runner={}", path.display())])
        .run(&job)
        .expect(&Outcome::Success);
    report.expect_log("the host's");
    remove(&path);
}

/// GitLab Runner turns `run:` into a script that calls step-runner.
#[test]
fn functions_call_the_step_runner_of_the_host() {
    let directory = PathBuf::from(format!("/run/e2e-steps-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let job = |line: &str| {
        Job::new(&image())
            .functions(json!([{ "name": "one", "script": "true" }]))
            .script(&[line])
    };
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    let runner = Runner::default().variable("PATH", &path);
    let notice = "no step-runner of the host is mounted";
    let report = runner.run(&job("! step-runner")).expect(&Outcome::Success);
    report.expect_log(notice);
    let program = directory.join("step-runner");
    fs::write(&program, "#!/bin/sh\necho \"the host's $*\"\n").unwrap();
    sh(&format!("chmod 755 {}", program.display())).expect(0);
    let report = runner.run(&job("step-runner ci")).expect(&Outcome::Success);
    report.expect_log("the host's ci");
    assert!(!report.log().contains(notice), "{}", report.describe());
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn missing_runner_is_reported_to_the_job() {
    let notice = "no gitlab-runner of the host is mounted";
    let job = || Job::new(&image()).script(&["! command -v gitlab-runner"]);
    let path = std::env::var("PATH").unwrap();
    let has_no_runner = |entry: &&str| !Path::new(entry).join("gitlab-runner").exists();
    let entries: Vec<_> = path.split(':').filter(has_no_runner).collect();
    let report = Runner::default()
        .variable("PATH", &entries.join(":"))
        .run(&job())
        .expect(&Outcome::Success);
    report.expect_log(notice);
    // --gitlab-runner=no silences the notice.
    let report = Runner::default()
        .prepare_args(&["--gitlab-runner=no"])
        .run(&job())
        .expect(&Outcome::Success);
    assert!(!report.log().contains(notice), "{}", report.describe());
}

#[test]
fn unusable_runner_is_refused() {
    for bad in ["gitlab-runner", "/etc/passwd", "/nowhere"] {
        call(
            "nspawn-prepare",
            [&*format!("--gitlab-runner={bad}"), &image()],
        )
        .expect_error(1, "there is no such program");
    }
    let options = ["--gitlab-runner=/bin/true", "--private-users=no", &image()];
    call("nspawn-prepare", options).expect_error(1, "jobs could overwrite");
}

/// The calling program is a copy of the shell, named gitlab-runner.
#[test]
fn runner_that_calls_the_driver_is_found() {
    let path = program("calling", "");
    sh(&format!("cp /bin/sh {}", path.display())).expect(0);
    let id = 3_000_000_000 + u64::from(std::process::id());
    let mut caller = Command::new(&path);
    caller
        .args(["-c", &format!("nspawn-prepare {}; exit $?", image())])
        .env("CUSTOM_ENV_CI_JOB_ID", id.to_string());
    let prepared = finish(
        caller.env("CUSTOM_ENV_CI_SERVER_URL", "https://gitlab.example"),
        b"",
    )
    .expect(0);
    let name = prepared
        .err()
        .split_whitespace()
        .find(|word| word.starts_with("gitlab-"))
        .unwrap()
        .to_owned();
    let done = call("nspawn-run", [&*name, "gitlab-runner", "-c", "echo here"]).expect(0);
    assert_eq!(done.out(), "here\n");
    call("nspawn-cleanup", [&name]).expect(0);
    remove(&path);
}
