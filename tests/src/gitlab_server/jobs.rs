//! Jobs as the server sees them, with what runners send about them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use crate::command::expect_words;
use crate::job::Job;
use crate::multipart::FormFile;

/// State of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The job waits for a runner.
    Pending,
    /// A runner has taken the job.
    Running,
    /// The job was cancelled, and its runner may still run its `after_script`.
    Canceling,
    /// The job was cancelled, and its runner must drop it.
    Canceled,
    /// The job has passed.
    Success,
    /// The job has failed.
    Failed,
}

impl Status {
    /// Returns the name that GitLab's API gives this state.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Canceling => "canceling",
            Self::Canceled => "canceled",
            Self::Success => "success",
            Self::Failed => "failed",
        }
    }

    /// Returns whether the server still accepts a runner's requests about the job.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Running | Self::Canceling)
    }
}

/// A job as the server sees it.
#[derive(Clone, Debug)]
pub struct ServerJob {
    /// ID of the job.
    pub id: u64,
    pub(super) job: Arc<Job>,
    pub(super) token: String,
    /// Name of the runner that has taken the job.
    pub runner: String,
    /// Time of the runner's last request about the job.
    pub(super) last_contact: Instant,
    /// State of the job.
    pub status: Status,
    /// Log of the job.
    pub trace: Vec<u8>,
    /// Number of parts in which the log was sent.
    pub parts: usize,
    /// Reason of failure, for example `script_failure`; empty if the job has passed.
    pub reason: String,
    /// Exit code of the script, which `allow_failure:exit_codes` looks at.
    pub exit_code: i64,
    /// The runner's report of the final state.
    pub report: Value,
    /// Artifacts of the job.
    pub artifacts: Option<FormFile>,
    pub(super) retries_left: u32,
    /// ID of the job that was added for a retry of this one.
    pub retried_as: Option<u64>,
}

impl ServerJob {
    fn new(id: u64, job: Arc<Job>, retries_left: u32) -> Self {
        Self {
            id,
            job,
            token: format!("glcbt-64_never-log-this-{id}"),
            runner: String::new(),
            last_contact: Instant::now(),
            status: Status::Pending,
            trace: Vec::new(),
            parts: 0,
            reason: String::new(),
            exit_code: 0,
            report: Value::Null,
            artifacts: None,
            retries_left,
            retried_as: None,
        }
    }

    /// Returns whether the job has ended.
    pub fn is_over(&self) -> bool {
        matches!(
            self.status,
            Status::Success | Status::Failed | Status::Canceled
        )
    }

    /// Returns whether the job failed with an exit code that its pipeline allows.
    pub fn is_allowed_to_fail(&self) -> bool {
        self.reason == "script_failure" && self.job.allowed_exit_codes.contains(&self.exit_code)
    }

    /// Returns the log as text.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.trace).into_owned()
    }

    /// Fails the test unless the log contains `words`.
    #[track_caller]
    pub fn expect_log(&self, words: &str) {
        expect_words(&self.log(), words, || self.describe());
    }

    /// Returns the state and the end of the log, for the message of a failed test.
    pub fn describe(&self) -> String {
        const MAX_CHARS: usize = 8000;
        let log = self.log();
        let start = log
            .char_indices()
            .rev()
            .nth(MAX_CHARS)
            .map_or(0, |(start, _)| start);
        format!(
            "{:?} {} {}\n{}",
            self.status,
            self.reason,
            self.exit_code,
            &log[start..]
        )
    }

    /// Takes over the state that the runner sends, at the end of the job or before.
    pub(super) fn update(&mut self, report: &Value) {
        self.status = match (report["state"].as_str(), self.status) {
            (Some("success" | "failed"), Status::Canceling) => Status::Canceled,
            (Some("success"), _) => Status::Success,
            (Some("failed"), _) => Status::Failed,
            (_, status) => status,
        };
        report["failure_reason"]
            .as_str()
            .unwrap_or_default()
            .clone_into(&mut self.reason);
        self.exit_code = report["exit_code"].as_i64().unwrap_or_default();
        if self.is_over() {
            report.clone_into(&mut self.report);
        }
    }

    /// Appends a part to the log, and returns whether it begins where the log ends.
    ///
    /// `range` is the value of `Content-Range`.
    pub(super) fn append(&mut self, range: &str, part: &[u8]) -> bool {
        let start = range.split('-').next().and_then(|start| start.parse().ok());
        if start != Some(self.trace.len()) {
            return false;
        }
        self.trace.extend(part);
        self.parts += 1;
        true
    }

    /// Returns the JSON that the server at `url` sends to the runner that takes the job.
    fn payload(&self, url: &str) -> Value {
        let mut payload = self.job.to_json(self.id, &self.token, url);
        let mut variables = predefined_variables(self, url);
        if let Some(job_variables) = payload["variables"].as_array_mut() {
            variables.append(job_variables);
        }
        payload["variables"] = Value::from(variables);
        payload
    }
}

fn predefined_variables(job: &ServerJob, url: &str) -> Vec<Value> {
    let variable = |name: &str, value: &str| {
        json!({
            "key": name, "value": value, "public": true, "raw": true, "masked": name == "CI_JOB_TOKEN",
        })
    };
    let strategy = if job.job.has_sources { "fetch" } else { "none" };
    vec![
        variable("CI_JOB_ID", &job.id.to_string()),
        variable("CI_JOB_TOKEN", &job.token),
        variable("CI_SERVER_URL", url),
        variable("CI_JOB_NAME", "test"),
        variable("CI_PROJECT_PATH", job.job.project_path()),
        // Newer runners put the time before each line of a log.
        variable("FF_TIMESTAMPS", "false"),
        variable("GIT_STRATEGY", strategy),
    ]
}

/// The jobs of a server.
#[derive(Debug, Default)]
pub struct Jobs {
    /// Jobs by their IDs.
    pub all: BTreeMap<u64, ServerJob>,
    /// IDs of the jobs that wait for a runner.
    pub waiting: VecDeque<u64>,
    /// ID of the job that is added next.
    pub next_id: u64,
    /// URL of the server.
    pub url: String,
    /// Number of requests of git that are still to fail.
    pub git_failures: u32,
}

impl Jobs {
    /// Adds a job that waits for a runner, and returns its ID.
    pub fn add(&mut self, job: Arc<Job>) -> u64 {
        let retries = job.max_retries;
        self.add_with_retries(job, retries)
    }

    /// Adds a job that waits for a runner and may be retried this often, and returns its ID.
    pub fn add_with_retries(&mut self, job: Arc<Job>, retries: u32) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.all.insert(id, ServerJob::new(id, job, retries));
        self.waiting.push_back(id);
        id
    }

    /// Gives the next waiting job to a runner, and returns the JSON of the job.
    pub fn next(&mut self, runner: &str) -> Option<Value> {
        let job = self.all.get_mut(&self.waiting.pop_front()?)?;
        job.status = Status::Running;
        runner.clone_into(&mut job.runner);
        job.last_contact = Instant::now();
        Some(job.payload(&self.url))
    }

    /// Returns whether `token` is that of a running job.
    pub fn has_token(&self, token: &str) -> bool {
        self.all
            .values()
            .any(|job| job.token == token && job.status.is_open())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> ServerJob {
        let mut jobs = Jobs::default();
        let id = jobs.add(Arc::new(Job::new("a")));
        let token = jobs.all[&id].token.clone();
        assert!(!jobs.has_token(&token), "no runner has it yet");
        assert!(jobs.next("host").is_some() && jobs.next("host").is_none());
        assert!(jobs.has_token(&token) && !jobs.has_token(""));
        jobs.all.remove(&id).unwrap()
    }

    #[test]
    fn log_has_no_gap_and_no_part_twice() {
        let mut job = job();
        for (range, is_next) in [
            ("0-2", true),
            ("0-2", false),
            ("4-6", false),
            ("", false),
            ("3-5", true),
        ] {
            assert_eq!(job.append(range, b"abc"), is_next, "{range}");
        }
        assert_eq!((job.log(), job.parts), ("abcabc".to_owned(), 2));
    }

    #[test]
    fn canceling_job_ends_as_canceled() {
        let mut job = job();
        job.update(&json!({ "state": "running" }));
        assert_eq!(job.status, Status::Running);
        job.status = Status::Canceling;
        job.update(&json!({ "state": "failed", "failure_reason": "job_canceled", "exit_code": 3 }));
        assert_eq!(
            (job.status, &*job.reason, job.exit_code),
            (Status::Canceled, "job_canceled", 3)
        );
    }

    #[test]
    fn variables_of_the_job_follow_the_predefined_ones() {
        let mut jobs = Jobs::default();
        jobs.add(Arc::new(Job::new("a").variable("GIT_STRATEGY", "clone")));
        let payload = jobs.next("host").unwrap();
        let strategies: Vec<_> = payload["variables"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|variable| variable["key"] == "GIT_STRATEGY")
            .map(|variable| &variable["value"])
            .collect();
        assert_eq!(strategies, ["none", "clone"]);
    }
}
