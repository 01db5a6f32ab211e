//! GitLab server of a fleet of hosts, for `tests/fleet`.
//!
//! It has many jobs, and checks how each of them ends although one of the hosts that take them is
//! killed.
//!
//! Usage: `coordinator DOOMED JOBS IMAGE…`. The jobs ask for the images in turn.
//!
//! The program writes these lines to stdout: first its URL, the token of the runners, which accepts
//! a suffix `-HOST`, and the prefix of the machines' names; `middle` when the host DOOMED is to be
//! killed; `over` when all jobs have ended; and a table. It answers runners until its stdin ends.
//! Its exit status is 0 if each job ended as it should. Otherwise its stderr lists the jobs that
//! did not.

use std::collections::BTreeSet;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nspawn_tests::gitlab_server::{GitLab, RUNNER_TOKEN, STUCK, ServerJob, Status};
use nspawn_tests::{Job, run_program};

/// Time without a request after which a runner counts as dead.
///
/// A runner sends a request at least every five seconds.
const SILENCE: Duration = Duration::from_secs(15);
/// Exit codes of the jobs, in turn.
const CODES: [i64; 10] = [0, 0, 1, 0, 42, 0, 0, 137, 0, 255];
/// Exit codes that `allow_failure:exit_codes` allows.
const ALLOWED: [i64; 1] = [42];

fn main() -> ExitCode {
    run_program("coordinator", coordinate)
}

fn coordinate(words: &[String]) -> Result<()> {
    let [doomed, count, images @ ..] = words else {
        bail!("usage: coordinator DOOMED JOBS IMAGE…")
    };
    ensure!(!images.is_empty(), "no image is given");
    let count: usize = count
        .parse()
        .with_context(|| format!("{count} is not a number of jobs"))?;
    let gitlab = GitLab::new();
    let ids: Vec<_> = (0..count)
        .map(|number| gitlab.add(job(&images[number % images.len()], number)))
        .collect();
    println!(
        "{} {RUNNER_TOKEN} gitlab-{}",
        gitlab.url(),
        std::process::id()
    );
    ensure!(
        gitlab.wait_for_all(SILENCE, |jobs| is_middle(jobs, doomed, count)),
        "no job on {doomed} has reached its script within the time limit"
    );
    println!("middle");
    let is_over = gitlab.wait_for_all(SILENCE, |jobs| jobs.iter().all(|job| job.is_over()));
    println!("over");
    let jobs = gitlab.all();
    print_table(&jobs);
    io::copy(&mut io::stdin(), &mut io::sink()).context("can't read stdin")?;
    ensure!(is_over, "not all jobs ended within the time limit");
    check(&jobs, &ids, doomed)
}

/// Returns the job of this number, which is retried only if its host dies.
fn job(image: &str, number: usize) -> Job {
    let exit = format!("exit {}", code(number));
    let pause = if number % 3 == 0 { "sleep 1" } else { ":" };
    let job = Job::new(image)
        .variable("NUMBER", &format!("this is {number}"))
        .retry(2, &[STUCK])
        .allow_failure(&ALLOWED)
        .script(&["echo $NUMBER | tee number", pause, &exit]);
    if has_artifacts(number) {
        job.artifacts(&["number"], "always")
    } else {
        job
    }
}

fn code(number: usize) -> i64 {
    CODES[number % CODES.len()]
}

fn has_artifacts(number: usize) -> bool {
    number % 4 == 0
}

/// Returns whether the time has come to kill the host DOOMED.
///
/// By then two fifths of the jobs have ended, and the host runs several jobs, one of them in its
/// script.
fn is_middle(jobs: &[&ServerJob], doomed: &str, count: usize) -> bool {
    let is_on_doomed = |job: &&&ServerJob| job.runner == doomed && job.status.is_open();
    let is_in_script = |job: &&ServerJob| job.log().contains("\nthis is ");
    let on_doomed: Vec<_> = jobs.iter().filter(is_on_doomed).copied().collect();
    jobs.iter().filter(|job| job.is_over()).count() * 5 >= count * 2
        && on_doomed.len() > 1
        && on_doomed.iter().any(is_in_script)
}

fn check(jobs: &[ServerJob], ids: &[u64], doomed: &str) -> Result<()> {
    let mut wrong = 0;
    for (number, id) in ids.iter().enumerate() {
        if let Err(error) = check_job(jobs, *id, number, doomed) {
            eprintln!("coordinator: job {number}: {error:#}");
            wrong += 1;
        }
    }
    let lost = jobs.iter().filter(|job| job.reason == STUCK).count();
    ensure!(
        wrong == 0,
        "{wrong} of {} jobs have not ended as they should",
        ids.len()
    );
    ensure!(
        lost > 0,
        "no job was lost with {doomed}, so it was not killed while it ran jobs"
    );
    ensure!(
        jobs.len() == ids.len() + lost,
        "there are {} jobs, not {} and retries of {lost} lost ones",
        jobs.len(),
        ids.len()
    );
    Ok(())
}

/// Checks how a job has ended, or its retry if its host has died.
fn check_job(jobs: &[ServerJob], id: u64, number: usize, doomed: &str) -> Result<()> {
    let find = |id| {
        jobs.iter()
            .find(|job| job.id == id)
            .with_context(|| format!("there is no job {id}"))
    };
    let first = find(id)?;
    if first.reason != STUCK {
        ensure!(
            first.retried_as.is_none(),
            "it was retried, but its host is alive: {}",
            first.describe()
        );
        return check_end(first, number);
    }
    ensure!(
        first.status == Status::Failed && first.runner == doomed,
        "its host is alive: {}",
        first.describe()
    );
    let second = find(first.retried_as.context("it was not retried")?)?;
    ensure!(
        second.runner != doomed,
        "its retry was given to a dead host: {}",
        second.describe()
    );
    check_end(second, number)
}

fn check_end(job: &ServerJob, number: usize) -> Result<()> {
    let code = code(number);
    let (status, reason) = if code == 0 {
        (Status::Success, "")
    } else {
        (Status::Failed, "script_failure")
    };
    let is_right = (job.status, &*job.reason, job.exit_code) == (status, reason, code);
    ensure!(
        is_right,
        "it should have ended with {status:?} and {code}: {}",
        job.describe()
    );
    let count = job.log().matches(&format!("\nthis is {number}\n")).count();
    ensure!(
        count == 1,
        "its script has run {count} times: {}",
        job.describe()
    );
    ensure!(
        job.artifacts.is_some() == has_artifacts(number),
        "its artifacts are wrong: {}",
        job.describe()
    );
    Ok(())
}

fn print_table(jobs: &[ServerJob]) {
    println!(
        "{:<10} {:>7} {:>10} {:>8} {:>9} {:>6}",
        "host", "taken", "succeeded", "failed", "allowed", "lost"
    );
    let hosts: BTreeSet<_> = jobs.iter().map(|job| &*job.runner).collect();
    for host in hosts {
        print_line(
            host,
            &jobs
                .iter()
                .filter(|job| job.runner == host)
                .collect::<Vec<_>>(),
        );
    }
    print_line("total", &jobs.iter().collect::<Vec<_>>());
}

fn print_line(title: &str, jobs: &[&ServerJob]) {
    let count =
        |condition: &dyn Fn(&ServerJob) -> bool| jobs.iter().filter(|job| condition(job)).count();
    let succeeded = count(&|job| job.status == Status::Success);
    let (allowed, lost) = (
        count(&ServerJob::is_allowed_to_fail),
        count(&|job| job.reason == STUCK),
    );
    let failed = count(&|job| job.status == Status::Failed) - allowed - lost;
    println!(
        "{title:<10} {:>7} {succeeded:>10} {failed:>8} {allowed:>9} {lost:>6}",
        jobs.len()
    );
}
