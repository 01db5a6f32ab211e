//! The process `gitlab-runner`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nspawn_common::command;
use nspawn_common::sys::pidfd::wait_for_exit;
use nspawn_tests::gitlab_server::{GitLab, RUNNER_TOKEN};

const LOG: &str = "log";
/// Time limit for all jobs of a runner.
///
/// On an emulated host (`tests/vm`) one job takes nearly a minute.
const LIMIT: Duration = Duration::from_secs(600);
/// Time limit for the end of a runner after a signal.
const ENDING: Duration = Duration::from_secs(40);

/// A process `gitlab-runner run-single`.
#[derive(Debug)]
pub struct Runner {
    child: Child,
    /// Directory of its temporary files and its log.
    directory: PathBuf,
}

impl Runner {
    /// Starts `gitlab-runner run-single` with more options, such as the number of jobs.
    pub fn start(gitlab: &GitLab, options: &[&str]) -> Self {
        Self::start_program(program(), gitlab, options)
    }

    /// Starts this program as `gitlab-runner`, as [`start`](Self::start) does.
    pub fn start_program(program: &Path, gitlab: &GitLab, options: &[&str]) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "runner-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        let log = File::create(directory.join(LOG)).unwrap();
        let mut command = Command::new(program);
        command.args([
            "run-single",
            "--url",
            &gitlab.url(),
            "--token",
            RUNNER_TOKEN,
            "--executor",
            "custom",
        ]);
        command.args([
            "--shell=bash",
            "--builds-dir=/builds",
            "--cache-dir=/cache",
            "--wait-timeout=60",
        ]);
        command.args([
            "--custom-config-args=--config",
            "--custom-graceful-kill-timeout=20",
        ]);
        for (stage, program) in [
            ("config", "prepare"),
            ("prepare", "prepare"),
            ("run", "run"),
            ("cleanup", "cleanup"),
        ] {
            let path = command::find_program(&format!("nspawn-{program}")).unwrap();
            command.arg(format!("--custom-{stage}-exec={}", path.display()));
        }
        command
            .args(options)
            .env("NSPAWN_STOP_TIMEOUT", "1s")
            .env("TMPDIR", &directory);
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, directory }
    }

    /// Waits until the runner has run its number of jobs and ends with success.
    #[track_caller]
    pub fn finish(mut self) {
        let has_ended = self.ends_within(LIMIT);
        assert!(
            has_ended && self.child.wait().unwrap().success(),
            "{}",
            self.describe()
        );
    }

    /// Kills the runner, but no process that it has started.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal to the runner.
    pub fn signal(&self, name: &str) {
        let words = ["-s", name, &self.child.id().to_string()];
        assert!(Command::new("kill").args(words).status().unwrap().success());
    }

    fn ends_within(&self, limit: Duration) -> bool {
        wait_for_exit(i32::try_from(self.child.id()).unwrap(), limit).unwrap()
    }

    fn describe(&self) -> String {
        fs::read_to_string(self.directory.join(LOG)).unwrap_or_default()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // After a failed test the runner still runs. SIGTERM lets it remove the machines of its
        // jobs.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal("TERM");
            if !self.ends_within(ENDING) {
                let _ = self.child.kill();
            }
            let _ = self.child.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Returns the path of the stand-in.
pub fn stand_in() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_gitlab-runner-stand-in"))
}

/// Returns the path of the real runner, if there is one.
pub fn real() -> Option<PathBuf> {
    std::env::var_os("GITLAB_RUNNER")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(|| command::find_program("gitlab-runner"))
}

fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let (kind, program) =
            real().map_or_else(|| ("a stand-in", stand_in()), |path| ("the real one", path));
        // The test harness captures the output of eprintln!, and shows it for failures only.
        let _ = writeln!(
            std::io::stderr(),
            "\nfull jobs by {kind}: {}",
            program.display()
        );
        program
    })
}
