//! Settings of a runner, and its preparation of a job, with retries.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::attempt::Attempt;
use super::interventions::{Interventions, Reaction};
use super::received::ReceivedJob;
use super::remote::Remote;
use super::report::{Failure, Outcome, Record, Report};
use super::sections;
use super::stages::Stages;
use crate::job::Job;

/// Number of attempts at config and prepare.
const PREPARATIONS: u32 = 3;

/// A runner, described by the settings of its `config.toml` and by its version.
#[must_use]
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

/// The programs of a runner's stages.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Setting `config_exec`.
    pub config: String,
    /// Setting `prepare_exec`.
    pub prepare: String,
    /// Setting `run_exec`.
    pub run: String,
    /// Setting `cleanup_exec`.
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

/// Settings of a job that config prints: directories in its machine, and the name of the host.
#[derive(Clone, Debug)]
pub struct Settings {
    pub builds: String,
    pub cache: String,
    pub hostname: String,
}

impl Default for Runner {
    /// Creates a runner that does not pause before a retry.
    ///
    /// Its exit codes differ from those of GitLab Runner, so that tests find a driver with fixed
    /// exit codes.
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
    /// Creates a runner of a version without `JOB_RESPONSE_FILE` and `BUILD_EXIT_CODE_FILE`.
    pub fn old() -> Self {
        Self {
            is_old: true,
            ..Self::default()
        }
    }

    /// Sets a variable of the runner's own environment, which drivers inherit.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the programs of all stages.
    pub fn programs(self, programs: Programs) -> Self {
        Self { programs, ..self }
    }

    /// Sets `config_args`, `run_args` and `cleanup_args`.
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

    /// Sets `prepare_args`.
    pub fn prepare_args(self, arguments: &[&str]) -> Self {
        Self {
            prepare_args: arguments
                .iter()
                .map(|argument| (*argument).to_owned())
                .collect(),
            ..self
        }
    }

    /// Sets the pause before config and prepare are retried. GitLab Runner has 3 s.
    pub fn pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// Sets `graceful_kill_timeout`.
    pub fn graceful_kill_timeout(self, graceful: Duration) -> Self {
        Self { graceful, ..self }
    }

    /// Runs a job without a server from its beginning to its end.
    #[must_use]
    pub fn run(&self, job: &Job) -> Report {
        let received = ReceivedJob::without_server(job);
        self.run_all_stages(&received, &job.interventions, &Remote::default())
    }

    /// Runs a job that a server has sent, from its beginning to its end.
    pub(super) fn run_received(&self, job: &ReceivedJob, remote: &Remote) -> Report {
        self.run_all_stages(job, &Interventions::default(), remote)
    }

    fn run_all_stages(
        &self,
        job: &ReceivedJob,
        interventions: &Interventions,
        remote: &Remote,
    ) -> Report {
        let mut report = Report {
            outcome: Outcome::Success,
            records: Vec::new(),
            warnings: Vec::new(),
            machine: String::new(),
        };
        remote.write(sections::begin(sections::PREPARE).as_bytes());
        let attempt = self.prepare(job, interventions, remote, &mut report);
        remote.write(sections::end(sections::PREPARE).as_bytes());
        if let Some(attempt) = attempt {
            report.outcome = Stages::new(&attempt, job, remote, &mut report).run();
            clean_up(&attempt, &mut report);
        }
        report
    }

    fn prepare<'a>(
        &'a self,
        job: &ReceivedJob,
        interventions: &'a Interventions,
        remote: &'a Remote,
        report: &mut Report,
    ) -> Option<Attempt<'a>> {
        for round in 0..PREPARATIONS {
            if round > 0 {
                thread::sleep(self.pause);
            }
            if remote.request_for("config") != Reaction::Continue {
                report.outcome = Outcome::Canceled;
                break;
            }
            let mut attempt = Attempt::start(self, job.clone(), interventions, remote);
            let mut result = add_record(attempt.config(), report);
            attempt.machine().clone_into(&mut report.machine);
            if result.is_ok() {
                result = add_record(attempt.prepare(), report);
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

    /// Returns the result of a stage, by exit status and content of `BUILD_EXIT_CODE_FILE`.
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
                        "the first line of {text:?} is not an exit code"
                    ))),
                },
            },
            Some(code) if code == i32::from(self.system_failure) => {
                Err(Failure::System(format!("exit status {code}")))
            }
            other => Err(Failure::System(format!("unknown exit code {other:?}"))),
        }
    }

    pub(super) fn builds_dir(&self, config: &Value) -> String {
        self.settings(config).builds
    }

    pub(super) fn settings(&self, config: &Value) -> Settings {
        let setting = |name: &str, default: &str| {
            config[name]
                .as_str()
                .filter(|value| !value.is_empty())
                .unwrap_or(default)
                .to_owned()
        };
        Settings {
            builds: setting("builds_dir", "/builds"),
            cache: setting("cache_dir", "/cache"),
            hostname: setting("hostname", ""),
        }
    }
}

/// Adds a record to a report, and returns the result of the record.
pub(super) fn add_record(record: Record, report: &mut Report) -> Result<(), Failure> {
    let result = record.result.clone();
    report.records.push(record);
    result
}

fn clean_up(attempt: &Attempt, report: &mut Report) {
    if let Err(failure) = add_record(attempt.cleanup(), report) {
        report.warnings.push(format!("cleanup failed: {failure:?}"));
    }
}
