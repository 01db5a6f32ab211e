//! A job, in the words in which GitLab sends it to a runner (its `POST /api/v4/jobs/request`).

use serde_json::{Value, json};

use super::Repository;

/// A job that waits for a runner.
#[derive(Clone, Debug)]
pub struct Work {
    payload: Value,
    /// `GROUP/PROJECT`.
    project: String,
    pub(super) allowed_codes: Vec<i64>,
    /// How often it comes anew, and after which failures.
    retries: u32,
    retry_when: Vec<String>,
}

impl Work {
    /// One that asks for `image`, of a project whose repository it does not fetch.
    #[must_use]
    pub fn new(image: &str) -> Self {
        let payload = json!({
            "allow_git_fetch": true,
            "job_info": { "id": 0, "name": "test", "stage": "test", "project_id": 1, "project_name": "project" },
            "git_info": {
                "ref": "main", "ref_type": "branch", "depth": 20, "before_sha": "0".repeat(40),
                "sha": "0".repeat(40), "refspecs": ["+refs/heads/main:refs/remotes/origin/main"],
            },
            "runner_info": { "timeout": 120, "runner_session_url": null },
            "variables": [],
            "steps": [],
            "image": { "name": image, "entrypoint": null, "ports": [] },
            "services": [],
            "artifacts": [],
            "cache": [],
            "credentials": [],
            "dependencies": [],
            "features": { "trace_sections": false, "failure_reasons": [
                "unknown_failure", "script_failure", "runner_system_failure", "job_execution_timeout", "job_canceled",
            ] },
        });
        let project = "group/project".to_owned();
        let new = Self {
            payload,
            project,
            allowed_codes: Vec::new(),
            retries: 0,
            retry_when: Vec::new(),
        };
        // Newer runners put the time before each line of a log.
        new.variable("FF_TIMESTAMPS", "false")
            .variable("GIT_STRATEGY", "none")
    }

    /// Has it fetch this repository.
    #[must_use]
    pub fn sources(mut self, repository: &Repository) -> Self {
        self.project.clone_from(&repository.path);
        self.payload["git_info"]["sha"] = Value::from(&*repository.commit);
        self.variable("GIT_STRATEGY", "fetch")
    }

    /// The number of its project.
    #[must_use]
    pub fn project_number(mut self, number: u64) -> Self {
        self.payload["job_info"]["project_id"] = Value::from(number);
        self
    }

    /// The lines of its `script:`.
    #[must_use]
    pub fn script(self, lines: &[&str]) -> Self {
        self.step("script", lines, "on_success")
    }

    /// The lines of its `after_script:`.
    #[must_use]
    pub fn after_script(self, lines: &[&str]) -> Self {
        self.step("after_script", lines, "always")
    }

    fn step(self, name: &str, lines: &[&str], when: &str) -> Self {
        let step = json!({
            "name": name, "script": lines, "timeout": 3600, "when": when, "allow_failure": name != "script",
        });
        self.add("steps", step)
    }

    /// One of its variables.
    #[must_use]
    pub fn variable(self, name: &str, value: &str) -> Self {
        self.add("variables", variable(name, value))
    }

    /// One of its variables of the type "file".
    #[must_use]
    pub fn file_variable(self, name: &str, value: &str) -> Self {
        let mut entry = variable(name, value);
        entry["file"] = Value::from(true);
        self.add("variables", entry)
    }

    /// One of its artifacts: these paths, `when` it was `on_success`, `on_failure` or `always`.
    #[must_use]
    pub fn artifacts(self, paths: &[&str], when: &str) -> Self {
        let entry = json!({
            "name": "product", "untracked": false, "paths": paths, "when": when, "expire_in": "1 day",
            "artifact_type": "archive", "artifact_format": "zip",
        });
        self.add("artifacts", entry)
    }

    /// One of its caches, by a key; `policy` is `pull-push`, `pull` or `push`.
    #[must_use]
    pub fn cache(self, key: &str, paths: &[&str], policy: &str) -> Self {
        let entry = json!({
            "key": key, "untracked": false, "paths": paths, "policy": policy, "when": "on_success",
            "fallback_keys": [],
        });
        self.add("cache", entry)
    }

    /// Has it fetch the artifacts of an earlier job.
    #[must_use]
    pub fn needs(self, id: u64) -> Self {
        let file = json!({ "filename": "product.zip", "size": 1 });
        self.add(
            "dependencies",
            json!({ "id": id, "name": "earlier", "artifacts_file": file }),
        )
    }

    /// The time limit, in seconds, of its stages together.
    #[must_use]
    pub fn timeout(mut self, seconds: u64) -> Self {
        self.payload["runner_info"]["timeout"] = Value::from(seconds);
        self
    }

    /// Its `allow_failure:exit_codes`.
    #[must_use]
    pub fn allow_failure(self, exit_codes: &[i64]) -> Self {
        Self {
            allowed_codes: exit_codes.to_vec(),
            ..self
        }
    }

    /// Its `retry`: `max` and `when`.
    #[must_use]
    pub fn retry(self, max: u32, when: &[&str]) -> Self {
        Self {
            retries: max,
            retry_when: when.iter().map(|reason| (*reason).to_owned()).collect(),
            ..self
        }
    }

    /// What comes anew after a failure for this reason, if anything.
    pub(super) fn retried(&self, reason: &str) -> Option<Self> {
        let is_wished = self.retry_when.iter().any(|wished| wished == reason);
        let left = self.retries.checked_sub(1).filter(|_| is_wished)?;
        Some(Self {
            retries: left,
            ..self.clone()
        })
    }

    fn add(mut self, list: &str, entry: Value) -> Self {
        if let Some(list) = self.payload[list].as_array_mut() {
            list.push(entry);
        }
        self
    }

    /// All of it, as the job `id` of the GitLab at `url`.
    pub(super) fn payload(&self, id: u64, token: &str, url: &str) -> Value {
        let Self {
            mut payload,
            project,
            ..
        } = self.clone();
        let host = url.trim_start_matches("http://");
        payload["id"] = Value::from(id);
        payload["token"] = Value::from(token);
        payload["job_info"]["id"] = Value::from(id);
        payload["git_info"]["repo_url"] = Value::from(format!(
            "http://gitlab-ci-token:{token}@{host}/{project}.git"
        ));
        for need in payload["dependencies"].as_array_mut().into_iter().flatten() {
            need["token"] = Value::from(token);
        }
        let mut secret = variable("CI_JOB_TOKEN", token);
        secret["masked"] = Value::from(true);
        let mut variables = vec![
            variable("CI_JOB_ID", &id.to_string()),
            secret,
            variable("CI_SERVER_URL", url),
            variable("CI_JOB_NAME", "test"),
            variable("CI_PROJECT_PATH", &project),
        ];
        variables.extend(
            payload["variables"]
                .as_array()
                .into_iter()
                .flatten()
                .cloned(),
        );
        payload["variables"] = Value::from(variables);
        payload
    }
}

fn variable(name: &str, value: &str) -> Value {
    json!({ "key": name, "value": value, "public": true, "file": false, "masked": false, "raw": true })
}
