//! Jobs under GitLab Runner, driven stage by stage as its custom executor does.
//!
//! | module | covers |
//! | --- | --- |
//! | this one | a job from its beginning to its end |
//! | [`results`] | the result of a job |
//! | [`prepare`] | images, retries, remains of earlier attempts |
//! | [`untrusted_input`] | forged variables and malformed job responses |
//! | [`scripts`] | the environment of scripts |
//! | [`cancel_and_cleanup`] | cancel, time limit, cleanup |
//! | [`runner_binary`] | the host's gitlab-runner in the machines of jobs |
//! | [`caches`] | caches of projects |
//! | [`services`] | the `services:` of jobs |
//! | [`runner_config`] | the configuration that a script writes for GitLab Runner |
//! | [`full_jobs`] | jobs of a GitLab, run by the real `gitlab-runner` or a stand-in |

mod caches;
mod cancel_and_cleanup;
mod full_jobs;
mod prepare;
mod results;
mod runner_binary;
mod runner_config;
mod scripts;
mod services;
mod untrusted_input;

use nspawn_tests::gitlab_runner::{Job, Outcome, Runner};
use nspawn_tests::{image, sh};

#[test]
fn job_runs_through_all_stages() {
    let job = Job::new(&image())
        .stage("get_sources", &["echo source > file"])
        .stage(
            "restore_cache",
            &["echo cached > /root/cache", "sleep 600 &"],
        )
        .script(&[
            "cat file /root/cache",
            "pwd",
            "pgrep -x sleep >/dev/null && echo runs",
            "echo built > product",
        ])
        .after_script(&["cat product", "echo \"it was a $CI_JOB_STATUS\""])
        .stage("upload_artifacts_on_success", &["cat product"])
        .stage("upload_artifacts_on_failure", &["echo not this"]);
    let report = job.run().expect(&Outcome::Success);
    let calls = [
        "config",
        "prepare",
        "prepare_script",
        "get_sources",
        "restore_cache",
        "build_script",
        "after_script",
        "upload_artifacts_on_success",
        "cleanup_file_variables",
        "cleanup",
    ];
    assert_eq!(report.stages(), calls);
    assert_eq!(
        report.stage("build_script").text(),
        "source\ncached\n/builds/group/project\nruns\n"
    );
    assert_eq!(
        report.stage("after_script").text(),
        "built\nit was a success\n"
    );
    assert_eq!(
        report.stage("upload_artifacts_on_success").text(),
        "built\n"
    );
    let used = report.stage("cleanup_file_variables").text();
    assert!(
        used.contains("has used") && used.contains(" of CPU, ") && used.contains(" MiB of disk"),
        "{used}"
    );
    let running = format!("Running on {} via", report.machine);
    assert!(
        report.stage("prepare_script").text().starts_with(&running),
        "{}",
        report.describe()
    );
}

#[test]
fn prepare_names_the_machine_and_cleanup_is_silent() {
    let report = Job::new(&image())
        .script(&["true"])
        .run()
        .expect(&Outcome::Success);
    let prepared = report.stage("prepare").text();
    for words in [&report.machine, &image()] {
        assert!(prepared.contains(words), "{prepared}");
    }
    assert_eq!(
        report.stage("config").text().lines().count(),
        1,
        "{}",
        report.describe()
    );
    assert_eq!(report.stage("cleanup").text(), "", "{}", report.describe());
}

#[test]
fn machine_of_a_job_is_registered_while_it_runs() {
    let unique = std::process::id() + 100_000;
    let job = Job::new(&image())
        .script(&["exec 2>/dev/null", "echo now", &format!("sleep {unique} || echo killed")])
        .at_log("now", move |moment| {
            let list = sh("machinectl list --no-legend").out();
            assert!(list.contains(moment.machine()), "{list}");
            sh(&format!("for i in $(seq 100); do pkill -f '^sleep {unique}' && exit; sleep 0.05; done; exit 1"))
                .expect(0);
        });
    assert_eq!(
        job.run()
            .expect(&Outcome::Success)
            .stage("build_script")
            .text(),
        "now\nkilled\n"
    );
}

#[test]
fn unknown_stages_are_run() {
    let job = Job::new(&image())
        .stage("step_of_2031", &["echo new"])
        .stage("../odd $name", &["echo odd", "exit 4"]);
    let report = job.run().expect(&Outcome::ScriptFailure(4));
    assert_eq!(report.stage("step_of_2031").text(), "new\n");
    assert_eq!(report.stage("../odd $name").text(), "odd\n");
}

#[test]
fn stages_are_retried_in_the_same_machine() {
    let job = Job::new(&image())
        .variable("GET_SOURCES_ATTEMPTS", "2")
        .stage(
            "get_sources",
            &["test -e /root/mark || { touch /root/mark; exit 42; }"],
        )
        .script(&["ls -A", "exit 1"]);
    // The exit code of the first attempt is not that of the script.
    let report = job.run().expect(&Outcome::ScriptFailure(1));
    assert_eq!(
        report.stages()[3..7],
        [
            "get_sources",
            "clear_worktree",
            "get_sources",
            "build_script"
        ]
    );
}

#[test]
fn runners_without_job_response_file_work() {
    let job = || Job::new(&image()).variable("GREETING", "hello");
    let report = Runner::old()
        .run(&job().script(&["echo $GREETING"]))
        .expect(&Outcome::Success);
    assert_eq!(report.stage("build_script").text(), "hello\n");
    // Without BUILD_EXIT_CODE_FILE, the exit code can't be reported.
    let _ = Runner::old()
        .run(&job().script(&["exit 42"]))
        .expect(&Outcome::ScriptFailure(1));
}
