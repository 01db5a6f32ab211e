//! What the server answers.

use std::time::Instant;

use serde_json::{Value, json};

use super::jobs::{Known, Upload};
use super::{RUNNER_TOKEN, Shared, git};
use crate::http::{Request, Response};

/// The answer to a request.
pub fn answer(request: &Request, shared: &Shared) -> Response {
    let Some(path) = request.path.strip_prefix("/api/v4/") else {
        return sources(request, shared);
    };
    match (&*request.method, &*path.split('/').collect::<Vec<_>>()) {
        ("POST", ["runners", "verify"] | ["jobs", "request"]) if runner(request).is_none() => {
            Response::new(403)
        }
        ("POST", ["runners", "verify"]) => {
            json(200, &json!({ "id": 1, "token": of_json(request)["token"] }))
        }
        ("POST", ["jobs", "request"]) => {
            match shared.jobs().next(&runner(request).unwrap_or_default()) {
                Some(payload) => json(201, &payload),
                None => Response::new(204),
            }
        }
        (_, ["jobs", id, rest @ ..]) => of_job(request, id, rest, shared),
        _ => Response::new(404),
    }
}

// Its name, which may be empty.
fn runner(request: &Request) -> Option<String> {
    let said = of_json(request);
    let rest = said["token"].as_str()?.strip_prefix(RUNNER_TOKEN)?;
    if rest.is_empty() {
        Some(String::new())
    } else {
        rest.strip_prefix('-').map(str::to_owned)
    }
}

fn of_job(request: &Request, id: &str, rest: &[&str], shared: &Shared) -> Response {
    let mut jobs = shared.jobs();
    let said = of_json(request);
    let token = request
        .headers
        .get("JOB-TOKEN")
        .or(said["token"].as_str())
        .unwrap_or_default();
    // A later job fetches with its own token.
    if (&*request.method, rest) == ("GET", &["artifacts"]) && !jobs.has_token(token) {
        return Response::new(403);
    }
    let Ok(id) = id.parse() else {
        return Response::new(404);
    };
    let Some(job) = jobs.all.get_mut(&id) else {
        return Response::new(404);
    };
    let is_its_runner = job.token == token && job.status.is_open();
    if is_its_runner {
        job.heard = Instant::now();
    }
    let response = match (&*request.method, rest) {
        ("GET", ["artifacts"]) => download(job),
        _ if !is_its_runner => Response::new(403),
        ("PUT", []) => {
            job.update(&said);
            Response::new(200)
        }
        ("PATCH", ["trace"]) => trace(request, job),
        ("POST", ["artifacts"]) => upload(request, job),
        _ => Response::new(404),
    };
    let response = response.header("Job-Status", job.status.word());
    jobs.retry(id);
    response
}

fn trace(request: &Request, job: &mut Known) -> Response {
    let range = request.headers.get("Content-Range").unwrap_or_default();
    let status = if job.append(range, &request.body) {
        202
    } else {
        416
    };
    let response = Response::new(status).header("Range", &format!("0-{}", job.trace.len()));
    response.header("X-GitLab-Trace-Update-Interval", "1")
}

fn upload(request: &Request, job: &mut Known) -> Response {
    let kind = request.headers.get("Content-Type").unwrap_or_default();
    job.artifacts = parts(kind, &request.body);
    if job.artifacts.is_some() {
        json(201, &json!({}))
    } else {
        Response::new(400)
    }
}

fn download(job: &Known) -> Response {
    match &job.artifacts {
        Some(upload) => Response::new(200).body("application/zip", upload.content.clone()),
        None => Response::new(404),
    }
}

// git asks without a password first.
fn sources(request: &Request, shared: &Shared) -> Response {
    let mut jobs = shared.jobs();
    let given = request.headers.get("Authorization").unwrap_or_default();
    let is_job = |job: &Known| job.status.is_open() && given == authorization(&job.token);
    if !jobs.all.values().any(is_job) {
        return Response::new(401).header("WWW-Authenticate", "Basic realm=\"GitLab\"");
    }
    if jobs.broken > 0 {
        jobs.broken -= 1;
        return Response::new(502);
    }
    drop(jobs);
    git::serve(&shared.root, request)
}

fn authorization(token: &str) -> String {
    format!(
        "Basic {}",
        base64(format!("gitlab-ci-token:{token}").as_bytes())
    )
}

// RFC 4648, section 4
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .fold(0, |bits, byte| bits << 8 | usize::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = char::from(DIGITS[bits >> (18 - 6 * place) & 63]);
            text.push(if place <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

// The file in a form (RFC 7578).
fn parts(kind: &str, body: &[u8]) -> Option<Upload> {
    let (_, boundary) = kind.split_once("multipart/form-data; boundary=")?;
    let boundary = format!("--{}", boundary.trim_matches('"'));
    let rest = body.strip_prefix(boundary.as_bytes())?;
    let (head, rest) = split(rest, b"\r\n\r\n")?;
    let (content, _) = split(rest, format!("\r\n{boundary}").as_bytes())?;
    let head = String::from_utf8_lossy(head);
    let (_, name) = head.split_once("name=\"file\"; filename=\"")?;
    Some(Upload {
        name: name.split('"').next()?.to_owned(),
        content: content.to_vec(),
    })
}

fn split<'a>(bytes: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let place = bytes.windows(at.len()).position(|part| part == at)?;
    Some((&bytes[..place], &bytes[place + at.len()..]))
}

fn of_json(request: &Request) -> Value {
    serde_json::from_slice(&request.body).unwrap_or_default()
}

fn json(status: u16, value: &Value) -> Response {
    Response::new(status).body("application/json", value.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::{Status, Work};
    use super::*;

    const JOB: &str = "glcbt-64_never-log-this-7";

    /// A GitLab without a place on the network, with a job for `runners` of them.
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
                .add(Work::new("a").retry(1, &["script_failure"])),
            7
        );
        for _ in 0..runners {
            shared.jobs().next("host").unwrap();
        }
        shared
    }

    fn ask(shared: &Shared, method: &str, path: &str, token: &str, body: &str) -> (u16, String) {
        let request =
            Request::new(method, &format!("/api/v4/{path}")).header("Content-Range", "0-2");
        let request = request
            .header("JOB-TOKEN", token)
            .body("text/plain", body.as_bytes().to_vec());
        let response = answer(&request, shared);
        (
            response.status,
            response
                .headers
                .get("Job-Status")
                .unwrap_or_default()
                .to_owned(),
        )
    }

    #[test]
    fn a_runner_with_the_right_token_has_each_job_once() {
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
    fn a_job_is_told_how_it_is_and_has_a_say_until_its_end() {
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
    fn a_failed_job_comes_anew_as_another_one() {
        let shared = gitlab(1);
        let failed =
            json!({ "state": "failed", "failure_reason": "script_failure", "exit_code": 1 })
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
    fn a_runner_is_heard_by_all_that_it_says_of_its_job() {
        let shared = gitlab(1);
        let taken = shared.jobs().all[&7].heard;
        ask(&shared, "PATCH", "jobs/7/trace", "wrong", "abc");
        assert_eq!(shared.jobs().all[&7].heard, taken);
        ask(&shared, "PATCH", "jobs/7/trace", JOB, "abc");
        assert!(shared.jobs().all[&7].heard > taken);
    }

    #[test]
    fn nobody_without_a_running_jobs_token_has_sources_or_artifacts() {
        let (waiting, running) = (gitlab(0), gitlab(1));
        let fetch = |shared: &Shared| ask(shared, "GET", "jobs/7/artifacts", JOB, "").0;
        assert_eq!((fetch(&waiting), fetch(&running)), (403, 404));
        let clone = |shared: &Shared, given: &str| {
            let request =
                Request::new("GET", "/group/project.git/info/refs").header("Authorization", given);
            answer(&request, shared).status
        };
        assert_eq!(
            (clone(&running, ""), clone(&waiting, &authorization(JOB))),
            (401, 401)
        );
        running.jobs().broken = 1;
        assert_eq!(
            (
                clone(&running, "Basic x"),
                clone(&running, &authorization(JOB))
            ),
            (401, 502)
        );
    }

    #[test]
    fn passwords_are_in_base64() {
        for (text, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }

    #[test]
    fn a_form_holds_a_file() {
        let kind = "multipart/form-data; boundary=x";
        let head = "Content-Disposition: form-data; name=\"file\"; filename=\"a.zip\"\r\nContent-Type: any";
        let upload = parts(
            kind,
            format!("--x\r\n{head}\r\n\r\na\r\n-x\r\n--x--\r\n").as_bytes(),
        )
        .unwrap();
        assert_eq!(
            (&*upload.name, &*upload.content),
            ("a.zip", &b"a\r\n-x"[..])
        );
        assert_eq!(parts(kind, b"--x\r\n\r\n\r\n"), None);
        assert_eq!(parts("text/plain", b""), None);
    }
}
