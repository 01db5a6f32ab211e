//! A job as GitLab sends it to a runner.

use std::time::Duration;

use serde_json::Value;

use super::job::{Content, Job, Response};

impl Job {
    /// The job that GitLab has sent to a runner; `None` if that is none.
    #[must_use]
    pub fn from_gitlab(sent: Value) -> Option<Self> {
        let url = sent["git_info"]["repo_url"].as_str()?;
        let (scheme, rest) = url.split_once("://")?;
        let (host, path) = rest
            .split_once('@')
            .map_or(rest, |(_, rest)| rest)
            .split_once('/')?;
        let mut job = Self {
            id: sent["id"].as_u64()?,
            token: sent["token"].as_str()?.to_owned(),
            project_path: path.trim_end_matches(".git").to_owned(),
            project: sent["job_info"]["project_id"].as_u64()?,
            is_protected: sent["git_info"]["protected"] == true,
            server: format!("{scheme}://{host}"),
            image: sent["image"]["name"]
                .as_str()
                .filter(|name| !name.is_empty())
                .map(str::to_owned),
            services: sent["services"].as_array().cloned().unwrap_or_default(),
            response: Response::Content(sent.to_string().into_bytes()),
            timeout: Duration::from_secs(sent["runner_info"]["timeout"].as_u64()?),
            ..Self::without_image()
        };
        for variable in sent["variables"].as_array()? {
            let (name, value) = (variable["key"].as_str()?, variable["value"].as_str()?);
            job = job.variable(name, value);
            job.files
                .extend((variable["file"] == true).then(|| name.to_owned()));
        }
        for step in sent["steps"].as_array()? {
            let lines = step["script"]
                .as_array()?
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect();
            let stage = if step["name"] == "script" {
                "build_script"
            } else {
                step["name"].as_str()?
            };
            job = job.with_stage(stage, Content::Lines(lines));
        }
        Some(Self { sent, ..job })
    }
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
    fn it_says_what_is_to_be_done() {
        let job = Job::from_gitlab(sent()).unwrap();
        assert_eq!(
            (job.id, &*job.token, job.project, job.image.as_deref()),
            (7, "secret", 3, None)
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
    fn what_is_no_job_is_refused() {
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
            assert!(Job::from_gitlab(sent).is_none(), "{part}");
        }
    }
}
