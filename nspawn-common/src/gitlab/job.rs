//! The job, by what GitLab itself says of it.

use std::env;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::gitlab::services;
use crate::gitlab::services::Service;
use crate::gitlab::variable;
use crate::gitlab::variables::Variables;
use crate::machine::name::MachineName;

/// A job response is read up to this size, in bytes.
const MAX_RESPONSE: u64 = 16 << 20;

/// The job that GitLab Runner is running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    id: u64,
    server: String,
    /// The number of its project, and whether its branch or tag is a protected one; where that is known.
    project: Option<(u64, bool)>,
    /// The `image:` of the job.
    pub image: Option<String>,
    /// The program, with arguments, that the image's scripts are to be run by: `image:entrypoint`.
    pub entrypoint: Vec<String>,
    /// The user that its scripts are to be run as: `image:docker:user`.
    pub user: Option<String>,
    /// Whether it wants its images fetched anew: `pull_policy: always`.
    pub wants_pulls: bool,
    /// Its `services:`.
    pub services: Vec<Service>,
    /// How long the job may run, where that is known.
    pub timeout: Option<Duration>,
}

impl Job {
    /// The job from the file that `JOB_RESPONSE_FILE` names: the one source that a job can't forge.
    /// Runners from before that file are believed in their `CUSTOM_ENV_…` variables.
    ///
    /// # Errors
    /// A file that is named but can't be read, is too large, or is not a job.
    pub fn from_env() -> Result<Self> {
        match env::var_os("JOB_RESPONSE_FILE").filter(|path| !path.is_empty()) {
            Some(path) => {
                let path = PathBuf::from(path);
                let text = read_response(&path)
                    .with_context(|| format!("can't use $JOB_RESPONSE_FILE {}", path.display()))?;
                Self::from_response(&text)
                    .with_context(|| format!("can't use $JOB_RESPONSE_FILE {}", path.display()))
            }
            None => Self::from_variables(variable),
        }
    }

    fn from_response(text: &[u8]) -> Result<Self> {
        // serde_json's own message is left out: it may quote the text, which holds tokens.
        let response: Value = serde_json::from_slice(text)
            .ok()
            .context("it is not JSON")?;
        let (image, variables) = (
            &response["image"],
            Variables::of_response(&response["variables"]),
        );
        let is_protected = response["git_info"]["protected"].as_bool().unwrap_or(false);
        let policies = |image: &Value| {
            image["pull_policy"]
                .as_array()
                .is_some_and(|all| all.iter().any(|it| it == "always"))
        };
        let services = response["services"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        Ok(Self {
            id: response["id"].as_u64().context("it has no job id")?,
            server: response["git_info"]["repo_url"]
                .as_str()
                .map(server_of)
                .unwrap_or_default(),
            project: response["job_info"]["project_id"]
                .as_u64()
                .map(|project| (project, is_protected)),
            image: image["name"]
                .as_str()
                .filter(|name| !name.is_empty())
                .map(|name| variables.expand(name)),
            entrypoint: services::words(&image["entrypoint"]),
            user: services::user_of(image).map(|user| variables.expand(&user)),
            wants_pulls: std::iter::once(image).chain(services).any(policies),
            services: services
                .iter()
                .map(|service| Service::new(service, &variables))
                .collect(),
            timeout: response["runner_info"]["timeout"]
                .as_u64()
                .filter(|seconds| *seconds > 0)
                .map(Duration::from_secs),
        })
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let id = variable("CI_JOB_ID").unwrap_or_default();
        let services = variable("CI_JOB_SERVICES").unwrap_or_else(|| "[]".to_owned());
        // Which a job can forge to anything.
        let services: Value = serde_json::from_str(&services).unwrap_or_default();
        let none = Variables::default();
        Ok(Self {
            id: id.parse().ok().with_context(|| {
                format!("$CUSTOM_ENV_CI_JOB_ID is {id:?}, which is no job's number")
            })?,
            server: variable("CI_SERVER_URL")
                .map(|url| server_of(&url))
                .unwrap_or_default(),
            project: None,
            image: variable("CI_JOB_IMAGE").filter(|name| !name.is_empty()),
            entrypoint: Vec::new(),
            user: None,
            wants_pulls: false,
            services: services
                .as_array()
                .into_iter()
                .flatten()
                .map(|service| Service::new(service, &none))
                .collect(),
            timeout: None,
        })
    }

    /// The name of the job's machine: the same in every stage, and another one for the job of the
    /// same number on another GitLab server.
    ///
    /// # Errors
    /// None in practice: the name is made of digits.
    pub fn machine_name(&self) -> Result<MachineName> {
        MachineName::new(format!(
            "gitlab-{}-{:08x}",
            self.id,
            fnv1a(self.server.as_bytes())
        ))
    }

    /// What its project, and nobody else's, is known by on this host; `None` where only the job itself tells of its
    /// project. Protected branches have another one: what others write there, they must not read.
    #[must_use]
    pub fn project(&self) -> Option<String> {
        let (project, is_protected) = self.project?;
        let kind = if is_protected { "protected" } else { "open" };
        Some(format!(
            "{:08x}-{project}-{kind}",
            fnv1a(self.server.as_bytes())
        ))
    }
}

fn read_response(path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?
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

// FNV-1a, 32 bits: names must stay the same when the program is rebuilt, which the standard
// library's hasher doesn't promise.
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
    fn names_differ_between_jobs_and_servers_but_not_between_tokens() {
        let name = |id, url| job(id, url).machine_name().unwrap();
        let here = name(7, "https://gitlab-ci-token:SECRET@a.example/g/p.git");
        assert_eq!(
            here,
            name(7, "https://gitlab-ci-token:OTHER@a.example/g/q.git")
        );
        assert_ne!(
            here,
            name(8, "https://gitlab-ci-token:SECRET@a.example/g/p.git")
        );
        assert_ne!(
            here,
            name(7, "https://gitlab-ci-token:SECRET@b.example/g/p.git")
        );
        assert!(here.as_str().starts_with("gitlab-7-"), "{here}");
    }

    #[test]
    fn the_largest_job_number_still_makes_a_name() {
        assert!(job(u64::MAX, "https://a").machine_name().is_ok());
    }

    #[test]
    fn old_runners_are_read_by_their_variables() {
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
    fn a_response_that_is_no_job_is_refused_without_quoting_it() {
        for text in ["", "{", "[]", "{\"id\":\"7\"}", "\"TOKEN\""] {
            let error = format!("{:#}", Job::from_response(text.as_bytes()).unwrap_err());
            assert!(!error.contains("TOKEN"), "{error}");
        }
    }
}
