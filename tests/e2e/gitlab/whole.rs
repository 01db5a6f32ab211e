//! Whole jobs: a GitLab has them, a `gitlab-runner` takes and runs them, and GitLab is told. The program is the real
//! one where there is one, `$GITLAB_RUNNER` or on PATH, else the stand-in, and it says which.
//!
//! | module | what it promises |
//! | --- | --- |
//! | [`runner`] | the program |
//! | [`files`] | what comes into a job and out of it: sources, artifacts, variables |
//! | [`ends`] | how jobs end, and what GitLab is told of it |
//! | [`crowd`] | many at a time |

mod crowd;
mod ends;
mod files;
mod runner;

use nspawn_tests::gitlab_server::{GitLab, ServerJob};
use nspawn_tests::{Job, left_of};

use runner::Runner;

/// Part of all tokens.
const SECRET: &str = "never-log-this";

/// Runs the jobs one after the other, to their end.
#[track_caller]
fn run_all(gitlab: &GitLab, work: Vec<Job>, options: &[&str]) -> Vec<ServerJob> {
    let most = format!("--max-builds={}", work.len());
    let jobs: Vec<_> = work.into_iter().map(|work| gitlab.add(work)).collect();
    Runner::start(gitlab, &[&[&*most], options].concat()).finish();
    jobs.into_iter().map(|job| ended(gitlab, job)).collect()
}

#[track_caller]
fn run(work: Job) -> ServerJob {
    run_all(&GitLab::new(), vec![work], &[]).remove(0)
}

/// What is known of a job whose runner has ended: nothing is left of it, and its log tells no secret.
#[track_caller]
fn ended(gitlab: &GitLab, id: u64) -> ServerJob {
    let job = gitlab.job(id);
    assert_eq!(left_of(&format!("gitlab-{id}-")), "", "{}", job.describe());
    assert!(
        !job.log().contains(SECRET),
        "the log has a token: {}",
        job.describe()
    );
    job
}
