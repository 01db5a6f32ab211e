//! Many jobs at a time.

use std::fs;
use std::time::Duration;

use nspawn_tests::gitlab_server::{GitLab, Status};
use nspawn_tests::{Job, image, left_of, remove_stale, sh, wait_until};

use super::result_of;
use super::runner::Runner;

const COUNT: usize = 20;
/// Line that writes to stdout and stderr in turns.
const BOTH_STREAMS: &str = "for i in $(seq 300); do echo out $i; echo error $i >&2; done";

#[test]
fn concurrent_jobs_have_separate_results() {
    let gitlab = GitLab::new();
    let project = gitlab.repository("group/project", &[("file", "source\n")]);
    let work = |number: usize| {
        let exit = format!("exit {}", number % 3);
        let script = [
            "cat file; hostname",
            "echo $NUMBER > number; cat number",
            BOTH_STREAMS,
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
    let both: String = (1..=300)
        .map(|number| format!("out {number}\nerror {number}\n"))
        .collect();
    for (number, id) in jobs.into_iter().enumerate() {
        let job = result_of(&gitlab, id);
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
        job.expect_log(&format!("\nthis is {number}\n"));
        job.expect_log(&both);
        assert!(
            job.artifacts.is_some() && job.log().contains(&format!("\ngitlab-{id}-")),
            "{}",
            job.describe()
        );
    }
}

#[test]
#[ignore = "takes minutes; needs the real GitLab Runner, which GITLAB_RUNNER names"]
fn hundred_good_jobs_leave_no_warning_in_the_journal() {
    const JOBS: usize = 100;
    let gitlab = GitLab::new();
    let begin = sh("date +@%s").out();
    let work = || Job::new(&image()).script(&["echo hi", "sleep 600 & true"]);
    let jobs: Vec<_> = (0..JOBS).map(|_| gitlab.add(work())).collect();
    let most = format!("--max-builds={}", JOBS / 4);
    let runners: Vec<_> = (0..4).map(|_| Runner::start(&gitlab, &[&*most])).collect();
    runners.into_iter().for_each(Runner::finish);
    let journal = sh(&format!(
        "journalctl --quiet --priority=warning --since={}",
        begin.trim()
    ))
    .expect(0)
    .out();
    for id in jobs {
        let job = result_of(&gitlab, id);
        assert_eq!(job.status, Status::Success, "{}", job.describe());
        let machine = format!("gitlab-{id}-");
        let warnings: Vec<_> = journal
            .lines()
            .filter(|line| line.contains(&machine))
            .collect();
        assert_eq!(warnings, [""; 0]);
    }
}

#[test]
fn machines_of_killed_runners_are_stale() {
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
    // At this time some machines run their scripts, and others are still being created.
    jobs.iter()
        .take(COUNT / 4)
        .for_each(|job| gitlab.wait_for_log(*job, "\nnow\n"));
    runners.iter_mut().for_each(Runner::kill);
    // The first cleanup removes machines whose scripts still run. The second one removes machines
    // that were being created at that time.
    remove_stale();
    wait_until("all drivers have ended", Duration::from_secs(60), || {
        let drivers = drivers_of(&jobs);
        println!("drivers: {drivers:?}");
        drivers.is_empty()
    });
    remove_stale();
    for job in jobs {
        assert_eq!(
            left_of(&format!("gitlab-{job}-")),
            "",
            "{}",
            gitlab.job(job).describe()
        );
    }
}

/// Returns the command lines of the drivers for these jobs that still run.
fn drivers_of(jobs: &[u64]) -> Vec<String> {
    let marks: Vec<_> = jobs
        .iter()
        .map(|job| format!("\0CUSTOM_ENV_CI_JOB_ID={job}\0").into_bytes())
        .collect();
    let of_process = |path: std::path::PathBuf| {
        let environment = fs::read(path.join("environ")).ok()?;
        let is_driver = marks
            .iter()
            .any(|mark| environment.windows(mark.len()).any(|part| part == mark));
        is_driver.then(|| {
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
