//! The steps of the front page: a runner is added to `config.toml`, and `gitlab-runner run` runs jobs.

use std::fs;
use std::process::{Command, Stdio};

use nspawn_tests::gitlab_server::{GitLab, RUNNER_TOKEN, Status};
use nspawn_tests::{Job, call, finish, image, scratch, sh};

use super::{result_of, runner};

/// Content of the file that the package of GitLab Runner installs.
const INSTALLED: &str =
    "concurrent = 1\ncheck_interval = 0\n\n[session_server]\n  session_timeout = 1800\n";

#[test]
#[ignore = "needs the real GitLab Runner, which GITLAB_RUNNER names"]
fn added_runner_runs_jobs() {
    let program = runner::real().expect("GITLAB_RUNNER names no GitLab Runner");
    let program = program.to_str().unwrap();
    let gitlab = GitLab::new();
    let project = gitlab.repository("group/project", &[("file", "source\n")]);
    let work = |image: &str| {
        Job::new(image)
            .sources(&project)
            .script(&["systemctl is-system-running", "git log -1 --format=%s"])
    };
    let jobs = [gitlab.add(work(&image())), gitlab.add(work(""))];
    let directory = scratch("first-steps");
    let config = directory.join("config.toml");
    fs::write(&config, INSTALLED).unwrap();
    let config = config.to_str().unwrap();
    finish(
        Command::new("gitlab-runner-config")
            .args(["--url", &gitlab.url(), "--default-image", &image()])
            .args(["--add", config]),
        RUNNER_TOKEN.as_bytes(),
    )
    .expect(0);
    call(program, ["lint", "--config", config]).expect(0);
    let log = fs::File::create(directory.join("log")).unwrap();
    // A failed test leaves no runner for long.
    let mut runner = Command::new("timeout")
        .args(["300", program, "run", "--config", config])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let ended = jobs.map(|job| gitlab.wait(job));
    sh(&format!("kill -QUIT {}", runner.id())).expect(0);
    runner.wait().unwrap();
    let log = fs::read_to_string(directory.join("log")).unwrap();
    for job in ended {
        assert_eq!(job.status, Status::Success, "{}\n{log}", job.describe());
        let job = result_of(&gitlab, job.id);
        job.expect_log("\nrunning\n");
        job.expect_log(&format!("of image {} is ready", image()));
    }
    assert!(!log.contains("ERROR"), "{log}");
    fs::remove_dir_all(directory).unwrap();
}
