//! How the scripts call gitlab-runner in the machine: for caches and artifacts.

use serde_json::Value;

use super::job::Job;
use super::scripts::command;

/// How many directories up the root is.
fn way_up(project_dir: &str) -> String {
    "../".repeat(project_dir.matches('/').count())
}

/// The lines of `restore_cache`. (shells/abstract.go, `cacheExtractor`)
pub fn restore(job: &Job, project_dir: &str, cache_dir: &str) -> Vec<String> {
    let pull = |cache: &&Value| cache["policy"] != "push";
    let lines = list(job, "cache").filter(pull).map(|cache| {
        let (key, file) = place(job, cache, project_dir, cache_dir);
        let extract = command(&[
            "gitlab-runner",
            "cache-extractor",
            "--file",
            &file,
            "--timeout",
            "10",
        ]);
        let what = format!("Checking cache for {key}...");
        guarded(
            "Extracting cache",
            &what,
            &told(
                &extract,
                "Successfully extracted cache",
                "Failed to extract cache",
            ),
        )
    });
    lines.collect()
}

/// The lines of `archive_cache`, and of `archive_cache_on_failure`.
pub fn archive(job: &Job, project_dir: &str, cache_dir: &str, is_success: bool) -> Vec<String> {
    let push = |cache: &&Value| cache["policy"] != "pull" && is_due(cache, is_success);
    let lines = list(job, "cache").filter(push).map(|cache| {
        let (key, file) = place(job, cache, project_dir, cache_dir);
        let words = [
            "gitlab-runner",
            "cache-archiver",
            "--file",
            &file,
            "--timeout",
            "10",
        ];
        let archive = command(&[&words[..], &paths(cache)].concat());
        let what = format!("Creating cache {key}...");
        guarded(
            "Creating cache",
            &what,
            &told(&archive, "Created cache", "Failed to create cache"),
        )
    });
    lines.collect()
}

/// The lines of `download_artifacts`.
pub fn download(job: &Job) -> Vec<String> {
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

/// The lines of `upload_artifacts_on_success`, and of `…_on_failure`.
pub fn upload(job: &Job, is_success: bool) -> Vec<String> {
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

fn list<'a>(job: &'a Job, name: &str) -> impl Iterator<Item = &'a Value> {
    job.sent[name].as_array().into_iter().flatten()
}

fn is_due(entry: &Value, is_success: bool) -> bool {
    let when = entry["when"].as_str().unwrap_or("on_success");
    when == "always"
        || when
            == if is_success {
                "on_success"
            } else {
                "on_failure"
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

// The cache's key, and its file as seen from the project.
fn place(job: &Job, cache: &Value, project_dir: &str, cache_dir: &str) -> (String, String) {
    let mut key = cache["key"].as_str().unwrap_or("default").to_owned();
    for (name, value) in &job.variables {
        key = key
            .replace(&format!("${{{name}}}"), value)
            .replace(&format!("${name}"), value);
    }
    let file = format!(
        "{}{}/{}/{key}/cache.zip",
        way_up(project_dir),
        &cache_dir[1..],
        job.project_path
    );
    (key, file)
}

fn told(command: &str, success: &str, failure: &str) -> String {
    format!("if {command}; then\necho {success}\nelse\necho {failure}\nfi")
}

fn guarded(action: &str, what: &str, command_line: &str) -> String {
    let missing = command(&[
        "echo",
        &format!("Missing gitlab-runner. {action} is disabled."),
    ]);
    let what = command(&["echo", what]);
    format!(
        "if gitlab-runner --version >/dev/null 2>&1; then\n{what}\n{command_line}\nelse\n{missing}\nfi"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job() -> Job {
        let entry = |policy: &str, when: &str| json!({ "key": "$A-1", "paths": ["p q"], "policy": policy, "when": when });
        let cache = [
            entry("pull", "always"),
            entry("push", "on_failure"),
            entry("pull-push", "always"),
        ];
        let sent = json!({ "cache": cache, "artifacts": [{ "paths": ["p"], "untracked": true, "when": "on_failure" }] });
        Job {
            sent,
            ..Job::without_image()
        }
        .variable("A", "key")
    }

    #[test]
    fn a_cache_has_a_policy_and_a_place() {
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
    fn artifacts_are_sent_when_they_are_due() {
        assert_eq!(upload(&job(), true), [""; 0]);
        let upload = upload(&job(), false).concat();
        assert!(upload.contains("--path p --untracked"), "{upload}");
    }
}
