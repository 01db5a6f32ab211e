//! A runner's settings, and the order in which it calls the stages.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::attempt::Attempt;
use super::job::Job;
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
    pub(super) config_args: Vec<String>,
    pub(super) prepare_args: Vec<String>,
    pub(super) run_args: Vec<String>,
    pub(super) graceful: Duration,
    pub(super) pause: Duration,
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
            config_args: vec!["--config".to_owned()],
            prepare_args: Vec::new(),
            run_args: Vec::new(),
            graceful: Duration::from_secs(30),
            pause: Duration::ZERO,
        }
    }
}

impl Runner {
    /// One from before `JOB_RESPONSE_FILE` and `BUILD_EXIT_CODE_FILE`.
    #[must_use]
    pub fn old() -> Self {
        Self { is_old: true, ..Self::default() }
    }

    /// A variable of its own environment, which drivers inherit.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// `prepare_args` of its configuration.
    #[must_use]
    pub fn prepare_args(self, arguments: &[&str]) -> Self {
        Self { prepare_args: arguments.iter().map(|argument| (*argument).to_owned()).collect(), ..self }
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
        let mut report =
            Report { outcome: Outcome::Success, records: Vec::new(), warnings: Vec::new(), machine: String::new() };
        if let Some(attempt) = self.prepare(job, &mut report) {
            report.outcome = Stages::new(&attempt, job, &mut report).run();
            clean_up(&attempt, &mut report);
        }
        report
    }

    fn prepare<'a>(&'a self, job: &'a Job, report: &mut Report) -> Option<Attempt<'a>> {
        for round in 0..PREPARATIONS {
            if round > 0 {
                thread::sleep(self.pause);
            }
            let mut attempt = Attempt::new(self, job);
            let mut result = note(attempt.config(), report);
            attempt.machine().clone_into(&mut report.machine);
            if result.is_ok() {
                result = note(attempt.prepare(), report);
            }
            let Err(failure) = result else { return Some(attempt) };
            clean_up(&attempt, report);
            let is_final = !matches!(failure, Failure::System(_));
            report.outcome = failure.into();
            if is_final {
                break;
            }
        }
        None
    }

    pub(super) fn judge(&self, code: Option<i32>, exit_code_file: Option<&str>) -> Result<(), Failure> {
        match code {
            Some(0) => Ok(()),
            Some(code) if code == i32::from(self.build_failure) => match exit_code_file {
                None => Err(Failure::Script(1)),
                Some(text) => match text.lines().next().unwrap_or_default().parse() {
                    Ok(code) => Err(Failure::Script(code)),
                    Err(_) => Err(Failure::System(format!("no exit code on the first line of {text:?}"))),
                },
            },
            Some(code) if code == i32::from(self.system_failure) => Err(Failure::System("system failure".to_owned())),
            other => Err(Failure::System(format!("unknown exit code {other:?}"))),
        }
    }

    pub(super) fn builds_dir(&self, config: &Value) -> String {
        config["builds_dir"].as_str().filter(|dir| !dir.is_empty()).unwrap_or("/builds").to_owned()
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
