//! Answers to the requests of runners, jobs and git.

use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use ureq::http::{HeaderValue, StatusCode};

use super::jobs::ServerJob;
use super::{RUNNER_TOKEN, Shared, repository};
use crate::http::{Request, Response, empty, header, with_body};
use crate::multipart::FormFile;

/// Returns the answer to a request.
pub fn answer(request: &Request, shared: &Shared) -> Response {
    let Some(path) = request.uri().path().strip_prefix("/api/v4/") else {
        return answer_git(request, shared);
    };
    let parts: Vec<_> = path.split('/').collect();
    match (request.method().as_str(), &*parts) {
        ("POST", ["runners", "verify"]) => verify_runner(request),
        ("POST", ["jobs", "request"]) => request_job(request, shared),
        (_, ["jobs", id, rest @ ..]) => answer_job(request, id, rest, shared),
        _ => empty(StatusCode::NOT_FOUND),
    }
}

fn verify_runner(request: &Request) -> Response {
    if runner_name(request).is_none() {
        return empty(StatusCode::FORBIDDEN);
    }
    let token = &json_body(request)["token"];
    with_json(StatusCode::OK, &json!({ "id": 1, "token": token }))
}

fn request_job(request: &Request, shared: &Shared) -> Response {
    let Some(runner) = runner_name(request) else {
        return empty(StatusCode::FORBIDDEN);
    };
    match shared.jobs().next(&runner) {
        Some(payload) => with_json(StatusCode::CREATED, &payload),
        None => empty(StatusCode::NO_CONTENT),
    }
}

/// Returns the name in the token of a runner, which may be empty, or `None` if the token is wrong.
fn runner_name(request: &Request) -> Option<String> {
    let body = json_body(request);
    let rest = body["token"].as_str()?.strip_prefix(RUNNER_TOKEN)?;
    if rest.is_empty() {
        Some(String::new())
    } else {
        rest.strip_prefix('-').map(str::to_owned)
    }
}

fn answer_job(request: &Request, id: &str, rest: &[&str], shared: &Shared) -> Response {
    let mut jobs = shared.jobs();
    let body = json_body(request);
    let method = request.method().as_str();
    let token = match header(request.headers(), "JOB-TOKEN") {
        "" => body["token"].as_str().unwrap_or_default(),
        token => token,
    };
    // A later job fetches the artifacts of an earlier one, with the token of the later job.
    if (method, rest) == ("GET", &["artifacts"]) && !jobs.has_token(token) {
        return empty(StatusCode::FORBIDDEN);
    }
    let Ok(id) = id.parse() else {
        return empty(StatusCode::NOT_FOUND);
    };
    let Some(job) = jobs.all.get_mut(&id) else {
        return empty(StatusCode::NOT_FOUND);
    };
    let is_from_its_runner = job.token == token && job.status.is_open();
    if is_from_its_runner {
        job.last_contact = Instant::now();
    }
    let mut response = match (method, rest) {
        ("GET", ["artifacts"]) => send_artifacts(job),
        _ if !is_from_its_runner => empty(StatusCode::FORBIDDEN),
        ("PUT", []) => {
            job.update(&body);
            empty(StatusCode::OK)
        }
        ("PATCH", ["trace"]) => append_trace(request, job),
        ("POST", ["artifacts"]) => receive_artifacts(request, job),
        _ => empty(StatusCode::NOT_FOUND),
    };
    let status = HeaderValue::from_static(job.status.name());
    response.headers_mut().insert("Job-Status", status);
    jobs.retry(id);
    response
}

fn append_trace(request: &Request, job: &mut ServerJob) -> Response {
    let range = header(request.headers(), "Content-Range");
    let status = if job.append(range, request.body()) {
        StatusCode::ACCEPTED
    } else {
        StatusCode::RANGE_NOT_SATISFIABLE
    };
    let mut response = empty(status);
    let headers = response.headers_mut();
    if let Ok(range) = format!("0-{}", job.trace.len()).parse() {
        headers.insert("Range", range);
    }
    headers.insert(
        "X-GitLab-Trace-Update-Interval",
        HeaderValue::from_static("1"),
    );
    response
}

fn receive_artifacts(request: &Request, job: &mut ServerJob) -> Response {
    job.artifacts = FormFile::from_request(request);
    if job.artifacts.is_some() {
        with_json(StatusCode::CREATED, &json!({}))
    } else {
        empty(StatusCode::BAD_REQUEST)
    }
}

fn send_artifacts(job: &ServerJob) -> Response {
    match &job.artifacts {
        Some(file) => with_body(StatusCode::OK, "application/zip", file.content.clone()),
        None => empty(StatusCode::NOT_FOUND),
    }
}

fn answer_git(request: &Request, shared: &Shared) -> Response {
    let mut jobs = shared.jobs();
    let authorization = header(request.headers(), "Authorization");
    let is_from =
        |job: &ServerJob| job.status.is_open() && authorization == basic_authorization(&job.token);
    // The first request of git has no password, and this answer makes git send it.
    if !jobs.all.values().any(is_from) {
        let mut response = empty(StatusCode::UNAUTHORIZED);
        let challenge = HeaderValue::from_static("Basic realm=\"GitLab\"");
        response.headers_mut().insert("WWW-Authenticate", challenge);
        return response;
    }
    if jobs.git_failures > 0 {
        jobs.git_failures -= 1;
        return empty(StatusCode::BAD_GATEWAY);
    }
    drop(jobs);
    repository::serve(&shared.root, request)
}

fn basic_authorization(token: &str) -> String {
    let credentials = BASE64_STANDARD.encode(format!("gitlab-ci-token:{token}"));
    format!("Basic {credentials}")
}

fn json_body(request: &Request) -> Value {
    serde_json::from_slice(request.body()).unwrap_or_default()
}

fn with_json(status: StatusCode, value: &Value) -> Response {
    with_body(status, "application/json", value.to_string().into_bytes())
}

#[cfg(test)]
mod tests;
