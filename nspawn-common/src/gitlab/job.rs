//! The job that GitLab Runner runs.

use std::env;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::gitlab::environment::variable;
use crate::gitlab::services::{self, Service};
use crate::gitlab::variables::Variables;
use crate::gitlab::wishes::Wishes;
use crate::machine::name::MachineName;

/// Variable that tells whether the branch or tag of a job is protected: `true` or `false`.
const REF_PROTECTED: &str = "CI_COMMIT_REF_PROTECTED";

/// Maximum size of a job response, in bytes.
const MAX_RESPONSE: u64 = 16 << 20;

/// Properties of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    id: u64,
    /// Scheme, host and port of the GitLab server.
    server: String,
    project: Option<Project>,
    /// `image:` of the job.
    pub image: Option<String>,
    /// `image:entrypoint`: the program, with arguments, that runs the job's scripts.
    pub entrypoint: Vec<String>,
    /// `image:docker:user`: the user that runs the job's scripts.
    pub user: Option<String>,
    /// `services:` of the job.
    pub services: Vec<Service>,
    /// Everything else that the job asks for.
    pub wishes: Wishes,
    /// Time limit of the job, if it is known.
    pub timeout: Option<Duration>,
}

/// Project of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Project {
    id: u64,
    /// True if the branch or tag of the job is protected.
    is_protected: bool,
}

impl Job {
    /// Reads the job from the file that `JOB_RESPONSE_FILE` names, which a job can't forge.
    ///
    /// Older runners have no such file. Then the job is read from its `CUSTOM_ENV_…` variables.
    pub fn from_env() -> Result<Self> {
        match env::var_os("JOB_RESPONSE_FILE").filter(|path| !path.is_empty()) {
            Some(path) => {
                let path = PathBuf::from(path);
                read_response(&path)
                    .and_then(|text| Self::from_response(&text))
                    .with_context(|| format!("can't use $JOB_RESPONSE_FILE {}", path.display()))
            }
            None => Self::from_variables(variable),
        }
    }

    /// Reads the job from the JSON of its response.
    pub fn from_response(text: &[u8]) -> Result<Self> {
        // serde_json's own message is left out: it may quote the text, which contains tokens.
        let response: Value = serde_json::from_slice(text)
            .ok()
            .context("it is not JSON")?;
        let image = &response["image"];
        let variables = Variables::from_list(&response["variables"]);
        let services: Vec<_> = response["services"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|service| Service::from_json(service, &variables))
            .collect();
        let server = response["git_info"]["repo_url"].as_str().map(server_of);
        let image_name = image["name"].as_str().filter(|name| !name.is_empty());
        let image_name = image_name.map(|name| variables.expand(name));
        let timeout = response["runner_info"]["timeout"].as_u64();
        Ok(Self {
            id: response["id"].as_u64().context("it has no job ID")?,
            server: server.unwrap_or_default(),
            project: Project::from_response(&response, &variables),
            wishes: Wishes::from_response(&response, image_name.as_deref(), &services),
            image: image_name,
            entrypoint: services::words(&image["entrypoint"]),
            user: services::user_of(image).map(|user| variables.expand(&user)),
            services,
            timeout: timeout
                .filter(|seconds| *seconds > 0)
                .map(Duration::from_secs),
        })
    }

    /// Reads the job from its variables, of which `variable` returns the value by the name.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let id = variable("CI_JOB_ID").unwrap_or_default();
        let services = variable("CI_JOB_SERVICES").unwrap_or_else(|| "[]".to_owned());
        // The job may have set this variable to text that is not JSON.
        let services: Value = serde_json::from_str(&services).unwrap_or_default();
        let server = variable("CI_SERVER_URL").map(|url| server_of(&url));
        let no_variables = Variables::default();
        Ok(Self {
            id: id
                .parse()
                .ok()
                .with_context(|| format!("$CUSTOM_ENV_CI_JOB_ID must be a number, not {id:?}"))?,
            server: server.unwrap_or_default(),
            project: None,
            image: variable("CI_JOB_IMAGE").filter(|name| !name.is_empty()),
            entrypoint: Vec::new(),
            user: None,
            wishes: Wishes::default(),
            services: services
                .as_array()
                .into_iter()
                .flatten()
                .map(|service| Service::from_json(service, &no_variables))
                .collect(),
            timeout: None,
        })
    }

    /// Returns the name of the job's machine, which is the same in each stage.
    ///
    /// Jobs with the same number on different GitLab servers have different machines.
    pub fn machine_name(&self) -> Result<MachineName> {
        MachineName::new(format!("gitlab-{}-{}", self.id, self.server_hash()))
    }

    /// Returns an identifier of the job's project that is unique on this host.
    ///
    /// Returns `None` if only variables identify the project, since the job can forge them, or if
    /// the response does not tell whether the branch is protected. Jobs of protected branches have
    /// another identifier: they must not read what other jobs write.
    pub fn project(&self) -> Option<String> {
        let project = self.project?;
        let kind = if project.is_protected {
            "protected"
        } else {
            "open"
        };
        Some(format!("{}-{}-{kind}", self.server_hash(), project.id))
    }

    fn server_hash(&self) -> String {
        format!("{:08x}", fnv1a(self.server.as_bytes()))
    }
}

impl Project {
    // GitLab before 18.3 sends only the variable.
    fn from_response(response: &Value, variables: &Variables) -> Option<Self> {
        let from_variable = || match variables.first(REF_PROTECTED)? {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        };
        let is_protected = response["git_info"]["protected"].as_bool();
        Some(Self {
            id: response["job_info"]["project_id"].as_u64()?,
            is_protected: is_protected.or_else(from_variable)?,
        })
    }
}

fn read_response(path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?
        .take(MAX_RESPONSE + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > MAX_RESPONSE {
        bail!("it is larger than {} MiB", MAX_RESPONSE >> 20);
    }
    Ok(text)
}

// "https://gitlab-ci-token:TOKEN@host:8080/group/project.git" -> "https://host:8080"
fn server_of(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}")
}

// Returns the FNV-1a hash of 32 bits. Names must stay the same when the program is built again,
// which the standard library's hasher does not promise.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: u64, repo_url: &str) -> Job {
        let text = format!(
            r#"{{"id": {id}, "git_info": {{"repo_url": "{repo_url}"}}, "image": {{"name": "debian"}}}}"#
        );
        Job::from_response(text.as_bytes()).unwrap()
    }

    #[test]
    fn machine_name_depends_on_job_and_server_but_not_on_the_token() {
        let name = |id, url| job(id, url).machine_name().unwrap();
        let first = name(7, "https://gitlab-ci-token:SECRET@a.example/g/p.git");
        assert_eq!(
            first,
            name(7, "https://gitlab-ci-token:OTHER@a.example/g/q.git")
        );
        assert_ne!(
            first,
            name(8, "https://gitlab-ci-token:SECRET@a.example/g/p.git")
        );
        assert_ne!(
            first,
            name(7, "https://gitlab-ci-token:SECRET@b.example/g/p.git")
        );
        assert!(first.as_str().starts_with("gitlab-7-"), "{first}");
    }

    #[test]
    fn largest_job_number_makes_a_valid_name() {
        assert!(job(u64::MAX, "https://a").machine_name().is_ok());
    }

    #[test]
    fn job_is_read_from_variables_without_a_response() {
        let variables = |name: &str| match name {
            "CI_JOB_ID" => Some("7".to_owned()),
            "CI_SERVER_URL" => Some("https://a.example".to_owned()),
            "CI_JOB_IMAGE" => Some(String::new()),
            _ => None,
        };
        let old = Job::from_variables(variables).unwrap();
        assert_eq!(old.image, None);
        assert_eq!(
            old.machine_name().unwrap(),
            job(7, "https://a.example/g.git").machine_name().unwrap()
        );
        assert!(Job::from_variables(|_| Some("../7".into())).is_err());
    }

    #[test]
    fn protection_comes_from_the_first_variable_if_the_response_lacks_it() {
        let variable = |value: &str| format!(r#"{{"key": "{REF_PROTECTED}", "value": "{value}"}}"#);
        let kind = |git_info: &str, values: &[&str]| {
            let variables: Vec<_> = values.iter().map(|value| variable(value)).collect();
            let text = format!(
                r#"{{"id": 7, "git_info": {git_info}, "job_info": {{"project_id": 3}}, "variables": [{}]}}"#,
                variables.join(",")
            );
            let project = Job::from_response(text.as_bytes()).unwrap().project();
            project.map(|project| project.rsplit('-').next().unwrap().to_owned())
        };
        for (git_info, values, expected) in [
            (r#"{"protected": true}"#, &["false"][..], Some("protected")),
            (r#"{"protected": false}"#, &["true"], Some("open")),
            (r#"{"protected": null}"#, &["true"], Some("protected")),
            ("{}", &["true", "false"], Some("protected")),
            ("{}", &["false", "true"], Some("open")),
            ("{}", &["", "true"], None),
            ("{}", &[], None),
            (r#"{"protected": "true"}"#, &[], None),
        ] {
            assert_eq!(
                kind(git_info, values).as_deref(),
                expected,
                "{git_info} {values:?}"
            );
        }
    }

    #[test]
    fn malformed_response_is_refused_without_quoting_it() {
        for text in ["", "{", "[]", "{\"id\":\"7\"}", "\"TOKEN\""] {
            let error = format!("{:#}", Job::from_response(text.as_bytes()).unwrap_err());
            assert!(!error.contains("TOKEN"), "{error}");
        }
    }
}
