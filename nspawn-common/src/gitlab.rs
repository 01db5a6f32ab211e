//! What GitLab Runner tells a custom executor, and which of it can be believed.
//!
//! Facts: GitLab Runner's documentation of the custom executor, and its source
//! (`executors/custom/`, version 19.4).

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::name::MachineName;

/// A job response is read up to this size, in bytes.
const MAX_RESPONSE: u64 = 16 << 20;

/// Whether GitLab Runner called this program.
#[must_use]
pub fn is_active() -> bool {
    env::var_os("CUSTOM_ENV_CI_JOB_ID").is_some()
}

/// The value of a variable of the job, which the job is free to set; an empty one is none.
#[must_use]
pub fn variable(name: &str) -> Option<String> {
    env::var(format!("CUSTOM_ENV_{name}")).ok().filter(|value| !value.is_empty())
}

/// The exit statuses by which a driver tells GitLab Runner whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCodes {
    /// The job's: not retried.
    pub build: u8,
    /// The host's: retried.
    pub system: u8,
}

impl ExitCodes {
    /// As the runner gave them; 1 and 2, its own values, where it gave none.
    #[must_use]
    pub fn from_env() -> Self {
        let code = |variable: &str| env::var(variable).ok()?.parse().ok();
        Self {
            build: code("BUILD_FAILURE_EXIT_CODE").unwrap_or(1),
            system: code("SYSTEM_FAILURE_EXIT_CODE").unwrap_or(2),
        }
    }
}

/// The job that GitLab Runner is running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    id: u64,
    server: String,
    /// The `image:` of the job.
    pub image: Option<String>,
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
                let text =
                    read_response(&path).with_context(|| format!("can't use $JOB_RESPONSE_FILE {}", path.display()))?;
                Self::from_response(&text).with_context(|| format!("can't use $JOB_RESPONSE_FILE {}", path.display()))
            }
            None => Self::from_variables(variable),
        }
    }

    fn from_response(text: &[u8]) -> Result<Self> {
        // serde_json's own message is left out: it may quote the text, which holds tokens.
        let response: Value = serde_json::from_slice(text).ok().context("it is not JSON")?;
        Ok(Self {
            id: response["id"].as_u64().context("it has no job id")?,
            server: response["git_info"]["repo_url"].as_str().map(server_of).unwrap_or_default(),
            image: response["image"]["name"].as_str().filter(|name| !name.is_empty()).map(str::to_owned),
            timeout: response["runner_info"]["timeout"]
                .as_u64()
                .filter(|seconds| *seconds > 0)
                .map(Duration::from_secs),
        })
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let id = variable("CI_JOB_ID").unwrap_or_default();
        Ok(Self {
            id: id
                .parse()
                .ok()
                .with_context(|| format!("$CUSTOM_ENV_CI_JOB_ID is {id:?}, which is no job's number"))?,
            server: variable("CI_SERVER_URL").map(|url| server_of(&url)).unwrap_or_default(),
            image: variable("CI_JOB_IMAGE").filter(|name| !name.is_empty()),
            timeout: None,
        })
    }

    /// The name of the job's machine: the same in every stage, and another one for the job of the
    /// same number on another GitLab server.
    ///
    /// # Errors
    /// None in practice: the name is made of digits.
    pub fn machine_name(&self) -> Result<MachineName> {
        MachineName::new(format!("gitlab-{}-{:08x}", self.id, fnv1a(self.server.as_bytes())))
    }
}

/// Where the runner reads the script's own exit code (GitLab Runner 17.9 and newer).
#[must_use]
pub fn exit_code_file() -> Option<PathBuf> {
    env::var_os("BUILD_EXIT_CODE_FILE").filter(|path: &OsString| !path.is_empty()).map(PathBuf::from)
}

/// Writes the script's exit code for the runner; `None` removes what an earlier stage left, since
/// the runner never does.
///
/// # Errors
/// The file system's.
pub fn store_exit_code(path: &Path, code: Option<u8>) -> Result<()> {
    let done = match code {
        Some(code) => fs::write(path, code.to_string()),
        None => fs::remove_file(path).or_else(|error| match error.kind() {
            ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        }),
    };
    done.with_context(|| format!("can't write $BUILD_EXIT_CODE_FILE {}", path.display()))
}

fn read_response(path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(MAX_RESPONSE + 1).read_to_end(&mut text)?;
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
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: u64, repo_url: &str) -> Job {
        let text =
            format!(r#"{{"id": {id}, "git_info": {{"repo_url": "{repo_url}"}}, "image": {{"name": "debian"}}}}"#);
        Job::from_response(text.as_bytes()).unwrap()
    }

    #[test]
    fn names_differ_between_jobs_and_servers_but_not_between_tokens() {
        let name = |id, url| job(id, url).machine_name().unwrap();
        let here = name(7, "https://gitlab-ci-token:SECRET@a.example/g/p.git");
        assert_eq!(here, name(7, "https://gitlab-ci-token:OTHER@a.example/g/q.git"));
        assert_ne!(here, name(8, "https://gitlab-ci-token:SECRET@a.example/g/p.git"));
        assert_ne!(here, name(7, "https://gitlab-ci-token:SECRET@b.example/g/p.git"));
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
        assert_eq!(old.machine_name().unwrap(), job(7, "https://a.example/g.git").machine_name().unwrap());
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
