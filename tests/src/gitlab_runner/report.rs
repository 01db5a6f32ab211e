//! Results of jobs and of their stages.

use std::fmt::Write as _;
use std::time::Duration;

use crate::command::{expect_message, expect_words};

/// The outcome of a job, as GitLab shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The job passed.
    Success,
    /// The job failed with this exit code, which `allow_failure:exit_codes` looks at.
    ScriptFailure(i32),
    /// The job failed through a fault of the host, and GitLab may retry it.
    SystemFailure(String),
    /// The job was cancelled.
    Canceled,
    /// The job exceeded its time limit.
    TimedOut,
    /// The runner was told to stop.
    RunnerStopped,
}

/// The reason of a driver's failure, by its exit status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The job failed, with this exit code.
    Script(i32),
    /// The host failed, for this reason.
    System(String),
    /// The driver was interrupted. Its exit status is not looked at.
    Interrupted(Interruption),
}

/// The reason for which a driver was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// The stage was cancelled by [`Reaction::Canceling`](super::Reaction::Canceling).
    Canceling,
    /// The job was aborted by [`Reaction::Abort`](super::Reaction::Abort).
    Abort,
    /// The job exceeded its time limit.
    TimeOut,
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Script(code) => Self::ScriptFailure(code),
            Failure::System(why) => Self::SystemFailure(why),
            Failure::Interrupted(Interruption::TimeOut) => Self::TimedOut,
            Failure::Interrupted(_) => Self::Canceled,
        }
    }
}

/// A call of a driver.
#[derive(Debug)]
pub struct Record {
    /// Name of the stage, or of the sub-stage of run.
    pub stage: String,
    /// Exit status of the driver; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Result of the stage, as the runner judges it.
    pub result: Result<(), Failure>,
    /// Bytes that the driver wrote to stdout and stderr.
    pub log: Vec<u8>,
    /// Content of `BUILD_EXIT_CODE_FILE` after the stage.
    pub exit_code_file: Option<String>,
    /// Time from SIGTERM to the end of the driver.
    pub reaction: Duration,
    /// True if SIGKILL ended the driver.
    pub killed: bool,
}

impl Record {
    /// Returns stdout and stderr as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.log).into_owned()
    }

    /// Fails the test unless the stage succeeded.
    #[track_caller]
    pub fn expect(self) -> Self {
        assert_eq!(self.result, Ok(()), "{}", self.describe());
        self
    }

    /// Fails the test unless the stage was a system failure, and its log is a message with `words`.
    ///
    /// [`expect_message`] describes messages.
    #[track_caller]
    pub fn expect_system_failure(self, words: &str) -> Self {
        assert!(
            matches!(self.result, Err(Failure::System(_))),
            "{}",
            self.describe()
        );
        expect_message(self.text().lines(), "nspawn-", words, &self.describe());
        self
    }

    /// Returns the result as text, for the message of a failed test.
    ///
    /// The middle of a long log is left out.
    pub fn describe(&self) -> String {
        let file = self
            .exit_code_file
            .as_ref()
            .map(|text| format!(", exit code file {text:?}"))
            .unwrap_or_default();
        let status = self
            .code
            .map_or("a signal".to_owned(), |code| code.to_string());
        format!(
            "--- {}: {status}{file}, {:?}\n{}",
            self.stage,
            self.result,
            shortened(&self.text())
        )
    }
}

/// The results of a whole job.
#[derive(Debug)]
pub struct Report {
    /// Outcome of the job, as GitLab shows it.
    pub outcome: Outcome,
    /// All calls of drivers, in order.
    pub records: Vec<Record>,
    /// Messages about failed cleanups, which the log of the job shows.
    pub warnings: Vec<String>,
    /// Name of the machine, or an empty string if config has not written one.
    pub machine: String,
}

impl Report {
    /// Returns the log of the job, which is the output of config, prepare and run.
    pub fn log(&self) -> String {
        self.records
            .iter()
            .filter(|record| record.stage != "cleanup")
            .map(Record::text)
            .collect()
    }

    /// Fails the test unless the log contains `words`.
    #[track_caller]
    pub fn expect_log(&self, words: &str) {
        expect_words(&self.log(), words, || self.describe());
    }

    /// Returns the names of the stages that were called, in order.
    pub fn stages(&self) -> Vec<&str> {
        self.records.iter().map(|record| &*record.stage).collect()
    }

    /// Returns the last call of a stage.
    #[track_caller]
    pub fn stage(&self, name: &str) -> &Record {
        let found = self
            .records
            .iter()
            .rev()
            .find(|record| record.stage == name);
        found.unwrap_or_else(|| panic!("no stage {name}\n{}", self.describe()))
    }

    /// Fails the test unless the job has this outcome, no warnings and no leftovers.
    #[track_caller]
    pub fn expect(self, outcome: &Outcome) -> Self {
        assert_eq!(self.outcome, *outcome, "{}", self.describe());
        self.expect_clean()
    }

    /// Fails the test unless the job is a system failure without warnings and leftovers.
    #[track_caller]
    pub fn expect_system_failure(self) -> Self {
        assert!(
            matches!(self.outcome, Outcome::SystemFailure(_)),
            "{}",
            self.describe()
        );
        self.expect_clean()
    }

    #[track_caller]
    fn expect_clean(self) -> Self {
        assert!(self.warnings.is_empty(), "{}", self.describe());
        assert!(
            !self.log().contains(crate::job::TOKEN),
            "the log has the token: {}",
            self.describe()
        );
        if !self.machine.is_empty() {
            assert_eq!(crate::left_of(&self.machine), "", "{}", self.describe());
        }
        self
    }

    /// Returns the outcome and all stages, for the message of a failed test.
    pub fn describe(&self) -> String {
        let mut text = format!("{:?}, warnings {:?}\n", self.outcome, self.warnings);
        for record in &self.records {
            let _ = writeln!(text, "{}", record.describe());
        }
        text
    }
}

fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 4000;
    let chars = text.chars().count();
    if chars <= 2 * MAX_CHARS {
        return text.to_owned();
    }
    let head: String = text.chars().take(MAX_CHARS).collect();
    let tail: String = text.chars().skip(chars - MAX_CHARS).collect();
    format!("{head}\n[{} characters]\n{tail}", chars - 2 * MAX_CHARS)
}
