//! A single attempt at a job, stage by stage.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use nspawn_common::gitlab;
use serde_json::Value;

use super::driver::{self, DriverResult, Limits};
use super::environment;
use super::interventions::{Hook, Interventions, Reaction, When};
use super::received::ReceivedJob;
use super::remote::Remote;
use super::report::{Failure, Record};
use super::runner::Runner;
use super::scripts;
use super::sections;
use super::workspace::Workspace;
use crate::job::Job;

/// Time limit of config, prepare and cleanup. GitLab Runner has 3600 s.
const STAGE_LIMIT: Duration = Duration::from_secs(300);

/// An attempt at a job.
///
/// Dropping it deletes its temporary directory, and removes the machine that a failed test has
/// left.
#[must_use]
#[derive(Debug)]
pub struct Attempt<'a> {
    runner: &'a Runner,
    job: ReceivedJob,
    interventions: &'a Interventions,
    remote: &'a Remote,
    files: Workspace,
    /// Name of the job's machine.
    machine: String,
    /// JSON that config has written.
    config: Option<Value>,
    /// Flags of the hooks that have been called, in the order of the hooks.
    called: RefCell<Vec<bool>>,
    /// True once cleanup has succeeded.
    is_cleaned: Cell<bool>,
    started: Instant,
}

/// A job while one of its stages runs, as hooks see it.
#[derive(Debug)]
pub struct Moment<'a> {
    attempt: &'a Attempt<'a>,
}

impl Moment<'_> {
    /// Returns the name of the job's machine.
    pub fn machine(&self) -> &str {
        self.attempt.machine()
    }

    /// Calls cleanup while the stage runs.
    pub fn cleanup(&self) -> Record {
        self.attempt.cleanup()
    }
}

/// Returns the name that a driver gives to the job's machine.
fn machine_name(runner: &Runner, job: &ReceivedJob, files: &Workspace) -> Option<String> {
    let environment: HashMap<_, _> = environment::driver_variables(runner, job, files, None)
        .into_iter()
        .collect();
    let job = match environment.get("JOB_RESPONSE_FILE") {
        Some(path) => gitlab::Job::from_response(&fs::read(path).ok()?),
        None => gitlab::Job::from_variables(|name| {
            environment.get(&format!("CUSTOM_ENV_{name}")).cloned()
        }),
    };
    Some(job.ok()?.machine_name().ok()?.to_string())
}

impl<'a> Attempt<'a> {
    /// Creates an attempt at a job without a server, in a new temporary directory.
    pub fn new(runner: &'a Runner, job: &'a Job) -> Self {
        static NO_REMOTE: LazyLock<Remote> = LazyLock::new(Remote::default);
        let received = ReceivedJob::without_server(job);
        Self::start(runner, received, &job.interventions, &NO_REMOTE)
    }

    pub(super) fn start(
        runner: &'a Runner,
        job: ReceivedJob,
        interventions: &'a Interventions,
        remote: &'a Remote,
    ) -> Self {
        let files = Workspace::new(&job.json, &interventions.response);
        Self {
            machine: machine_name(runner, &job, &files).unwrap_or_default(),
            runner,
            remote,
            files,
            job,
            config: None,
            called: RefCell::new(vec![false; interventions.hooks.len()]),
            interventions,
            is_cleaned: Cell::new(false),
            started: Instant::now(),
        }
    }

    /// Creates an attempt and runs it up to `get_sources`, which must succeed.
    #[track_caller]
    pub fn prepared(runner: &'a Runner, job: &'a Job) -> Self {
        let mut attempt = Self::new(runner, job);
        attempt.config().expect();
        attempt.prepare().expect();
        attempt.run_stage("get_sources").expect();
        attempt
    }

    /// Runs the config stage.
    pub fn config(&mut self) -> Record {
        let driver = self.call(
            "config",
            &self.runner.programs.config,
            &self.runner.config_args,
            STAGE_LIMIT,
        );
        // The stdout of config is JSON for the runner, and not part of the log.
        self.remote.write(&driver.stderr);
        let config = serde_json::from_slice::<Value>(&driver.stdout)
            .ok()
            .filter(Value::is_object);
        let mut record = self.record("config", &driver);
        if record.result.is_ok() && config.is_none() {
            record.result = Err(Failure::System("config's stdout is not JSON".to_owned()));
        }
        self.config = config;
        self.write_driver();
        record
    }

    /// Writes the line about the driver that config has named (executors/custom/custom.go).
    fn write_driver(&self) {
        let driver = self.config.as_ref().map(|config| &config["driver"]);
        let text = |key: &str| driver.and_then(|driver| driver[key].as_str());
        if let (Some(name), Some(version)) = (text("name"), text("version")) {
            let line = format!("Using Custom executor with driver {name} {version}...\n");
            self.remote.write(line.as_bytes());
        }
    }

    /// Runs the prepare stage.
    pub fn prepare(&self) -> Record {
        let driver = self.call(
            "prepare",
            &self.runner.programs.prepare,
            &self.runner.prepare_args,
            STAGE_LIMIT,
        );
        self.record("prepare", &driver)
    }

    /// Runs a sub-stage of run, and fails the test if the stage is empty.
    #[track_caller]
    pub fn run_stage(&self, stage: &str) -> Record {
        self.run(stage, "running")
            .unwrap_or_else(|| panic!("the stage {stage} is empty"))
    }

    /// Runs a sub-stage of run, or returns `None` if the stage is empty.
    ///
    /// A runner does not call an empty stage.
    ///
    /// `status` is the value of `CI_JOB_STATUS` in `after_script`.
    pub(super) fn run(&self, stage: &str, status: &str) -> Option<Record> {
        let settings = self
            .runner
            .settings(self.config.as_ref().unwrap_or(&Value::Null));
        let text = scripts::generate(&self.job, stage, &settings, status)?;
        let mut arguments = self.runner.run_args.clone();
        arguments.push(self.files.script(&text).to_string_lossy().into_owned());
        arguments.push(stage.to_owned());
        let limit = self.job.timeout.saturating_sub(self.started.elapsed());
        self.remote.write(sections::begin(stage).as_bytes());
        let driver = self.call(stage, &self.runner.programs.run, &arguments, limit);
        self.remote.write(sections::end(stage).as_bytes());
        Some(self.record(stage, &driver))
    }

    /// Runs the cleanup stage.
    pub fn cleanup(&self) -> Record {
        let driver = self.call(
            "cleanup",
            &self.runner.programs.cleanup,
            &self.runner.cleanup_args,
            STAGE_LIMIT,
        );
        self.is_cleaned.set(driver.status.success());
        self.record("cleanup", &driver)
    }

    /// Returns the name of the job's machine, or an empty string if the job has no usable number.
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// Writes `text` to the file that `BUILD_EXIT_CODE_FILE` names, as an earlier stage may do.
    pub fn leave_exit_code(&self, text: &str) {
        fs::write(self.files.exit_code(), text).unwrap_or_else(|error| panic!("{error}"));
    }

    fn call(
        &self,
        stage: &str,
        program: &str,
        arguments: &[String],
        time: Duration,
    ) -> DriverResult {
        let environment = environment::driver_variables(
            self.runner,
            &self.job,
            &self.files,
            self.config.as_ref(),
        );
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.files.path())
            .env_clear();
        // A name may occur twice. The variables are set one by one, so that the last value counts.
        for (name, value) in environment {
            command.env(name, value);
        }
        let limits = Limits {
            time,
            graceful: self.runner.graceful,
        };
        let is_logged = !["config", "cleanup"].contains(&stage);
        let mut written = 0;
        driver::supervise(&mut command, limits, self.remote, |log| {
            if is_logged {
                self.remote.write(&log[written..]);
                written = log.len();
            }
            self.call_due_hooks(stage, log)
        })
    }

    /// Calls the hooks whose moment has come, and returns what happens to the stage.
    fn call_due_hooks(&self, stage: &str, log: &[u8]) -> Reaction {
        for (index, hook) in self.interventions.hooks.iter().enumerate() {
            if self.called.borrow()[index] || !is_due(hook, stage, log) {
                continue;
            }
            self.called.borrow_mut()[index] = true;
            match (hook.action)(&Moment { attempt: self }) {
                Reaction::Continue => {}
                reaction => return reaction,
            }
        }
        self.remote.request_for(stage)
    }

    fn record(&self, stage: &str, driver: &DriverResult) -> Record {
        let exit_code_file = fs::read_to_string(self.files.exit_code()).ok();
        let result = match driver.interruption {
            None => self
                .runner
                .judge(driver.status.code(), exit_code_file.as_deref()),
            Some(why) => Err(Failure::Interrupted(why)),
        };
        Record {
            stage: stage.to_owned(),
            code: driver.status.code(),
            result,
            log: driver.both.clone(),
            exit_code_file,
            reaction: driver.reaction,
            killed: driver.killed,
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
    }
}
