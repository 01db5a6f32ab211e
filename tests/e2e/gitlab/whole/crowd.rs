//! Many jobs at a time.

use std::fs;
use std::time::{Duration, Instant};

use nspawn_tests::gitlab_server::{GitLab, Status};
use nspawn_tests::{Job, call, image, left_of};

use super::ended;
use super::runner::Runner;

const COUNT: usize = 20;

#[test]
fn twenty_jobs_at_once_have_each_their_own_result() {
    let gitlab = GitLab::new();
    let project = gitlab.repository("group/project", &[("file", "source\n")]);
    let work = |number: usize| {
        let exit = format!("exit {}", number % 3);
        let script = [
            "cat file; hostname",
            "echo $NUMBER > number; cat number",
            &exit,
        ];
        let work = Job::new(&image())
            .sources(&project)
            .variable("NUMBER", &format!("this is {number}"));
        work.script(&script).artifacts(&["number"], "always")
    };
    let jobs: Vec<_> = (0..COUNT).map(|number| gitlab.add(work(number))).collect();
    let runners: Vec<_> = jobs
        .iter()
        .map(|_| Runner::start(&gitlab, &["--max-builds=1"]))
        .collect();
    runners.into_iter().for_each(Runner::finish);
    for (number, id) in jobs.into_iter().enumerate() {
        let job = ended(&gitlab, id);
        let code = i64::try_from(number % 3).unwrap();
        let status = if code == 0 {
            Status::Success
        } else {
            Status::Failed
        };
        assert_eq!(
            (job.status, job.exit_code),
            (status, code),
            "{}",
            job.describe()
        );
        assert!(
            job.log().contains(&format!("\nthis is {number}\n")),
            "{}",
            job.describe()
        );
        assert!(
            job.artifacts.is_some() && job.log().contains(&format!("\ngitlab-{id}-")),
            "{}",
            job.describe()
        );
    }
}

#[test]
fn of_runners_that_are_killed_nothing_is_left() {
    let gitlab = GitLab::new();
    let work = || {
        Job::new(&image())
            .script(&["echo n''ow; sleep 600"])
            .after_script(&["true"])
    };
    let jobs: Vec<_> = (0..COUNT).map(|_| gitlab.add(work())).collect();
    let mut runners: Vec<_> = jobs
        .iter()
        .map(|_| Runner::start(&gitlab, &["--max-builds=1"]))
        .collect();
    // Some machines run their scripts then, others are being made.
    jobs.iter()
        .take(COUNT / 4)
        .for_each(|job| gitlab.wait_for_log(*job, "\nnow\n"));
    runners.iter_mut().for_each(Runner::kill);
    // The first one takes the machines from under the scripts that still run; what was being made then is for the next.
    call("nspawn-cleanup", ["--stale"]).expect(0);
    let drivers = || drivers_of(&jobs);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !drivers().is_empty() {
        assert!(Instant::now() < deadline, "drivers go on: {:?}", drivers());
        std::thread::sleep(Duration::from_millis(50));
    }
    call("nspawn-cleanup", ["--stale"]).expect(0);
    for job in jobs {
        assert_eq!(
            left_of(&format!("gitlab-{job}-")),
            "",
            "{}",
            gitlab.job(job).describe()
        );
    }
}

/// The driver calls for these jobs that still run: their command lines.
fn drivers_of(jobs: &[u64]) -> Vec<String> {
    let marks: Vec<_> = jobs
        .iter()
        .map(|job| format!("\0CUSTOM_ENV_CI_JOB_ID={job}\0").into_bytes())
        .collect();
    let of_process = |path: std::path::PathBuf| {
        let environment = fs::read(path.join("environ")).ok()?;
        let is_one = marks
            .iter()
            .any(|mark| environment.windows(mark.len()).any(|part| part == mark));
        is_one.then(|| {
            fs::read_to_string(path.join("cmdline"))
                .unwrap_or_default()
                .replace('\0', " ")
        })
    };
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| of_process(entry.unwrap().path()))
        .collect()
}
