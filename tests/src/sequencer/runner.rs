//! A runner's settings, and the order in which it calls the stages.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::attempt::Attempt;
use super::job::{Job, Then};
use super::remote::Remote;
use super::report::{Failure, Outcome, Record, Report};
use super::stages::Stages;

/// How often config and prepare are tried.
const PREPARATIONS: u32 = 3;

/// A runner, by its `config.toml` and its version.
#[derive(Clone, Debug)]
pub struct Runner {
    pub(super) build_failure: u8,
    pub(super) system_failure: u8,
    pub(super) is_old: bool,
    pub(super) environment: Vec<(String, String)>,
    pub(super) programs: Programs,
    pub(super) config_args: Vec<String>,
    pub(super) prepare_args: Vec<String>,
    pub(super) run_args: Vec<String>,
    pub(super) cleanup_args: Vec<String>,
    pub(super) graceful: Duration,
    pub(super) pause: Duration,
}

/// The programs of its stages.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `config_exec` of its configuration.
    pub config: String,
    /// `prepare_exec`
    pub prepare: String,
    /// `run_exec`
    pub run: String,
    /// `cleanup_exec`
    pub cleanup: String,
}

impl Default for Programs {
    fn default() -> Self {
        let [prepare, run, cleanup] =
            ["nspawn-prepare", "nspawn-run", "nspawn-cleanup"].map(str::to_owned);
        Self {
            config: prepare.clone(),
            prepare,
            run,
            cleanup,
        }
    }
}

/// Where a job's files are, in its machine.
#[derive(Clone, Debug)]
pub struct Directories {
    pub builds: String,
    pub cache: String,
}

impl Default for Runner {
    /// Its exit codes are not those of GitLab Runner, so that a driver that doesn't look is found
    /// out; and it does not pause before it retries.
    fn default() -> Self {
        Self {
            build_failure: 81,
            system_failure: 82,
            is_old: false,
            environment: Vec::new(),
            programs: Programs::default(),
            config_args: vec!["--config".to_owned()],
            prepare_args: Vec::new(),
            run_args: Vec::new(),
            cleanup_args: Vec::new(),
            graceful: Duration::from_secs(30),
            pause: Duration::ZERO,
        }
    }
}

impl Runner {
    /// One from before `JOB_RESPONSE_FILE` and `BUILD_EXIT_CODE_FILE`.
    #[must_use]
    pub fn old() -> Self {
        Self {
            is_old: true,
            ..Self::default()
        }
    }

    /// A variable of its own environment, which drivers inherit.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The programs of its configuration.
    #[must_use]
    pub fn programs(self, programs: Programs) -> Self {
        Self { programs, ..self }
    }

    /// `config_args`, `run_args` and `cleanup_args` of its configuration.
    #[must_use]
    pub fn other_args(
        self,
        config_args: Vec<String>,
        run_args: Vec<String>,
        cleanup_args: Vec<String>,
    ) -> Self {
        Self {
            config_args,
            run_args,
            cleanup_args,
            ..self
        }
    }

    /// `prepare_args` of its configuration.
    #[must_use]
    pub fn prepare_args(self, arguments: &[&str]) -> Self {
        Self {
            prepare_args: arguments
                .iter()
                .map(|argument| (*argument).to_owned())
                .collect(),
            ..self
        }
    }

    /// How long it waits before it tries config and prepare again. (GitLab Runner: 3 s.)
    #[must_use]
    pub fn pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// `graceful_kill_timeout` of its configuration.
    #[must_use]
    pub fn graceful_kill_timeout(self, graceful: Duration) -> Self {
        Self { graceful, ..self }
    }

    /// Runs a job from its beginning to its end.
    #[must_use]
    pub fn run(&self, job: &Job) -> Report {
        self.run_seen_by(job, &Remote::default())
    }

    /// The same, with an outside.
    #[must_use]
    pub fn run_seen_by(&self, job: &Job, remote: &Remote) -> Report {
        let mut report = Report {
            outcome: Outcome::Success,
            records: Vec::new(),
            warnings: Vec::new(),
            machine: String::new(),
        };
        if let Some(attempt) = self.prepare(job, remote, &mut report) {
            report.outcome = Stages::new(&attempt, job, remote, &mut report).run();
            clean_up(&attempt, &mut report);
        }
        report
    }

    fn prepare<'a>(
        &'a self,
        job: &'a Job,
        remote: &'a Remote,
        report: &mut Report,
    ) -> Option<Attempt<'a>> {
        for round in 0..PREPARATIONS {
            if round > 0 {
                thread::sleep(self.pause);
            }
            if remote.wish("config") != Then::Continue {
                report.outcome = Outcome::Canceled;
                break;
            }
            let mut attempt = Attempt::seen_by(self, job, remote);
            let mut result = note(attempt.config(), report);
            attempt.machine().clone_into(&mut report.machine);
            if result.is_ok() {
                result = note(attempt.prepare(), report);
            }
            let Err(failure) = result else {
                return Some(attempt);
            };
            clean_up(&attempt, report);
            let is_final = !matches!(failure, Failure::System(_));
            report.outcome = failure.into();
            if is_final {
                break;
            }
        }
        None
    }

    pub(super) fn judge(
        &self,
        code: Option<i32>,
        exit_code_file: Option<&str>,
    ) -> Result<(), Failure> {
        match code {
            Some(0) => Ok(()),
            Some(code) if code == i32::from(self.build_failure) => match exit_code_file {
                None => Err(Failure::Script(1)),
                Some(text) => match text.lines().next().unwrap_or_default().parse() {
                    Ok(code) => Err(Failure::Script(code)),
                    Err(_) => Err(Failure::System(format!(
                        "no exit code on the first line of {text:?}"
                    ))),
                },
            },
            Some(code) if code == i32::from(self.system_failure) => {
                Err(Failure::System("system failure".to_owned()))
            }
            other => Err(Failure::System(format!("unknown exit code {other:?}"))),
        }
    }

    pub(super) fn builds_dir(&self, config: &Value) -> String {
        self.directories(config).builds
    }

    pub(super) fn directories(&self, config: &Value) -> Directories {
        let of_config = |name: &str, default: &str| {
            config[name]
                .as_str()
                .filter(|directory| !directory.is_empty())
                .unwrap_or(default)
                .to_owned()
        };
        Directories {
            builds: of_config("builds_dir", "/builds"),
            cache: of_config("cache_dir", "/cache"),
        }
    }
}

pub(super) fn note(record: Record, report: &mut Report) -> Result<(), Failure> {
    let result = record.result.clone();
    report.records.push(record);
    result
}

fn clean_up(attempt: &Attempt, report: &mut Report) {
    if let Err(failure) = note(attempt.cleanup(), report) {
        report.warnings.push(format!("cleanup failed: {failure:?}"));
    }
}
