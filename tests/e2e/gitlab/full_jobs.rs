//! Full jobs, which a `gitlab-runner` gets from a stand-in for GitLab, runs and reports.
//!
//! The runner is the real one if `$GITLAB_RUNNER` names it or PATH has it, else a stand-in. The
//! test output says which.
//!
//! | module | covers |
//! | --- | --- |
//! | [`runner`] | the process `gitlab-runner` |
//! | [`files`] | sources, artifacts, caches and variables |
//! | [`outcomes`] | results of jobs, as GitLab receives them |
//! | [`concurrency`] | many jobs at a time |
//! | [`first_steps`] | the runner of the front page |
//! | [`comparison`] | the stand-in gives what the real runner gives |

mod comparison;
mod concurrency;
mod files;
mod first_steps;
mod outcomes;
mod runner;

use nspawn_tests::gitlab_server::{GitLab, ServerJob};
use nspawn_tests::{Job, left_of};

use runner::Runner;

/// Part of all tokens, which no log may contain.
const SECRET: &str = "never-log-this";

/// Runs the jobs one after the other, and returns their results.
#[track_caller]
fn run_all(gitlab: &GitLab, work: Vec<Job>, options: &[&str]) -> Vec<ServerJob> {
    let most = format!("--max-builds={}", work.len());
    let jobs: Vec<_> = work.into_iter().map(|work| gitlab.add(work)).collect();
    Runner::start(gitlab, &[&[&*most], options].concat()).finish();
    jobs.into_iter().map(|job| result_of(gitlab, job)).collect()
}

#[track_caller]
fn run(work: Job) -> ServerJob {
    run_all(&GitLab::new(), vec![work], &[]).remove(0)
}

/// Returns the result of a job whose runner has ended.
///
/// Checks that nothing is left of the job, and that its log has no secret.
#[track_caller]
fn result_of(gitlab: &GitLab, id: u64) -> ServerJob {
    let job = gitlab.job(id);
    assert_eq!(left_of(&format!("gitlab-{id}-")), "", "{}", job.describe());
    assert!(
        !job.log().contains(SECRET),
        "the log contains a token: {}",
        job.describe()
    );
    job
}
