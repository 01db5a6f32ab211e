//! What GitLab sends: a job, and what happens to it from outside while it runs.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Moment, Report, Runner};

/// The job's token: no log may show it.
pub const TOKEN: &str = "glcbt-64_never-log-this";
const PROJECT: &str = "group/project";

/// A job.
#[derive(Debug)]
pub struct Job {
    pub(super) id: u64,
    pub(super) token: String,
    /// Where the project lies on the server, and below the builds directory.
    pub(super) project_path: String,
    pub(super) image: Option<String>,
    pub(super) server: String,
    pub(super) services: Vec<Value>,
    pub(super) image_options: Value,
    pub(super) project: u64,
    pub(super) is_protected: bool,
    /// The `variables:` of the job, which win over those that the runner predefines.
    pub(super) variables: Vec<(String, String)>,
    /// Which of them are of the type "file".
    pub(super) files: Vec<String>,
    /// What GitLab sent, where it was GitLab: sources, caches, artifacts.
    pub(super) sent: Value,
    pub(super) stages: Vec<(String, Content)>,
    pub(super) response: Response,
    pub(super) timeout: Duration,
    pub(super) hooks: Vec<Hook>,
}

/// What a stage runs.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Lines of the job's author, in the frame that GitLab Runner generates.
    Lines(Vec<String>),
    /// The whole script file.
    File(String),
}

/// The file that `JOB_RESPONSE_FILE` names.
#[derive(Clone, Debug)]
pub enum Response {
    /// The job.
    Genuine,
    /// There is none.
    Missing,
    /// These bytes.
    Content(Vec<u8>),
}

/// When something happens to a job.
#[derive(Clone, Debug)]
pub enum When {
    /// The running stage has written this text to the job's log.
    Log(String),
    /// The driver of this stage was just started.
    Start(&'static str),
}

/// What GitLab or the runner does then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    #[default]
    Continue,
    /// Cancels the running stage alone; `after_script` and what follows still run.
    Canceling,
    /// Aborts the job; cleanup follows.
    Abort,
}

type Action = Box<dyn Fn(&Moment) -> Then + Send>;

pub(super) struct Hook {
    pub(super) when: When,
    pub(super) action: Action,
}

impl fmt::Debug for Hook {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Hook({:?})", self.when)
    }
}

impl Job {
    /// A job with a number of its own that asks for `image`.
    #[must_use]
    pub fn new(image: &str) -> Self {
        Self {
            image: Some(image.to_owned()),
            ..Self::without_image()
        }
    }

    /// A job that asks for no image.
    #[must_use]
    pub fn without_image() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: u64::from(std::process::id()) * 1000 + COUNT.fetch_add(1, Ordering::Relaxed),
            token: TOKEN.to_owned(),
            project_path: PROJECT.to_owned(),
            image: None,
            server: "https://gitlab.example".to_owned(),
            services: Vec::new(),
            image_options: json!({}),
            project: 1,
            is_protected: false,
            variables: Vec::new(),
            files: Vec::new(),
            sent: Value::Null,
            stages: Vec::new(),
            response: Response::Genuine,
            timeout: Duration::from_secs(120),
            hooks: Vec::new(),
        }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its token, which no log may show.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Gives it another number.
    #[must_use]
    pub fn with_id(self, id: u64) -> Self {
        Self { id, ..self }
    }

    /// The lines of its `script:`.
    #[must_use]
    pub fn script(self, lines: &[&str]) -> Self {
        self.stage("build_script", lines)
    }

    /// The lines of its `after_script:`.
    #[must_use]
    pub fn after_script(self, lines: &[&str]) -> Self {
        self.stage("after_script", lines)
    }

    /// The lines of any stage of run. One of a name that this version of GitLab Runner doesn't
    /// know runs after the script.
    #[must_use]
    pub fn stage(self, name: &str, lines: &[&str]) -> Self {
        self.with_stage(
            name,
            Content::Lines(lines.iter().map(|line| (*line).to_owned()).collect()),
        )
    }

    /// A stage's whole script file, in place of the usual frame.
    #[must_use]
    pub fn stage_file(self, name: &str, text: &str) -> Self {
        self.with_stage(name, Content::File(text.to_owned()))
    }

    /// One of its `variables:`; that may be a forged one of the runner's.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The address of the GitLab that it comes from.
    #[must_use]
    pub fn server(self, url: &str) -> Self {
        Self {
            server: url.to_owned(),
            ..self
        }
    }

    /// One of its `services:`.
    #[must_use]
    pub fn service(mut self, name: &str, alias: &str) -> Self {
        self.services
            .push(json!({ "name": name, "alias": alias, "entrypoint": null, "command": null, "variables": {} }));
        self
    }

    /// One of its `services:`, as GitLab writes it.
    #[must_use]
    pub fn service_of(mut self, service: Value) -> Self {
        self.services.push(service);
        self
    }

    /// What its `image:` says beside the name, as GitLab writes it.
    #[must_use]
    pub fn image_options(self, options: Value) -> Self {
        Self {
            image_options: options,
            ..self
        }
    }

    /// The number of its project.
    #[must_use]
    pub fn project(self, project: u64) -> Self {
        Self { project, ..self }
    }

    /// Says that its branch is a protected one.
    #[must_use]
    pub fn protected(self) -> Self {
        Self {
            is_protected: true,
            ..self
        }
    }

    /// What is found in `JOB_RESPONSE_FILE`.
    #[must_use]
    pub fn response(self, response: Response) -> Self {
        Self { response, ..self }
    }

    /// The time limit of its stages together.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Has `action` called once, and its answer obeyed.
    #[must_use]
    pub fn at(mut self, when: When, action: impl Fn(&Moment) -> Then + Send + 'static) -> Self {
        self.hooks.push(Hook {
            when,
            action: Box::new(action),
        });
        self
    }

    /// Does something to the job from outside, once its log shows `text`.
    #[must_use]
    pub fn at_log(self, text: &str, action: impl Fn(&Moment) + Send + 'static) -> Self {
        self.at(When::Log(text.to_owned()), move |moment| {
            action(moment);
            Then::Continue
        })
    }

    /// Cancels it in this way once its log shows `text`.
    #[must_use]
    pub fn interrupt_at(self, text: &str, then: Then) -> Self {
        self.at(When::Log(text.to_owned()), move |_| then)
    }

    /// Runs it by a runner with the usual settings.
    #[track_caller]
    #[must_use]
    pub fn run(self) -> Report {
        Runner::default().run(&self)
    }

    pub(super) fn content(&self, stage: &str) -> Option<&Content> {
        self.stages
            .iter()
            .find(|(name, _)| name == stage)
            .map(|(_, content)| content)
    }

    pub(super) fn value(&self, variable: &str) -> Option<&str> {
        self.variables
            .iter()
            .rev()
            .find(|(name, _)| name == variable)
            .map(|(_, value)| &**value)
    }

    pub(super) fn with_stage(mut self, name: &str, content: Content) -> Self {
        self.stages.retain(|(other, _)| other != name);
        self.stages.push((name.to_owned(), content));
        self
    }

    /// The job's whole JSON.
    pub(super) fn to_json(&self) -> Value {
        let host = self
            .server
            .split_once("://")
            .map_or(&*self.server, |(_, host)| host);
        let variables: Vec<_> = self
            .variables
            .iter()
            .map(|(key, value)| json!({ "key": key, "value": value, "public": true }))
            .collect();
        let mut image =
            json!({ "name": self.image.as_deref().unwrap_or_default(), "entrypoint": null });
        for (name, value) in self.image_options.as_object().into_iter().flatten() {
            image[name] = value.clone();
        }
        json!({
            "id": self.id,
            "token": self.token,
            "job_info": { "name": "test", "stage": "test", "project_id": self.project, "project_name": "project" },
            "git_info": {
                "repo_url": format!("https://gitlab-ci-token:{TOKEN}@{host}/{}.git", self.project_path),
                "ref": "main",
                "protected": self.is_protected,
            },
            "variables": variables,
            "runner_info": { "timeout": self.timeout.as_secs() },
            "image": image,
            "services": self.services,
            "credentials": [{ "type": "registry", "url": host, "username": "gitlab-ci-token", "password": TOKEN }],
        })
    }
}
