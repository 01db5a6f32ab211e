//! Job as the runner receives it from GitLab.

use std::time::Duration;

use serde_json::Value;

use crate::job::Job;

/// A job as the runner receives it.
#[derive(Clone, Debug)]
pub struct ReceivedJob {
    /// ID of the job.
    pub id: u64,
    /// Token of the job, which no log may show.
    pub token: String,
    /// Path of the project on the server, and below the builds directory.
    pub project_path: String,
    /// Image of the job, if it requests one.
    pub image: Option<String>,
    /// Address of the server.
    pub server: String,
    /// Services of the job, as GitLab sends them.
    pub services: Vec<Value>,
    /// Variables of the job, which have priority over those that the runner predefines.
    pub variables: Vec<(String, String)>,
    /// Names of the variables that are of the type "file".
    pub files: Vec<String>,
    /// Sub-stages of run that the author of the job has given, in order.
    pub stages: Vec<(String, Content)>,
    /// Time limit of all stages together.
    pub timeout: Duration,
    /// Whole JSON, for sources, caches and artifacts.
    pub json: Value,
    /// True if a server has sent the job.
    ///
    /// Without a server the job fetches no sources. Its log does not show the commands either, so
    /// that tests can compare the log as a whole.
    pub is_from_server: bool,
}

/// Content of a stage.
#[derive(Clone, Debug)]
pub enum Content {
    /// Lines of the author, to which GitLab Runner adds a frame.
    Lines(Vec<String>),
    /// Whole script file.
    File(String),
}

impl ReceivedJob {
    /// Receives the JSON that a server sends, and returns `None` if a necessary part is missing.
    pub fn from_server(json: Value) -> Option<Self> {
        let (server, project_path) = parse_repository_url(json["git_info"]["repo_url"].as_str()?)?;
        let image = json["image"]["name"].as_str();
        let mut job = Self {
            id: json["id"].as_u64()?,
            token: json["token"].as_str()?.to_owned(),
            project_path,
            image: image.filter(|name| !name.is_empty()).map(str::to_owned),
            server,
            services: json["services"].as_array().cloned().unwrap_or_default(),
            variables: Vec::new(),
            files: Vec::new(),
            stages: Vec::new(),
            timeout: Duration::from_secs(json["runner_info"]["timeout"].as_u64()?),
            json: Value::Null,
            is_from_server: true,
        };
        json["job_info"]["project_id"].as_u64()?;
        for variable in json["variables"].as_array()? {
            job.add_variable(variable)?;
        }
        for step in json["steps"].as_array()? {
            job.add_step(step)?;
        }
        Some(Self { json, ..job })
    }

    /// Receives a job that no server sends.
    pub fn without_server(job: &Job) -> Self {
        let json = job.to_json_without_server();
        let Some(received) = Self::from_server(json) else {
            unreachable!("the JSON of a job is complete");
        };
        let mut received = Self {
            is_from_server: false,
            ..received
        };
        for (stage, text) in &job.interventions.scripts {
            received.set_stage(stage, Content::File(text.clone()));
        }
        received
    }

    /// Returns the content of a stage.
    pub fn content(&self, stage: &str) -> Option<&Content> {
        self.stages
            .iter()
            .find(|(name, _)| name == stage)
            .map(|(_, content)| content)
    }

    /// Returns the value of one of the job's variables.
    pub fn value(&self, variable: &str) -> Option<&str> {
        self.variables
            .iter()
            .rev()
            .find(|(name, _)| name == variable)
            .map(|(_, value)| &**value)
    }

    fn add_variable(&mut self, variable: &Value) -> Option<()> {
        let name = variable["key"].as_str()?.to_owned();
        let value = variable["value"].as_str()?.to_owned();
        if variable["file"] == true {
            self.files.push(name.clone());
        }
        self.variables.push((name, value));
        Some(())
    }

    fn add_step(&mut self, step: &Value) -> Option<()> {
        let lines = step["script"].as_array()?.iter();
        let lines = lines.filter_map(Value::as_str).map(str::to_owned).collect();
        let stage = match step["name"].as_str()? {
            "script" => "build_script",
            name => name,
        };
        self.set_stage(stage, Content::Lines(lines));
        Some(())
    }

    fn set_stage(&mut self, name: &str, content: Content) {
        self.stages.retain(|(other, _)| other != name);
        self.stages.push((name.to_owned(), content));
    }
}

/// Splits the URL of a repository into the address of the server and the path of the project.
fn parse_repository_url(url: &str) -> Option<(String, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let without_password = rest.split_once('@').map_or(rest, |(_, rest)| rest);
    let (host, path) = without_password.split_once('/')?;
    let project_path = path.trim_end_matches(".git").to_owned();
    Some((format!("{scheme}://{host}"), project_path))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sent() -> Value {
        json!({
            "id": 7, "token": "secret", "job_info": { "project_id": 3 }, "runner_info": { "timeout": 60 },
            "git_info": { "repo_url": "http://gitlab-ci-token:secret@198.51.100.7:8080/group/sub/project.git" },
            "variables": [{ "key": "A", "value": "b" }, { "key": "F", "value": "content", "file": true }],
            "steps": [{ "name": "script", "script": ["x"] }, { "name": "after_script", "script": ["y"] }],
            "image": { "name": "" },
        })
    }

    #[test]
    fn parts_of_a_job_are_found() {
        let job = ReceivedJob::from_server(sent()).unwrap();
        assert_eq!(
            (
                job.id,
                &*job.token,
                &job.json["job_info"]["project_id"],
                job.image.as_deref()
            ),
            (7, "secret", &json!(3), None)
        );
        assert_eq!(
            (&*job.server, &*job.project_path),
            ("http://198.51.100.7:8080", "group/sub/project")
        );
        assert_eq!(
            (job.value("F"), &*job.files, job.timeout),
            (
                Some("content"),
                &["F".to_owned()][..],
                Duration::from_secs(60)
            )
        );
        assert!(
            matches!(job.content("build_script"), Some(Content::Lines(lines)) if lines == &["x"])
        );
        assert!(job.content("after_script").is_some());
    }

    #[test]
    fn incomplete_job_is_refused() {
        for part in [
            "id",
            "token",
            "job_info",
            "runner_info",
            "git_info",
            "variables",
            "steps",
        ] {
            let mut sent = sent();
            sent[part] = Value::Null;
            assert!(ReceivedJob::from_server(sent).is_none(), "{part}");
        }
    }

    #[test]
    fn job_without_a_server_has_all_its_parts() {
        let job = Job::new("a")
            .script(&["x"])
            .script(&["y"])
            .stage("step_new", &["z"])
            .stage_file("after_script", "#!/bin/sh");
        let received = ReceivedJob::without_server(&job.variable("A", "b").with_id(7));
        assert_eq!(
            (received.id, received.image.as_deref(), &*received.server),
            (7, Some("a"), "https://gitlab.example")
        );
        assert_eq!(received.value("A"), Some("b"));
        let stages: Vec<_> = received.stages.iter().map(|(name, _)| &**name).collect();
        assert_eq!(stages, ["build_script", "step_new", "after_script"]);
        let lines = received.content("build_script");
        assert!(matches!(lines, Some(Content::Lines(lines)) if lines == &["y"]));
        assert!(matches!(
            received.content("after_script"),
            Some(Content::File(_))
        ));
    }
}
