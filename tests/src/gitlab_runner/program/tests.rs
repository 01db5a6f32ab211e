//! Tests of the program together with the stand-in for GitLab.
//!
//! Drivers that are shell scripts run the jobs on this host.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use super::client::Client;
use super::{artifacts, run_single};
use crate::gitlab_server::{GitLab, RUNNER_TOKEN, ServerJob, Status};
use crate::job::Job;

/// Writes the drivers of all stages to a directory.
fn drivers() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let config = format!(
        r#"echo '{{"builds_dir":"{0}/builds","cache_dir":"{0}/cache"}}'"#,
        path.display()
    );
    write_program(&path.join("config"), &config);
    write_program(&path.join("prepare"), "echo prepared");
    write_program(
        &path.join("run"),
        "bash \"$1\" || exit $BUILD_FAILURE_EXIT_CODE",
    );
    write_program(&path.join("cleanup"), "");
    directory
}

fn write_program(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

/// Runs one job with `run-single`, and returns its state on the server.
fn run(gitlab: &GitLab, job: Job) -> ServerJob {
    let id = gitlab.add(job);
    let drivers = drivers();
    let mut words = vec![
        format!("--url={}", gitlab.url()),
        format!("--token={RUNNER_TOKEN}-host"),
        "--executor=custom".to_owned(),
        "--max-builds=1".to_owned(),
    ];
    for stage in ["config", "prepare", "run", "cleanup"] {
        let driver = drivers.path().join(stage);
        words.push(format!("--custom-{stage}-exec={}", driver.display()));
    }
    run_single::run(&words).unwrap();
    gitlab.job(id)
}

#[test]
fn job_fetches_its_sources_and_reports_its_log() {
    let gitlab = GitLab::on_loopback();
    let repository = gitlab.repository("group/project", &[("file", "from git\n")]);
    gitlab.fail_git(1);
    let job = Job::new("a")
        .sources(&repository)
        .variable("GET_SOURCES_ATTEMPTS", "2")
        .script(&["cat file", "seq 100000"]);
    let job = run(&gitlab, job);
    assert_eq!(job.status, Status::Success, "{}", job.describe());
    assert_eq!(job.runner, "host");
    for text in ["\nprepared\n", "error: 502", "\nfrom git\n", "\n100000\n"] {
        assert!(job.log().contains(text), "no {text:?}: {}", job.describe());
    }
}

#[test]
fn failure_of_the_script_is_reported() {
    let job = run(&GitLab::on_loopback(), Job::new("a").script(&["exit 3"]));
    assert_eq!(
        (job.status, &*job.reason, job.exit_code),
        (Status::Failed, "script_failure", 1),
        "{}",
        job.describe()
    );
}

#[test]
fn artifacts_are_uploaded() {
    let gitlab = GitLab::on_loopback();
    let id = gitlab.add(Job::new("a"));
    let client = Client::new(&gitlab.url(), RUNNER_TOKEN).unwrap();
    let request = format!(r#"{{"token":"{RUNNER_TOKEN}"}}"#).into_bytes();
    let response = client.send("POST", "jobs/request", "application/json", request);
    let payload: serde_json::Value = serde_json::from_slice(response.unwrap().body()).unwrap();
    // The working directory of tests is that of the package.
    let words = [
        format!("--url={}", gitlab.url()),
        format!("--token={}", payload["token"].as_str().unwrap()),
        format!("--id={id}"),
        "--path=Cargo.toml".to_owned(),
        "--name=product".to_owned(),
    ];
    artifacts::upload(&words).unwrap();
    let file = gitlab.job(id).artifacts.unwrap();
    assert_eq!(file.name, "product.zip");
    assert!(file.content.starts_with(b"PK"));
}
