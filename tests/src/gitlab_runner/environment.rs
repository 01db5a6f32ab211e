//! Environment variables of a driver, which include the variables of the job.

use std::env;

use serde_json::Value;

use super::received::ReceivedJob;
use super::runner::Runner;
use super::workspace::Workspace;

/// Names and values of variables, in order. If a name occurs twice, the last value counts.
pub type Variables = Vec<(String, String)>;

/// Returns the variables of the job, after those that the runner predefines.
///
/// The builds directory is unknown until config has ended.
pub fn job_variables(job: &ReceivedJob, builds_dir: Option<&str>) -> Variables {
    let project_dir = builds_dir
        .map(|builds_dir| project_dir(job, builds_dir))
        .unwrap_or_default();
    let id = job.id.to_string();
    let predefined = [
        ("CI", "true"),
        ("GITLAB_CI", "true"),
        ("CI_SERVER_URL", &job.server),
        ("CI_JOB_ID", &id),
        ("CI_JOB_NAME", "test"),
        ("CI_JOB_STAGE", "test"),
        ("CI_JOB_TOKEN", &job.token),
        ("CI_PROJECT_PATH", &job.project_path),
        ("CI_RUNNER_ID", "1"),
        ("CI_CONCURRENT_ID", "0"),
        ("CI_CONCURRENT_PROJECT_ID", "0"),
        ("CI_DISPOSABLE_ENVIRONMENT", "true"),
        ("CI_BUILDS_DIR", builds_dir.unwrap_or_default()),
        ("CI_PROJECT_DIR", &project_dir),
    ];
    let mut all = to_variables(&predefined);
    if let Some(image) = &job.image {
        all.push(("CI_JOB_IMAGE".to_owned(), image.clone()));
    }
    all.extend(job.variables.iter().cloned());
    all
}

/// Returns the directory of the job's sources.
pub fn project_dir(job: &ReceivedJob, builds_dir: &str) -> String {
    format!("{builds_dir}/{}", job.project_path)
}

/// Returns the whole environment of a driver.
pub fn driver_variables(
    runner: &Runner,
    job: &ReceivedJob,
    files: &Workspace,
    config: Option<&Value>,
) -> Variables {
    let mut all = runner_variables(runner);
    all.extend(executor_variables(runner, files));
    all.extend(config_variables(config));
    let builds_dir = config.map(|config| runner.builds_dir(config));
    for (name, value) in job_variables(job, builds_dir.as_deref()) {
        all.push((format!("CUSTOM_ENV_{name}"), value));
    }
    all.push(("CUSTOM_ENV_CI_JOB_SERVICES".to_owned(), services(job)));
    all
}

fn runner_variables(runner: &Runner) -> Variables {
    let path = env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    let mut all = to_variables(&[("PATH", &path), ("HOME", "/root"), ("USER", "root")]);
    all.extend(runner.environment.iter().cloned());
    all
}

fn executor_variables(runner: &Runner, files: &Workspace) -> Variables {
    let (build_failure, system_failure) = (
        runner.build_failure.to_string(),
        runner.system_failure.to_string(),
    );
    let mut all = to_variables(&[
        ("TMPDIR", &files.path().to_string_lossy()),
        ("BUILD_FAILURE_EXIT_CODE", &build_failure),
        ("SYSTEM_FAILURE_EXIT_CODE", &system_failure),
    ]);
    if !runner.is_old {
        all.extend(to_variables(&[
            ("BUILD_EXIT_CODE_FILE", &files.exit_code().to_string_lossy()),
            ("JOB_RESPONSE_FILE", &files.response().to_string_lossy()),
        ]));
    }
    all
}

/// Returns the variables that config has set with `job_env`.
fn config_variables(config: Option<&Value>) -> Variables {
    let entries = config
        .and_then(|config| config["job_env"].as_object())
        .into_iter()
        .flatten();
    entries
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}

fn to_variables(pairs: &[(&str, &str)]) -> Variables {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Returns the services as JSON, or an empty string if the job has none.
fn services(job: &ReceivedJob) -> String {
    if job.services.is_empty() {
        String::new()
    } else {
        Value::from(job.services.clone()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Job;

    /// Returns the environment of a driver for `job`.
    fn environment(job: &Job, config: Option<&Value>) -> Variables {
        let job = ReceivedJob::without_server(job);
        let files = Workspace::new(&job.json, &Default::default());
        driver_variables(&Runner::default(), &job, &files, config)
    }

    #[test]
    fn job_variables_keep_their_prefix_and_override_predefined_ones() {
        let job = Job::new("a")
            .variable("CI_JOB_ID", "forged")
            .variable("PATH", "/forged");
        let all = environment(&job, None);
        let last = |name: &str| {
            all.iter()
                .rev()
                .find(|(other, _)| other == name)
                .map(|(_, value)| &**value)
        };
        assert_eq!(last("CUSTOM_ENV_CI_JOB_ID"), Some("forged"));
        assert_ne!(last("PATH"), Some("/forged"));
        assert_eq!(last("CUSTOM_ENV_CI_PROJECT_DIR"), Some(""));
        assert_eq!(last("CUSTOM_ENV_CI_JOB_SERVICES"), Some(""));
    }

    #[test]
    fn services_are_passed_as_json() {
        let job = Job::new("a").service("registry.example/db:1", "db");
        let all = environment(&job, None);
        let (name, value) = all.last().unwrap();
        let value: Value = serde_json::from_str(value).unwrap();
        assert_eq!(
            (&**name, &value[0]["alias"]),
            ("CUSTOM_ENV_CI_JOB_SERVICES", &Value::from("db"))
        );
    }

    #[test]
    fn variables_of_config_precede_those_of_the_job() {
        let job = Job::new("a").variable("X", "job");
        let config = serde_json::json!({ "builds_dir": "/b", "job_env": { "Y": "1", "CUSTOM_ENV_X": "config" } });
        let all = environment(&job, Some(&config));
        let index = |name: &str, value: &str| {
            all.iter()
                .position(|entry| *entry == (name.into(), value.into()))
        };
        assert!(index("Y", "1").unwrap() < index("CUSTOM_ENV_X", "job").unwrap());
        assert!(index("CUSTOM_ENV_X", "config").unwrap() < index("CUSTOM_ENV_X", "job").unwrap());
        assert!(index("CUSTOM_ENV_CI_PROJECT_DIR", "/b/group/project").is_some());
    }
}
