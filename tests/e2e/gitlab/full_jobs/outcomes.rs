//! Results of jobs, as GitLab receives them.
//!
//! A log also shows the commands. So words to wait for have quotes in the commands, such as
//! `n''ow`.

use std::time::Duration;

use nspawn_tests::gitlab_server::{GitLab, ServerJob, Status};
use nspawn_tests::{Job, image};

use super::runner::Runner;
use super::{result_of, run, run_all};

/// Script line that prints something every 0.1 s for a minute.
///
/// A runner learns of a cancel only when it sends a part of the log.
const WAIT: &str = "echo n''ow; for i in $(seq 600); do echo tick; sleep 0.1; done; echo too f''ar";
const AFTER: [&str; 1] = ["echo \"after it was $CI_JOB_STATUS in $PWD\"; cat /root/mark"];
const MARK: &str = "echo the same mach''ine > /root/mark";

#[track_caller]
fn expect(job: &ServerJob, status: Status, reason: &str, exit_code: i64) {
    let is = (job.status, &*job.reason, job.exit_code);
    assert_eq!(is, (status, reason, exit_code), "{}", job.describe());
}

#[track_caller]
fn expect_after_script(job: &ServerJob, status: &str) {
    let shown = format!("\nafter it was {status} in /builds/group/project\nthe same machine\n");
    job.expect_log(&shown);
}

/// Runs a job, and interrupts it as soon as its log shows the line `now`.
#[track_caller]
fn interrupted(
    gitlab: &GitLab,
    job: u64,
    options: &[&str],
    interrupt: impl FnOnce(&Runner),
) -> ServerJob {
    let runner = Runner::start(gitlab, options);
    gitlab.wait_for_log(job, "\nnow\n");
    interrupt(&runner);
    runner.finish();
    result_of(gitlab, job)
}

#[test]
fn after_script_runs_after_success_and_failure() {
    let work = |line: &str| {
        Job::new(&image())
            .script(&[MARK, line])
            .after_script(&AFTER)
    };
    let jobs = run_all(&GitLab::new(), vec![work("true"), work("exit 42")], &[]);
    expect(&jobs[0], Status::Success, "", 0);
    expect_after_script(&jobs[0], "success");
    // GitLab needs the exit code for allow_failure:exit_codes.
    expect(&jobs[1], Status::Failed, "script_failure", 42);
    expect_after_script(&jobs[1], "failed");
}

#[test]
fn after_script_runs_after_a_cancel() {
    let gitlab = GitLab::new();
    let job = gitlab.add(
        Job::new(&image())
            .script(&[MARK, WAIT])
            .after_script(&AFTER),
    );
    let job = interrupted(&gitlab, job, &["--max-builds=1"], |_| gitlab.cancel(job));
    expect(&job, Status::Canceled, "job_canceled", 0);
    expect_after_script(&job, "canceled");
    assert!(!job.log().contains("too far"), "{}", job.describe());
}

#[test]
fn no_stage_runs_after_the_job_is_dropped() {
    let gitlab = GitLab::new();
    let job = gitlab.add(Job::new(&image()).script(&[WAIT]).after_script(&AFTER));
    let job = interrupted(&gitlab, job, &["--max-builds=1"], |_| gitlab.abort(job));
    assert!(!job.log().contains("after it was"), "{}", job.describe());
}

#[test]
fn no_stage_runs_after_the_time_limit() {
    let job = run(Job::new(&image())
        .script(&[WAIT])
        .after_script(&AFTER)
        .timeout(Duration::from_secs(8)));
    expect(&job, Status::Failed, "job_execution_timeout", 0);
    assert!(
        job.log().contains("\nnow\n") && !job.log().contains("after it was"),
        "{}",
        job.describe()
    );
}

#[test]
fn stopped_runner_leaves_nothing() {
    let gitlab = GitLab::new();
    let job = gitlab.add(Job::new(&image()).script(&[WAIT]).after_script(&AFTER));
    let job = interrupted(&gitlab, job, &[], |runner| runner.signal("TERM"));
    expect(&job, Status::Failed, "runner_interrupted", 0);
    assert!(!job.log().contains("after it was"), "{}", job.describe());
}

#[test]
fn quitting_runner_finishes_its_job() {
    let gitlab = GitLab::new();
    // A runner sends its log every three seconds.
    let job = gitlab.add(Job::new(&image()).script(&["echo n''ow; sleep 8; echo at the e''nd"]));
    let next = gitlab.add(Job::new(&image()).script(&["true"]));
    let job = interrupted(&gitlab, job, &[], |runner| runner.signal("QUIT"));
    expect(&job, Status::Success, "", 0);
    job.expect_log("\nat the end\n");
    assert_eq!(gitlab.job(next).status, Status::Pending);
}

#[test]
fn reboot_of_the_machine_is_a_system_failure() {
    let job = run(Job::new(&image()).script(&["systemctl reboot", "sleep 60"]));
    expect(&job, Status::Failed, "runner_system_failure", 0);
    job.expect_log("it was rebooted");
}

#[test]
fn stdin_is_empty_and_background_processes_do_not_delay_the_end() {
    let job = run(Job::new(&image()).script(&[
        "cat; read -r line || echo nothing to re''ad",
        "sleep 600 & setsid sleep 600 & (trap '' HUP TERM; exec sleep 600) & echo st''arted",
    ]));
    expect(&job, Status::Success, "", 0);
    assert!(
        job.log().contains("\nnothing to read\n") && job.log().contains("\nstarted\n"),
        "{}",
        job.describe()
    );
}

/// Line that prints 20 MiB, in lines of eight bytes.
const LONG: &str = "seq -w 1 2621440; echo that is a''ll";

#[test]
fn long_log_is_complete() {
    let work = Job::new(&image()).script(&[LONG]);
    let job = run_all(&GitLab::new(), vec![work], &["--output-limit=32768"]).remove(0);
    expect(&job, Status::Success, "", 0);
    let expected: String = (1..=2_621_440)
        .map(|number| format!("{number:07}\n"))
        .collect();
    let log = job.log();
    let begin = log
        .find("\n0000001\n")
        .unwrap_or_else(|| panic!("{}", job.describe()))
        + 1;
    assert!(log[begin..].starts_with(&expected), "{}", job.describe());
    assert!(
        log[begin + expected.len()..].starts_with("that is all\n"),
        "{}",
        job.describe()
    );
    assert!(job.parts > 10, "the log came in only {} parts", job.parts);
}

#[test]
fn log_beyond_the_limit_does_not_block_the_job() {
    let job = run(Job::new(&image()).script(&[LONG]));
    expect(&job, Status::Success, "", 0);
    assert!(
        job.trace.len() < 5 << 20 && job.log().contains("exceeded limit"),
        "{}",
        job.describe()
    );
    assert!(!job.log().contains("that is all"), "{}", job.describe());
}
