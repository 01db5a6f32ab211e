//! What GitLab knows of its jobs, and what runners tell it of them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use serde_json::Value;

use super::Work;

/// How a job is, in GitLab's eyes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It waits for a runner.
    Pending,
    /// A runner has it.
    Running,
    /// Somebody has cancelled it; its runner may still run its `after_script`.
    Canceling,
    /// It is cancelled, and its runner is to drop it.
    Canceled,
    /// It has passed.
    Success,
    /// It has not.
    Failed,
}

impl Status {
    /// GitLab's word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Canceling => "canceling",
            Self::Canceled => "canceled",
            Self::Success => "success",
            Self::Failed => "failed",
        }
    }

    /// Whether a runner may still say something about the job.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Running | Self::Canceling)
    }
}

/// Files of a job, as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// What the uploader called them.
    pub name: String,
    /// The archive.
    pub content: Vec<u8>,
}

/// All that GitLab knows of a job.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its number.
    pub id: u64,
    pub(super) work: Work,
    pub(super) token: String,
    /// Whose runner has taken it.
    pub runner: String,
    pub(super) heard: Instant,
    /// How it is.
    pub status: Status,
    /// Its log.
    pub trace: Vec<u8>,
    /// In how many parts the log has come.
    pub parts: usize,
    /// `script_failure`, `runner_system_failure`, …; empty for one that has passed.
    pub reason: String,
    /// The exit code of its script, which `allow_failure:exit_codes` looks at.
    pub exit_code: i64,
    /// Its artifacts.
    pub artifacts: Option<Upload>,
    /// The job as which it comes anew.
    pub retried_as: Option<u64>,
}

impl Known {
    fn new(id: u64, work: Work) -> Self {
        Self {
            id,
            work,
            token: format!("glcbt-64_never-log-this-{id}"),
            runner: String::new(),
            heard: Instant::now(),
            status: Status::Pending,
            trace: Vec::new(),
            parts: 0,
            reason: String::new(),
            exit_code: 0,
            artifacts: None,
            retried_as: None,
        }
    }

    /// Whether nothing more happens to it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(
            self.status,
            Status::Success | Status::Failed | Status::Canceled
        )
    }

    /// Whether it has failed in a way that its pipeline forgives.
    #[must_use]
    pub fn is_allowed_to_fail(&self) -> bool {
        self.reason == "script_failure" && self.work.allowed_codes.contains(&self.exit_code)
    }

    /// Its log as text.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.trace).into_owned()
    }

    /// All there is to see.
    #[must_use]
    pub fn describe(&self) -> String {
        let Self {
            status,
            reason,
            exit_code,
            ..
        } = self;
        let log = self.log();
        let end = log
            .char_indices()
            .rev()
            .nth(8000)
            .map_or(0, |(place, _)| place);
        format!("{status:?} {reason} {exit_code}\n{}", &log[end..])
    }

    // What a runner says at the end, and now and then before.
    pub(super) fn update(&mut self, said: &Value) {
        self.status = match (said["state"].as_str(), self.status) {
            (Some("success" | "failed"), Status::Canceling) => Status::Canceled,
            (Some("success"), _) => Status::Success,
            (Some("failed"), _) => Status::Failed,
            (_, status) => status,
        };
        said["failure_reason"]
            .as_str()
            .unwrap_or_default()
            .clone_into(&mut self.reason);
        self.exit_code = said["exit_code"].as_i64().unwrap_or_default();
    }

    // A part of the log, unless it is not the next one.
    pub(super) fn append(&mut self, range: &str, part: &[u8]) -> bool {
        let begin = range.split('-').next().and_then(|begin| begin.parse().ok());
        let is_next = begin == Some(self.trace.len());
        if is_next {
            self.trace.extend(part);
            self.parts += 1;
        }
        is_next
    }
}

/// All jobs.
#[derive(Debug, Default)]
pub struct Jobs {
    pub all: BTreeMap<u64, Known>,
    pub waiting: VecDeque<u64>,
    /// The number of the next one.
    pub next_id: u64,
    /// Where they come from.
    pub url: String,
    /// How many more of git's requests fail.
    pub broken: u32,
}

impl Jobs {
    /// Has one wait for a runner; returns its number.
    pub fn add(&mut self, work: Work) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.all.insert(id, Known::new(id, work));
        self.waiting.push_back(id);
        id
    }

    /// The next one, for a runner.
    pub fn next(&mut self, runner: &str) -> Option<Value> {
        let job = self.all.get_mut(&self.waiting.pop_front()?)?;
        job.status = Status::Running;
        runner.clone_into(&mut job.runner);
        job.heard = Instant::now();
        Some(job.work.payload(job.id, &job.token, &self.url))
    }

    pub fn has_token(&self, token: &str) -> bool {
        self.all
            .values()
            .any(|job| job.token == token && job.status.is_open())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job() -> Known {
        let mut jobs = Jobs::default();
        let id = jobs.add(Work::new("a"));
        let token = jobs.all[&id].token.clone();
        assert!(!jobs.has_token(&token), "nobody has it yet");
        assert!(jobs.next("host").is_some() && jobs.next("host").is_none());
        assert!(jobs.has_token(&token) && !jobs.has_token(""));
        jobs.all.remove(&id).unwrap()
    }

    #[test]
    fn a_log_has_no_gap_and_nothing_twice() {
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
    fn a_job_that_is_being_canceled_ends_as_that() {
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
}
