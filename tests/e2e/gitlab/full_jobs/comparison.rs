//! Comparison of the stand-in with the real runner.
//!
//! Both run the same jobs. Their reports to GitLab and the sections of their logs must be the same,
//! except for the text of sections that only scripts of the runner itself fill.

mod results;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use nspawn_tests::gitlab_server::{GitLab, Repository, ServerJob};
use nspawn_tests::{Job, image, sh};
use serde_json::json;

use super::result_of;
use super::runner::{self, Runner};
use results::comparable;

/// Script line that prints `now`, and then something every 0.1 s for a minute: a runner learns of a
/// cancel only when it sends a part of the log.
const WAIT: &str = "echo n''ow; for i in $(seq 600); do echo tick; sleep 0.1; done; echo too f''ar";

/// What happens to a job when its log shows `now`.
type Interruption = fn(&GitLab, u64, &Runner);

struct Case {
    name: &'static str,
    job: Job,
    /// More options of the runner.
    options: &'static [&'static str],
    interruption: Option<Interruption>,
}

#[test]
#[ignore = "needs the real GitLab Runner, which GITLAB_RUNNER names"]
fn stand_in_gives_what_the_real_runner_gives() {
    let real = runner::real().expect("GITLAB_RUNNER names no GitLab Runner");
    let [real, stand_in] = [real, runner::stand_in()].map(|program| results(&program));
    let mut differences = String::new();
    for ((name, real), (_, stand_in)) in real.iter().zip(&stand_in) {
        if real != stand_in {
            let _ = write!(
                differences,
                "\n===== {name}: the real runner\n{real}----- {name}: the stand-in\n{stand_in}"
            );
        }
    }
    assert!(differences.is_empty(), "{differences}");
    println!("{} jobs without a difference", real.len());
}

/// Runs all cases by this program, and returns what can be compared of each.
fn results(program: &Path) -> Vec<(&'static str, String)> {
    let gitlab = GitLab::new();
    let results = cases(&gitlab)
        .into_iter()
        .map(|case| (case.name, comparable(&gitlab, &run(program, &gitlab, case))))
        .collect();
    sh(&format!(
        "rm /var/cache/nspawn-ci/*-{}-*.ext4",
        cache_project()
    ))
    .expect(0);
    results
}

fn run(program: &Path, gitlab: &GitLab, case: Case) -> ServerJob {
    let id = gitlab.add(case.job);
    let options = [&["--max-builds=1"], case.options].concat();
    let runner = Runner::start_program(program, gitlab, &options);
    if let Some(interruption) = case.interruption {
        gitlab.wait_for_log(id, "\nnow\n");
        interruption(gitlab, id, &runner);
    }
    runner.finish();
    result_of(gitlab, id)
}

fn cases(gitlab: &GitLab) -> Vec<Case> {
    let project = gitlab.repository("group/project", &[("file", "source\n")]);
    let mut cases = Vec::new();
    let mut add = |name, job| {
        cases.push(Case {
            name,
            job,
            options: &[],
            interruption: None,
        });
    };
    results_of_scripts(&mut add);
    preparations(&mut add);
    files(&mut add, &project);
    cases.push(Case {
        name: "services",
        job: services(),
        // The order of lines in a boot's log differs.
        options: &["--custom-prepare-args=--init=stub"],
        interruption: None,
    });
    cases.push(Case {
        name: "a fault of the host",
        job: script(&["echo never"]),
        options: &["--custom-prepare-args=--bind=/nonexistent:/x"],
        interruption: None,
    });
    let mut interrupt = |name, interruption| {
        cases.push(Case {
            name,
            job: script(&[WAIT]).after_script(&["echo \"it was $CI_JOB_STATUS\""]),
            options: &[],
            interruption: Some(interruption),
        });
    };
    interrupt("a cancel", |gitlab, id, _| gitlab.cancel(id));
    interrupt("a dropped job", |gitlab, id, _| gitlab.abort(id));
    interrupt("a stopped runner", |_, _, runner| runner.signal("TERM"));
    cases
}

/// Returns the ID of the project with a cache.
fn cache_project() -> u64 {
    u64::from(std::process::id()) * 100 + 40
}

fn script(lines: &[&str]) -> Job {
    Job::new(&image()).script(lines)
}

fn services() -> Job {
    let command = json!(["sh", "-c", "echo the service; exec sleep 600"]);
    script(&["getent hosts db"])
        .service_of(json!({ "name": image(), "alias": "db", "command": command }))
        .variable("CI_DEBUG_SERVICES", "true")
}

fn results_of_scripts(add: &mut impl FnMut(&'static str, Job)) {
    let after: [&str; 1] = ["echo \"it was $CI_JOB_STATUS\"; pwd"];
    add(
        "success",
        script(&["id -un; pwd", "echo a; echo b >&2; echo c"]),
    );
    add(
        "an exit code",
        script(&["false || exit 42"]).after_script(&after),
    );
    add("an exit code above 255", script(&["exit 300"]));
    add("a missing program", script(&["nosuchprogram"]));
    add("a failed pipeline", script(&["false | true", "echo never"]));
    add("a killed program", script(&["sh -c 'kill -KILL $$'"]));
    add(
        "a failed after_script",
        script(&["true"]).after_script(&["exit 3"]),
    );
    add(
        "several lines",
        script(&["echo one\necho two", "cat <<END\nthree\nEND"]),
    );
    add(
        "bytes that are no text",
        script(&["printf '\\377\\000\\303\\n'; printf 'no end of line'"]),
    );
    add(
        "no output and background processes",
        script(&["sleep 600 & cat"]),
    );
    add(
        "a time limit",
        script(&[WAIT])
            .after_script(&after)
            .timeout(Duration::from_secs(8)),
    );
    add(
        "a reboot",
        script(&["systemctl reboot --force --force 2>/dev/null; sleep 60"]).after_script(&after),
    );
}

fn preparations(add: &mut impl FnMut(&'static str, Job)) {
    let echo: [&str; 1] = ["echo done"];
    add("a missing image", Job::new("nosuchimage").script(&echo));
    add("no image", Job::without_image().script(&echo));
    add("another user", {
        let user = json!({ "executor_opts": { "docker": { "user": "daemon" } } });
        script(&["id -un"]).image_options(user)
    });
    add("a missing service", script(&echo).service("nosuch", "db"));
    add("wishes without an effect", {
        let options = json!({ "pull_policy": ["always"], "executor_opts": { "docker": { "platform": "linux/s390x" } } });
        script(&echo).image_options(options)
    });
    add(
        "a bad variable",
        script(&echo).variable("NSPAWN_JOB_NETWORK", "nosuch"),
    );
}

fn files(add: &mut impl FnMut(&'static str, Job), project: &Repository) {
    add("sources", script(&["cat file"]).sources(project));
    add(
        "sources by a clone",
        script(&["cat file"])
            .sources(project)
            .variable("GIT_STRATEGY", "clone"),
    );
    add(
        "artifacts",
        script(&["mkdir -p out; echo text > out/file; chmod 750 out/file"])
            .artifacts(&["out/"], "on_success"),
    );
    add(
        "artifacts of a failed job",
        script(&["echo why > why; exit 3"]).artifacts(&["why"], "on_failure"),
    );
    add(
        "missing artifacts",
        script(&["true"]).artifacts(&["nosuch"], "always"),
    );
    for name in ["an empty cache", "a filled cache"] {
        let job = script(&["cat kept/file || echo new; mkdir -p kept; echo old > kept/file"]);
        add(
            name,
            job.project(cache_project())
                .cache("key", &["kept"], "pull-push"),
        );
    }
    add(
        "variables in files",
        script(&["echo \"$SETTINGS\"; cat \"$SETTINGS\""])
            .file_variable("SETTINGS", "a 'b'\n$c \\d\n"),
    );
}
