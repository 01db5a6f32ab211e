//! Tests of the answers, without a network.

use std::sync::Arc;

use super::super::Status;
use super::*;
use crate::http::request_builder;
use crate::job::Job;

const JOB: &str = "glcbt-64_never-log-this-7";

/// The state of a server that does not listen, with a job for which `runners` have asked.
fn gitlab(runners: usize) -> Shared {
    let shared = Shared {
        jobs: Default::default(),
        changed: Default::default(),
        root: "/nowhere".into(),
    };
    shared.jobs().next_id = 7;
    assert_eq!(
        shared
            .jobs()
            .add(Arc::new(Job::new("a").retry(1, &["script_failure"]))),
        7
    );
    for _ in 0..runners {
        shared.jobs().next("host").unwrap();
    }
    shared
}

fn ask(shared: &Shared, method: &str, path: &str, token: &str, body: &str) -> (u16, String) {
    let request = request_builder()
        .method(method)
        .uri(format!("/api/v4/{path}"))
        .header("Content-Range", "0-2")
        .header("JOB-TOKEN", token)
        .header("Content-Type", "text/plain")
        .body(body.as_bytes().to_vec());
    let response = answer(&request.unwrap(), shared);
    let status = header(response.headers(), "Job-Status");
    (response.status().as_u16(), status.to_owned())
}

#[test]
fn runner_with_the_right_token_gets_each_job_once() {
    let shared = gitlab(0);
    let request = |token: &str| {
        ask(
            &shared,
            "POST",
            "jobs/request",
            "",
            &json!({ "token": token }).to_string(),
        )
        .0
    };
    let named = format!("{RUNNER_TOKEN}-host");
    assert_eq!(
        [
            "wrong",
            "",
            &format!("{RUNNER_TOKEN}x"),
            &named,
            RUNNER_TOKEN
        ]
        .map(request),
        [403, 403, 403, 201, 204]
    );
    assert_eq!(shared.jobs().all[&7].runner, "host");
    let verify = |token: &str| {
        ask(
            &shared,
            "POST",
            "runners/verify",
            "",
            &json!({ "token": token }).to_string(),
        )
        .0
    };
    assert_eq!(["wrong", RUNNER_TOKEN].map(verify), [403, 200]);
}

#[test]
fn runner_learns_the_status_and_may_report_until_the_end() {
    let shared = gitlab(1);
    let patch = |token: &str| ask(&shared, "PATCH", "jobs/7/trace", token, "abc");
    let set = |status| shared.jobs().all.get_mut(&7).unwrap().status = status;
    assert_eq!(patch("wrong").0, 403);
    assert_eq!(patch(JOB), (202, "running".to_owned()));
    set(Status::Canceling);
    assert_eq!(patch(JOB), (416, "canceling".to_owned()));
    set(Status::Canceled);
    assert_eq!(patch(JOB), (403, "canceled".to_owned()));
    assert_eq!(ask(&shared, "PUT", "jobs/7", JOB, "{}").0, 403);
    assert_eq!(
        (
            ask(&shared, "PUT", "jobs/8", JOB, "{}").0,
            ask(&shared, "GET", "jobs", "", "").0
        ),
        (404, 404)
    );
}

#[test]
fn failed_job_is_retried_as_another_job() {
    let shared = gitlab(1);
    let failed = json!({ "state": "failed", "failure_reason": "script_failure", "exit_code": 1 })
        .to_string();
    let put = || ask(&shared, "PUT", "jobs/7", JOB, &failed).0;
    assert_eq!([put(), put()], [200, 403]);
    let jobs = shared.jobs();
    assert_eq!(
        (
            jobs.all[&7].retried_as,
            jobs.waiting.iter().collect::<Vec<_>>()
        ),
        (Some(8), vec![&8])
    );
}

#[test]
fn each_request_of_the_runner_counts_as_contact() {
    let shared = gitlab(1);
    let contact = shared.jobs().all[&7].last_contact;
    ask(&shared, "PATCH", "jobs/7/trace", "wrong", "abc");
    assert_eq!(shared.jobs().all[&7].last_contact, contact);
    ask(&shared, "PATCH", "jobs/7/trace", JOB, "abc");
    assert!(shared.jobs().all[&7].last_contact > contact);
}

#[test]
fn only_tokens_of_running_jobs_give_access_to_sources_and_artifacts() {
    let (waiting, running) = (gitlab(0), gitlab(1));
    let fetch = |shared: &Shared| ask(shared, "GET", "jobs/7/artifacts", JOB, "").0;
    assert_eq!((fetch(&waiting), fetch(&running)), (403, 404));
    let clone = |shared: &Shared, given: &str| {
        let request = request_builder()
            .uri("/group/project.git/info/refs")
            .header("Authorization", given)
            .body(Vec::new());
        answer(&request.unwrap(), shared).status().as_u16()
    };
    assert_eq!(
        (
            clone(&running, ""),
            clone(&waiting, &basic_authorization(JOB))
        ),
        (401, 401)
    );
    running.jobs().git_failures = 1;
    assert_eq!(
        (
            clone(&running, "Basic x"),
            clone(&running, &basic_authorization(JOB))
        ),
        (401, 502)
    );
}
