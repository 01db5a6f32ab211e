//! A job, as GitLab describes it to a runner.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::gitlab_runner::{Interventions, Moment, Reaction, Report, Response, Runner, When};
use crate::gitlab_server::Repository;

/// Token of every job that runs without a server. No log may show it.
pub const TOKEN: &str = "glcbt-64_never-log-this";

/// Builder of a job, which yields the JSON with which GitLab answers `POST /api/v4/jobs/request`.
///
/// A job reaches a runner in one of two ways. [`GitLab::add`](crate::gitlab_server::GitLab::add)
/// has a server send it. [`Runner::run`] hands it to the stand-in for GitLab Runner directly; then
/// a test can also intervene in it, for example cancel it when its log shows a text.
#[must_use]
#[derive(Debug)]
pub struct Job {
    id: u64,
    server: String,
    project_path: String,
    /// Parts of the JSON that do not depend on the server.
    description: Value,
    /// True if the job fetches a repository of the server.
    pub(crate) has_sources: bool,
    /// Exit codes of `allow_failure:exit_codes`.
    pub(crate) allowed_exit_codes: Vec<i64>,
    /// Maximum number of retries.
    pub(crate) max_retries: u32,
    /// Reasons of failure after which the job is retried.
    pub(crate) retry_when: Vec<String>,
    pub(crate) interventions: Interventions,
}

impl Job {
    /// Creates a job with an ID of its own that requests `image`.
    pub fn new(image: &str) -> Self {
        let mut job = Self::without_image();
        job.description["image"]["name"] = Value::from(image);
        job
    }

    /// Creates a job with an ID of its own that requests no image.
    pub fn without_image() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: u64::from(std::process::id()) * 1000 + COUNT.fetch_add(1, Ordering::Relaxed),
            server: "https://gitlab.example".to_owned(),
            project_path: "group/project".to_owned(),
            description: default_description(),
            has_sources: false,
            allowed_exit_codes: Vec::new(),
            max_retries: 0,
            retry_when: Vec::new(),
            interventions: Interventions::default(),
        }
    }

    /// Returns the ID that the job has if no server gives it another one.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Sets the ID that the job has if no server gives it another one.
    pub fn with_id(self, id: u64) -> Self {
        Self { id, ..self }
    }

    /// Sets the address of the GitLab from which the job seems to come, if no server sends it.
    pub fn server(self, url: &str) -> Self {
        Self {
            server: url.to_owned(),
            ..self
        }
    }

    /// Sets the ID of the job's project.
    pub fn project(mut self, project: u64) -> Self {
        self.description["job_info"]["project_id"] = Value::from(project);
        self
    }

    /// Marks the job's branch as a protected one.
    pub fn protected(mut self) -> Self {
        self.description["git_info"]["protected"] = Value::from(true);
        self
    }

    /// Sends the protection of the branch as GitLab before 18.3 does: in a predefined variable.
    pub fn protection_in_variable(mut self) -> Self {
        let is_protected = self.take_protection() == true;
        self.variable("CI_COMMIT_REF_PROTECTED", &is_protected.to_string())
    }

    /// Leaves out whether the branch is protected.
    pub fn unknown_protection(mut self) -> Self {
        self.take_protection();
        self
    }

    fn take_protection(&mut self) -> Value {
        let git_info = self.description["git_info"].as_object_mut();
        git_info
            .and_then(|git_info| git_info.remove("protected"))
            .unwrap_or_default()
    }

    /// Has the job fetch the newest commit of this repository.
    pub fn sources(mut self, repository: &Repository) -> Self {
        self.project_path.clone_from(&repository.path);
        self.description["git_info"]["sha"] = Value::from(&*repository.commit);
        self.has_sources = true;
        self
    }

    /// Sets the number of commits that are fetched, or 0 for all of them. GitLab takes it from
    /// `GIT_DEPTH`.
    pub fn depth(mut self, commits: u64) -> Self {
        self.description["git_info"]["depth"] = Value::from(commits);
        self
    }

    /// Sets the lines of `script:`.
    pub fn script(self, lines: &[&str]) -> Self {
        self.stage("build_script", lines)
    }

    /// Sets the lines of `after_script:`.
    pub fn after_script(self, lines: &[&str]) -> Self {
        self.stage("after_script", lines)
    }

    /// Sets the lines of a sub-stage of run.
    ///
    /// A stage whose name GitLab Runner 19.4 does not have runs after the script.
    pub fn stage(mut self, name: &str, lines: &[&str]) -> Self {
        // GitLab sends the script as the step `script`, and GitLab Runner calls the stage
        // `build_script`.
        let step = if name == "build_script" {
            "script"
        } else {
            name
        };
        if let Some(steps) = self.description["steps"].as_array_mut() {
            steps.retain(|other| other["name"] != step);
        }
        let when = if step == "after_script" {
            "always"
        } else {
            "on_success"
        };
        let entry = json!({
            "name": step, "script": lines, "timeout": 3600, "when": when, "allow_failure": step != "script",
        });
        self.add("steps", entry)
    }

    /// Adds an entry to `variables:`.
    ///
    /// Its name may be that of a predefined variable, which the job then forges.
    pub fn variable(self, name: &str, value: &str) -> Self {
        let entry = json!({ "key": name, "value": value, "public": true });
        self.add("variables", entry)
    }

    /// Adds an entry of the type "file" to `variables:`. References in its value are not expanded.
    pub fn file_variable(self, name: &str, value: &str) -> Self {
        let entry =
            json!({ "key": name, "value": value, "public": true, "file": true, "raw": true });
        self.add("variables", entry)
    }

    /// Adds an entry with a name and an alias to `services:`.
    pub fn service(self, name: &str, alias: &str) -> Self {
        let entry = json!({ "name": name, "alias": alias, "entrypoint": null, "command": null, "variables": [] });
        self.service_of(entry)
    }

    /// Adds an entry to `services:`, in the form in which GitLab sends it.
    pub fn service_of(self, service: Value) -> Self {
        self.add("services", service)
    }

    /// Sets keys of `image:` beside the name, in the form in which GitLab sends them.
    pub fn image_options(mut self, options: Value) -> Self {
        for (name, value) in options.as_object().into_iter().flatten() {
            self.description["image"][name] = value.clone();
        }
        self
    }

    /// Adds artifacts: the files at these paths, if the script ended as `when` says.
    ///
    /// The values of `when` are `on_success`, `on_failure` and `always`.
    pub fn artifacts(self, paths: &[&str], when: &str) -> Self {
        let entry = json!({
            "name": "product", "untracked": false, "paths": paths, "when": when, "expire_in": "1 day",
            "artifact_type": "archive", "artifact_format": "zip",
        });
        self.add("artifacts", entry)
    }

    /// Adds a cache with this key. The values of `policy` are `pull-push`, `pull` and `push`.
    pub fn cache(self, key: &str, paths: &[&str], policy: &str) -> Self {
        let entry = json!({
            "key": key, "untracked": false, "paths": paths, "policy": policy, "when": "on_success",
            "fallback_keys": [],
        });
        self.add("cache", entry)
    }

    /// Sets `run:`, in the form in which GitLab sends it.
    pub fn functions(mut self, steps: Value) -> Self {
        self.description["run"] = steps;
        self
    }

    /// Has the job fetch the artifacts of the earlier job `id`.
    pub fn needs(self, id: u64) -> Self {
        let file = json!({ "filename": "product.zip", "size": 1 });
        let entry = json!({ "id": id, "name": "earlier", "artifacts_file": file });
        self.add("dependencies", entry)
    }

    /// Sets the time limit of all stages together, which has whole seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.description["runner_info"]["timeout"] = Value::from(timeout.as_secs());
        self
    }

    /// Sets `allow_failure:exit_codes`, which a server looks at.
    pub fn allow_failure(self, exit_codes: &[i64]) -> Self {
        Self {
            allowed_exit_codes: exit_codes.to_vec(),
            ..self
        }
    }

    /// Sets `retry:max` and `retry:when`, which a server looks at.
    pub fn retry(self, max: u32, when: &[&str]) -> Self {
        Self {
            max_retries: max,
            retry_when: when.iter().map(|reason| (*reason).to_owned()).collect(),
            ..self
        }
    }

    /// Replaces the whole script file of a stage, which GitLab Runner otherwise generates.
    pub fn stage_file(mut self, stage: &str, text: &str) -> Self {
        self.interventions.replace_script(stage, text);
        self
    }

    /// Replaces the file that `JOB_RESPONSE_FILE` names.
    pub fn response(mut self, response: Response) -> Self {
        self.interventions.response = response;
        self
    }

    /// Calls `action` once when the moment `when` comes, and does to the job what it returns.
    pub fn at(
        mut self,
        when: When,
        action: impl Fn(&Moment) -> Reaction + Send + Sync + 'static,
    ) -> Self {
        self.interventions.add_hook(when, action);
        self
    }

    /// Calls `action` once when the log of the job shows `text`.
    pub fn at_log(self, text: &str, action: impl Fn(&Moment) + Send + Sync + 'static) -> Self {
        self.at(When::Log(text.to_owned()), move |moment| {
            action(moment);
            Reaction::Continue
        })
    }

    /// Lets the runner react with `reaction` when its log shows `text`.
    pub fn interrupt_at(self, text: &str, reaction: Reaction) -> Self {
        self.at(When::Log(text.to_owned()), move |_| reaction)
    }

    /// Runs the job directly, with a runner that has the usual settings.
    #[track_caller]
    #[must_use]
    pub fn run(self) -> Report {
        Runner::default().run(&self)
    }

    /// Returns the path of the job's project on the server.
    pub(crate) fn project_path(&self) -> &str {
        &self.project_path
    }

    /// Returns the JSON of the job if no server sends it.
    pub(crate) fn to_json_without_server(&self) -> Value {
        self.to_json(self.id, TOKEN, &self.server)
    }

    /// Returns the JSON of the job, with the ID and the token that the GitLab at `server` gives it.
    pub(crate) fn to_json(&self, id: u64, token: &str, server: &str) -> Value {
        let (scheme, host) = server.split_once("://").unwrap_or(("https", server));
        let mut json = self.description.clone();
        json["id"] = Value::from(id);
        json["token"] = Value::from(token);
        json["job_info"]["id"] = Value::from(id);
        json["git_info"]["repo_url"] = Value::from(format!(
            "{scheme}://gitlab-ci-token:{token}@{host}/{}.git",
            self.project_path
        ));
        json["credentials"] = json!([
            { "type": "registry", "url": host, "username": "gitlab-ci-token", "password": token },
        ]);
        for dependency in json["dependencies"].as_array_mut().into_iter().flatten() {
            dependency["token"] = Value::from(token);
        }
        json
    }

    fn add(mut self, list: &str, entry: Value) -> Self {
        if let Some(list) = self.description[list].as_array_mut() {
            list.push(entry);
        }
        self
    }
}

fn default_description() -> Value {
    json!({
        "allow_git_fetch": true,
        "job_info": { "name": "test", "stage": "test", "project_id": 1, "project_name": "project" },
        "git_info": {
            "ref": "main", "ref_type": "branch", "depth": 20, "before_sha": "0".repeat(40), "sha": "0".repeat(40),
            "refspecs": ["+refs/heads/main:refs/remotes/origin/main"], "protected": false,
        },
        "runner_info": { "timeout": 600, "runner_session_url": null },
        "variables": [],
        "steps": [],
        "image": { "name": "", "entrypoint": null, "ports": [] },
        "services": [],
        "artifacts": [],
        "cache": [],
        "dependencies": [],
        "features": { "trace_sections": true, "failure_reasons": [
            "unknown_failure", "script_failure", "runner_system_failure", "job_execution_timeout", "job_canceled",
            "runner_interrupted",
        ] },
    })
}
