//! Lines of the scripts that fetch a job's sources.

use super::received::ReceivedJob;
use super::scripts::{command, quote};

/// Returns the lines of `get_sources` (shells/abstract.go, `writeGetSourcesScript`).
pub fn lines(job: &ReceivedJob, project_dir: &str) -> Vec<String> {
    let mut lines = Vec::new();
    match job.value("GIT_STRATEGY").unwrap_or("fetch") {
        "none" => {
            return vec![
                command(&["echo", "Skipping Git repository setup"]),
                command(&["mkdir", "-p", project_dir]),
            ];
        }
        "clone" => lines.push(command(&["rm", "-r", "-f", project_dir])),
        _ => {}
    }
    lines.extend(fetch(job, project_dir));
    lines.extend(check_out(job));
    lines.extend(match job.value("GIT_SUBMODULE_STRATEGY") {
        Some("recursive") => submodules(job, project_dir, &["--recursive"]),
        Some("normal") => submodules(job, project_dir, &[]),
        _ => Vec::new(),
    });
    lines
}

fn fetch(job: &ReceivedJob, project_dir: &str) -> Vec<String> {
    let url = format!("{}/{}.git", job.server, job.project_path);
    let add = command(&["git", "remote", "add", "origin", &url]);
    let change = command(&["git", "remote", "set-url", "origin", &url]);
    vec![
        command(&["echo", "Fetching changes..."]),
        command(&["git", "init", "--quiet", project_dir]),
        command(&["cd", project_dir]),
        write_secrets(job, project_dir),
        format!("{add} 2>/dev/null || {change}"),
        fetch_command(job, project_dir),
    ]
}

fn fetch_command(job: &ReceivedJob, project_dir: &str) -> String {
    let (secret, depth) = (include_secrets(project_dir), depth(job));
    let mut words = vec![
        "git",
        "-c",
        &secret,
        "fetch",
        "origin",
        "--no-recurse-submodules",
        "--prune",
        "--quiet",
    ];
    words.extend(
        job.json["git_info"]["refspecs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|spec| spec.as_str()),
    );
    words.extend(depth.as_deref());
    command(&words)
}

fn write_secrets(job: &ReceivedJob, project_dir: &str) -> String {
    let plain = format!("{}/", job.server);
    let (scheme, host) = plain.split_once("://").unwrap_or(("http", &plain));
    let key = format!(
        "url.{scheme}://gitlab-ci-token:{}@{host}.insteadOf",
        job.token
    );
    command(&[
        "git",
        "config",
        "--file",
        &secrets_file(project_dir),
        &key,
        &plain,
    ])
}

// The token is in a file of its own, so that no URL that git shows contains it.
fn secrets_file(project_dir: &str) -> String {
    format!("{project_dir}.tmp/git.conf")
}

fn include_secrets(project_dir: &str) -> String {
    format!("include.path={}", secrets_file(project_dir))
}

// A depth of 0 fetches all commits.
fn depth(job: &ReceivedJob) -> Option<String> {
    let depth = job.json["git_info"]["depth"].as_u64().unwrap_or(0);
    (depth > 0).then(|| format!("--depth={depth}"))
}

fn check_out(job: &ReceivedJob) -> Vec<String> {
    let commit = job.json["git_info"]["sha"].as_str().unwrap_or_default();
    vec![
        command(&[
            "echo",
            &format!("Checking out {}...", commit.get(..8).unwrap_or(commit)),
        ]),
        command(&["git", "checkout", "-f", "-q", commit]),
        command(&["git", "clean", "-ffdx"]),
    ]
}

fn submodules(job: &ReceivedJob, project_dir: &str, how: &[&str]) -> Vec<String> {
    let (depth, secret) = (depth(job), include_secrets(project_dir));
    let depth: Vec<_> = depth.iter().map(|depth| &**depth).collect();
    vec![
        command(&["echo", "Updating/initializing submodules..."]),
        command(&["git", "submodule", "init"]),
        command(&[&["git", "submodule", "sync"], how].concat()),
        command(
            &[
                &["git", "-c", &secret, "submodule", "update", "--init"],
                how,
                &depth,
            ]
            .concat(),
        ),
    ]
}

/// Returns the lines of `clear_worktree`, which delete the files of a failed attempt.
pub fn clear(project_dir: &str) -> Vec<String> {
    vec![
        format!("cd {}", quote(project_dir)),
        "find . -mindepth 1 -delete".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::job::Job;

    fn script(depth: u64, variables: &[(&str, &str)]) -> String {
        let git_info =
            json!({ "repo_url": "http://x/g/p.git", "sha": "0123456789", "depth": depth });
        let job = variables
            .iter()
            .fold(Job::without_image(), |job, (name, value)| {
                job.variable(name, value)
            });
        let mut json = job.to_json_without_server();
        json["git_info"] = git_info;
        let job = ReceivedJob::from_server(json).unwrap();
        lines(&job, "/b").join("\n")
    }

    #[test]
    fn git_strategy_and_depth_are_applied() {
        assert!(!script(20, &[("GIT_STRATEGY", "none")]).contains("git"));
        let (fetch, clone) = (script(20, &[]), script(0, &[("GIT_STRATEGY", "clone")]));
        assert!(
            !fetch.contains("rm -r")
                && fetch.contains("--depth=20")
                && !fetch.contains("submodule "),
            "{fetch}"
        );
        assert!(
            clone.starts_with("rm -r -f /b\n") && !clone.contains("--depth"),
            "{clone}"
        );
        let modules = script(1, &[("GIT_SUBMODULE_STRATEGY", "recursive")]);
        assert!(
            modules.ends_with(" submodule update --init --recursive --depth=1"),
            "{modules}"
        );
    }
}
