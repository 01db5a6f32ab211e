//! Lines of the scripts that call gitlab-runner in the machine, for caches and artifacts.

use serde_json::Value;

use super::received::ReceivedJob;
use super::scripts::command;

/// Returns the relative path from the project to the root directory.
fn path_to_root(project_dir: &str) -> String {
    "../".repeat(project_dir.matches('/').count())
}

/// Returns the lines of `restore_cache` (shells/abstract.go, `cacheExtractor`).
pub fn restore(job: &ReceivedJob, project_dir: &str, cache_dir: &str) -> Vec<String> {
    let pull = |cache: &&Value| cache["policy"] != "push";
    let lines = list(job, "cache").filter(pull).map(|cache| {
        let (key, file) = key_and_file(job, cache, project_dir, cache_dir);
        let extract = command(&[
            "gitlab-runner",
            "cache-extractor",
            "--file",
            &file,
            "--timeout",
            "10",
        ]);
        let message = format!("Checking cache for {key}...");
        guarded(
            "Extracting cache",
            &message,
            &with_result(
                &extract,
                "Successfully extracted cache",
                "Failed to extract cache",
            ),
        )
    });
    lines.collect()
}

/// Returns the lines of `archive_cache`, or of `archive_cache_on_failure`.
pub fn archive(
    job: &ReceivedJob,
    project_dir: &str,
    cache_dir: &str,
    is_success: bool,
) -> Vec<String> {
    let push = |cache: &&Value| cache["policy"] != "pull" && is_due(cache, is_success);
    let lines = list(job, "cache").filter(push).map(|cache| {
        let (key, file) = key_and_file(job, cache, project_dir, cache_dir);
        let words = [
            "gitlab-runner",
            "cache-archiver",
            "--file",
            &file,
            "--timeout",
            "10",
        ];
        let archive = command(&[&words[..], &paths(cache)].concat());
        let message = format!("Creating cache {key}...");
        guarded(
            "Creating cache",
            &message,
            &with_result(&archive, "Created cache", "Failed to create cache"),
        )
    });
    lines.collect()
}

/// Returns the lines of `download_artifacts`.
pub fn download(job: &ReceivedJob) -> Vec<String> {
    let lines = list(job, "dependencies").map(|other| {
        let (id, token) = (
            other["id"].to_string(),
            other["token"].as_str().unwrap_or_default(),
        );
        let words = [
            "gitlab-runner",
            "artifacts-downloader",
            "--url",
            &job.server,
            "--token",
            token,
            "--id",
            &id,
        ];
        guarded(
            "Artifacts downloading",
            &format!("Downloading artifacts for {id}..."),
            &command(&words),
        )
    });
    lines.collect()
}

/// Returns the lines of `upload_artifacts_on_success`, or of `upload_artifacts_on_failure`.
pub fn upload(job: &ReceivedJob, is_success: bool) -> Vec<String> {
    let id = job.id.to_string();
    let lines = list(job, "artifacts")
        .filter(|artifacts| is_due(artifacts, is_success))
        .map(|artifacts| {
            let words = [
                "gitlab-runner",
                "artifacts-uploader",
                "--url",
                &job.server,
                "--token",
                &job.token,
                "--id",
                &id,
            ];
            let mut words = [&words[..], &paths(artifacts)].concat();
            for (option, key) in [
                ("--name", "name"),
                ("--expire-in", "expire_in"),
                ("--artifact-format", "artifact_format"),
                ("--artifact-type", "artifact_type"),
            ] {
                words.extend(
                    artifacts[key]
                        .as_str()
                        .into_iter()
                        .flat_map(|value| [option, value]),
                );
            }
            guarded(
                "Uploading artifacts",
                "Uploading artifacts...",
                &command(&words),
            )
        });
    lines.collect()
}

fn list<'a>(job: &'a ReceivedJob, name: &str) -> impl Iterator<Item = &'a Value> {
    job.json[name].as_array().into_iter().flatten()
}

fn is_due(entry: &Value, is_success: bool) -> bool {
    match entry["when"].as_str() {
        Some("always") => true,
        Some("on_failure") => !is_success,
        Some("on_success") | None => is_success,
        Some(_) => false,
    }
}

fn paths(entry: &Value) -> Vec<&str> {
    let paths = entry["paths"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let untracked = (entry["untracked"] == true).then_some("--untracked");
    paths
        .flat_map(|path| ["--path", path])
        .chain(untracked)
        .collect()
}

/// Returns the key of a cache, and the path of its file relative to the project.
fn key_and_file(
    job: &ReceivedJob,
    cache: &Value,
    project_dir: &str,
    cache_dir: &str,
) -> (String, String) {
    let mut key = cache["key"].as_str().unwrap_or("default").to_owned();
    for (name, value) in &job.variables {
        key = key
            .replace(&format!("${{{name}}}"), value)
            .replace(&format!("${name}"), value);
    }
    let file = format!(
        "{}{}/{}/{key}/cache.zip",
        path_to_root(project_dir),
        &cache_dir[1..],
        job.project_path
    );
    (key, file)
}

/// Returns the lines that run a command and write to the log whether it succeeded.
fn with_result(command: &str, success: &str, failure: &str) -> String {
    format!("if {command}; then\necho {success}\nelse\necho {failure}\nfi")
}

/// Returns the lines that write a message and run a command, if the machine has gitlab-runner.
fn guarded(action: &str, message: &str, command_line: &str) -> String {
    let missing = command(&[
        "echo",
        &format!("Missing gitlab-runner. {action} is disabled."),
    ]);
    let message = command(&["echo", message]);
    format!(
        "if gitlab-runner --version >/dev/null 2>&1; then\n{message}\n{command_line}\nelse\n{missing}\nfi"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::job::Job;

    fn job() -> ReceivedJob {
        let entry = |policy: &str, when: &str| json!({ "key": "$A-1", "paths": ["p q"], "policy": policy, "when": when });
        let cache = [
            entry("pull", "always"),
            entry("push", "on_failure"),
            entry("pull-push", "always"),
        ];
        let mut json = Job::without_image()
            .variable("A", "key")
            .to_json_without_server();
        json["cache"] = json!(cache);
        json["artifacts"] = json!([{ "paths": ["p"], "untracked": true, "when": "on_failure" }]);
        ReceivedJob::from_server(json).unwrap()
    }

    #[test]
    fn cache_policy_and_path_are_applied() {
        let (restored, archived) = (
            restore(&job(), "/b/g/p", "/c"),
            archive(&job(), "/b/g/p", "/c", true),
        );
        assert_eq!((restored.len(), archived.len()), (2, 1));
        assert_eq!(archive(&job(), "/b/g/p", "/c", false).len(), 2);
        let call = "cache-archiver --file ../../../c/group/project/key-1/cache.zip --timeout 10 --path $'p q'";
        assert!(archived[0].contains(call), "{}", archived[0]);
    }

    #[test]
    fn artifacts_are_uploaded_according_to_when() {
        assert_eq!(upload(&job(), true), [""; 0]);
        let upload = upload(&job(), false).concat();
        assert!(upload.contains("--path p --untracked"), "{upload}");
    }
}
