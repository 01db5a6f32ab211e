//! The GitLab of a fleet, for `tests/fleet`: it has many jobs, and knows how each of them is to end, though one of
//! the hosts that take them is killed.
//!
//! Usage: `coordinator DOOMED JOBS IMAGE…`. Its jobs ask for the images in turn. It says, a line each: its URL, the
//! runners' token, which takes `-HOST`, and how the names of its jobs' machines begin; `middle` when the host DOOMED is
//! to be killed; `over` when all jobs are; and a table. It answers the runners until its stdin ends. Its exit status
//! tells whether each job has ended as it should; if not, it says on stderr which has not.

use std::collections::BTreeSet;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nspawn_tests::Job;
use nspawn_tests::gitlab_server::{GitLab, RUNNER_TOKEN, STUCK, ServerJob, Status};

/// A runner that lives says something every five seconds.
const SILENCE: Duration = Duration::from_secs(15);
/// What the jobs exit with, in turn.
const CODES: [i64; 10] = [0, 0, 1, 0, 42, 0, 0, 137, 0, 255];
const ALLOWED: [i64; 1] = [42];

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    match coordinate(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coordinator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn coordinate(words: &[String]) -> Result<()> {
    let [doomed, count, images @ ..] = words else {
        bail!("usage: coordinator DOOMED JOBS IMAGE…")
    };
    ensure!(!images.is_empty(), "there is no image");
    let count: usize = count
        .parse()
        .with_context(|| format!("{count} is no number of jobs"))?;
    let gitlab = GitLab::new();
    let ids: Vec<_> = (0..count)
        .map(|number| gitlab.add(work(&images[number % images.len()], number)))
        .collect();
    println!(
        "{} {RUNNER_TOKEN} gitlab-{}",
        gitlab.url(),
        std::process::id()
    );
    ensure!(
        gitlab.wait_for_all(SILENCE, |jobs| is_middle(jobs, doomed, count)),
        "{doomed} never has a job half-way"
    );
    println!("middle");
    let is_over = gitlab.wait_for_all(SILENCE, |jobs| jobs.iter().all(|job| job.is_over()));
    println!("over");
    let jobs = gitlab.all();
    print_table(&jobs);
    io::copy(&mut io::stdin(), &mut io::sink()).context("stdin can't be read")?;
    ensure!(is_over, "not all jobs came to their end in time");
    check(&jobs, &ids, doomed)
}

/// The job of this number, which comes anew only if its host dies.
fn work(image: &str, number: usize) -> Job {
    let exit = format!("exit {}", code(number));
    let pause = if number % 3 == 0 { "sleep 1" } else { ":" };
    let work = Job::new(image)
        .variable("NUMBER", &format!("this is {number}"))
        .retry(2, &[STUCK]);
    let work = work
        .allow_failure(&ALLOWED)
        .script(&["echo $NUMBER | tee number", pause, &exit]);
    if has_artifacts(number) {
        work.artifacts(&["number"], "always")
    } else {
        work
    }
}

fn code(number: usize) -> i64 {
    CODES[number % CODES.len()]
}

fn has_artifacts(number: usize) -> bool {
    number % 4 == 0
}

/// Whether a good part of the jobs is over, and the host to be killed is amidst some.
fn is_middle(jobs: &[&ServerJob], doomed: &str, count: usize) -> bool {
    let is_amidst = |job: &&&ServerJob| job.runner == doomed && job.status.is_open();
    let is_in_script = |job: &&ServerJob| job.log().contains("\nthis is ");
    let amidst: Vec<_> = jobs.iter().filter(is_amidst).copied().collect();
    jobs.iter().filter(|job| job.is_over()).count() * 5 >= count * 2
        && amidst.len() > 1
        && amidst.iter().any(is_in_script)
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
        "no job was lost with {doomed}, which was not killed in their middle"
    );
    ensure!(
        jobs.len() == ids.len() + lost,
        "{} jobs were made of {} and {lost} lost ones",
        jobs.len(),
        ids.len()
    );
    Ok(())
}

/// Checks how a job has ended, and the one as which it came anew if its host has died.
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
            "it came anew, but its host lives: {}",
            first.describe()
        );
        return check_end(first, number);
    }
    ensure!(
        first.status == Status::Failed && first.runner == doomed,
        "its host lives: {}",
        first.describe()
    );
    let second = find(first.retried_as.context("it is lost")?)?;
    ensure!(
        second.runner != doomed,
        "it was given to a host that is dead: {}",
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
    let said = job.log().matches(&format!("\nthis is {number}\n")).count();
    ensure!(
        said == 1,
        "its script has run {said} times: {}",
        job.describe()
    );
    ensure!(
        job.artifacts.is_some() == has_artifacts(number),
        "its artifacts are not right: {}",
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
    let count = |is_it: &dyn Fn(&ServerJob) -> bool| jobs.iter().filter(|job| is_it(job)).count();
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
