//! One attempt at a job, stage by stage.

use std::cell::{Cell, RefCell};
use std::fs;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::environment;
use super::job::{Hook, Job, Then, When};
use super::process::{self, Ended, Limits};
use super::remote::Remote;
use super::report::{Failure, Record};
use super::runner::Runner;
use super::scripts;
use super::workspace::Workspace;

/// The time limit of config, prepare and cleanup. (GitLab Runner has 3600 s.)
const STAGE_LIMIT: Duration = Duration::from_secs(120);

/// One attempt at a job.
///
/// Its temporary directory lives as long as it; a machine that a failed test left is removed then.
#[derive(Debug)]
pub struct Attempt<'a> {
    runner: &'a Runner,
    job: &'a Job,
    remote: &'a Remote,
    files: Workspace,
    config: Option<Value>,
    /// Which of the job's hooks have been called.
    called: RefCell<Vec<bool>>,
    is_cleaned: Cell<bool>,
    started: Instant,
}

/// A job while one of its stages runs, as its hooks see it.
#[derive(Debug)]
pub struct Moment<'a> {
    attempt: &'a Attempt<'a>,
}

impl Moment<'_> {
    /// The name of its machine.
    #[must_use]
    pub fn machine(&self) -> &str {
        self.attempt.machine()
    }

    /// Calls cleanup now.
    #[must_use]
    pub fn cleanup(&self) -> Record {
        self.attempt.cleanup()
    }
}

impl<'a> Attempt<'a> {
    /// A new one, in a fresh temporary directory.
    #[must_use]
    pub fn new(runner: &'a Runner, job: &'a Job) -> Self {
        static NOBODY: LazyLock<Remote> = LazyLock::new(Remote::default);
        Self::seen_by(runner, job, &NOBODY)
    }

    /// The same, with an outside.
    #[must_use]
    pub fn seen_by(runner: &'a Runner, job: &'a Job, remote: &'a Remote) -> Self {
        Self {
            runner,
            job,
            remote,
            files: Workspace::new(job),
            config: None,
            called: RefCell::new(vec![false; job.hooks.len()]),
            is_cleaned: Cell::new(false),
            started: Instant::now(),
        }
    }

    /// One that has come as far as the job's sources; else the test fails.
    #[track_caller]
    #[must_use]
    pub fn prepared(runner: &'a Runner, job: &'a Job) -> Self {
        let mut attempt = Self::new(runner, job);
        attempt.config().expect();
        attempt.prepare().expect();
        attempt.run_stage("get_sources").expect();
        attempt
    }

    /// The config stage.
    pub fn config(&mut self) -> Record {
        let ended = self.call(
            "config",
            &self.runner.programs.config,
            &self.runner.config_args,
            STAGE_LIMIT,
        );
        // Its stdout is not for the log.
        self.remote.write(&ended.stderr);
        let config = serde_json::from_slice::<Value>(&ended.stdout)
            .ok()
            .filter(Value::is_object);
        let mut record = self.record("config", &ended);
        if record.result.is_ok() && config.is_none() {
            record.result = Err(Failure::System("config's stdout is not JSON".to_owned()));
        }
        self.config = config;
        record
    }

    /// The prepare stage.
    pub fn prepare(&self) -> Record {
        let ended = self.call(
            "prepare",
            &self.runner.programs.prepare,
            &self.runner.prepare_args,
            STAGE_LIMIT,
        );
        self.record("prepare", &ended)
    }

    /// A sub-stage of run that is not empty.
    #[track_caller]
    pub fn run_stage(&self, stage: &str) -> Record {
        self.run(stage, "running")
            .unwrap_or_else(|| panic!("the stage {stage} is empty"))
    }

    /// A sub-stage of run; `None` if it is empty, and so not called. `status` is what an
    /// `after_script` sees.
    pub(super) fn run(&self, stage: &str, status: &str) -> Option<Record> {
        let directories = self
            .runner
            .directories(self.config.as_ref().unwrap_or(&Value::Null));
        let text = scripts::of_stage(self.job, stage, &directories, status)?;
        let mut arguments = self.runner.run_args.clone();
        arguments.push(self.files.script(&text).to_string_lossy().into_owned());
        arguments.push(stage.to_owned());
        let limit = self.job.timeout.saturating_sub(self.started.elapsed());
        let ended = self.call(stage, &self.runner.programs.run, &arguments, limit);
        Some(self.record(stage, &ended))
    }

    /// The cleanup stage.
    pub fn cleanup(&self) -> Record {
        let ended = self.call(
            "cleanup",
            &self.runner.programs.cleanup,
            &self.runner.cleanup_args,
            STAGE_LIMIT,
        );
        self.is_cleaned.set(ended.status.success());
        self.record("cleanup", &ended)
    }

    /// The name of the job's machine, as config told it.
    #[must_use]
    pub fn machine(&self) -> &str {
        self.config
            .as_ref()
            .and_then(|config| config["hostname"].as_str())
            .unwrap_or_default()
    }

    /// Puts `text` into the file that `BUILD_EXIT_CODE_FILE` names, as an earlier stage may have.
    pub fn leave_exit_code(&self, text: &str) {
        fs::write(self.files.exit_code(), text).unwrap_or_else(|error| panic!("{error}"));
    }

    fn call(&self, stage: &str, program: &str, arguments: &[String], time: Duration) -> Ended {
        let environment =
            environment::of_driver(self.runner, self.job, &self.files, self.config.as_ref());
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(&self.files.directory)
            .env_clear();
        // One by one: of a name that is there twice, the last counts.
        for (name, value) in environment {
            command.env(name, value);
        }
        let (mut told, is_log) = (0, !["config", "cleanup"].contains(&stage));
        process::supervise(
            &mut command,
            Limits {
                time,
                graceful: self.runner.graceful,
            },
            self.remote,
            |log| {
                if is_log {
                    self.remote.write(&log[told..]);
                    told = log.len();
                }
                self.due(stage, log)
            },
        )
    }

    // Calls the hooks that are due.
    fn due(&self, stage: &str, log: &[u8]) -> Then {
        for (place, hook) in self.job.hooks.iter().enumerate() {
            if !self.called.borrow()[place] && is_due(hook, stage, log) {
                self.called.borrow_mut()[place] = true;
                match (hook.action)(&Moment { attempt: self }) {
                    Then::Continue => {}
                    then => return then,
                }
            }
        }
        self.remote.wish(stage)
    }

    fn record(&self, stage: &str, ended: &Ended) -> Record {
        let exit_code_file = fs::read_to_string(self.files.exit_code()).ok();
        let result = match ended.interruption {
            None => self
                .runner
                .judge(ended.status.code(), exit_code_file.as_deref()),
            Some(why) => Err(Failure::Interrupted(why)),
        };
        Record {
            stage: stage.to_owned(),
            code: ended.status.code(),
            result,
            log: ended.both.clone(),
            exit_code_file,
            reaction: ended.reaction,
            killed: ended.killed,
        }
    }
}

fn is_due(hook: &Hook, stage: &str, log: &[u8]) -> bool {
    match &hook.when {
        When::Start(name) => *name == stage,
        When::Log(text) => {
            stage != "cleanup" && log.windows(text.len()).any(|part| part == text.as_bytes())
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.is_cleaned.get() && !self.machine().is_empty() {
            let _ = Command::new("nspawn-cleanup").arg(self.machine()).status();
        }
        self.files.remove();
    }
}
