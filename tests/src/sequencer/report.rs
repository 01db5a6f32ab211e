//! What came of a job.

use std::fmt::Write as _;
use std::time::Duration;

/// How GitLab shows the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Passed.
    Success,
    /// Failed by its own fault, with this exit code, which `allow_failure:exit_codes` looks at.
    ScriptFailure(i32),
    /// Failed by the host's fault: GitLab may retry it.
    SystemFailure(String),
    /// Was cancelled.
    Canceled,
    /// Took too long.
    TimedOut,
}

/// Why a driver failed, by its exit status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The job's fault: an exit code.
    Script(i32),
    /// The host's fault.
    System(String),
    /// It was asked to end. Its status counts for nothing then.
    Interrupted(Interruption),
}

/// Why a driver was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// The stage was cancelled: [`Then::Canceling`](super::Then::Canceling).
    Canceling,
    /// The job was: [`Then::Abort`](super::Then::Abort).
    Abort,
    /// It was out of time.
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

/// One call of a driver.
#[derive(Debug)]
pub struct Record {
    /// The stage, or the sub-stage of run.
    pub stage: String,
    /// The driver's exit status; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What the runner makes of it.
    pub result: Result<(), Failure>,
    /// Its stdout and stderr.
    pub log: Vec<u8>,
    /// What `BUILD_EXIT_CODE_FILE` holds after it.
    pub exit_code_file: Option<String>,
    /// How long it took to end when it was asked to.
    pub reaction: Duration,
    /// Whether it did not, and was killed.
    pub killed: bool,
}

impl Record {
    /// Its stdout and stderr as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.log).into_owned()
    }

    /// Fails the test unless all went well.
    #[track_caller]
    pub fn expect(self) -> Self {
        assert_eq!(self.result, Ok(()), "{}", self.describe());
        self
    }

    /// Fails the test unless it was a system failure with one line of a program of ours in the log,
    /// which contains `words`; a tool's own words may stand below it, indented.
    #[track_caller]
    pub fn expect_system_failure(self, words: &str) -> Self {
        let text = self.text();
        let (line, below) = text.split_once('\n').unwrap_or((&text, ""));
        assert!(
            matches!(self.result, Err(Failure::System(_))),
            "{}",
            self.describe()
        );
        assert!(
            line.starts_with("nspawn-") && line.contains(words),
            "no {words:?} in {}",
            self.describe()
        );
        assert!(
            below.lines().all(|line| line.starts_with("  ")),
            "more than one line: {}",
            self.describe()
        );
        self
    }

    /// All there is to see, without the middle of a long log.
    #[must_use]
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

/// One job, from its beginning to its end.
#[derive(Debug)]
pub struct Report {
    /// How GitLab shows it.
    pub outcome: Outcome,
    /// Every call of a driver, in order.
    pub records: Vec<Record>,
    /// What the job's log says of failed cleanups.
    pub warnings: Vec<String>,
    /// The machine's name, where config told it.
    pub machine: String,
}

impl Report {
    /// The job's log: all that config, prepare and run wrote there.
    #[must_use]
    pub fn log(&self) -> String {
        self.records
            .iter()
            .filter(|record| record.stage != "cleanup")
            .map(Record::text)
            .collect()
    }

    /// The stages that were called, in order.
    #[must_use]
    pub fn stages(&self) -> Vec<&str> {
        self.records.iter().map(|record| &*record.stage).collect()
    }

    /// The last call of a stage.
    #[track_caller]
    #[must_use]
    pub fn stage(&self, name: &str) -> &Record {
        let found = self
            .records
            .iter()
            .rev()
            .find(|record| record.stage == name);
        found.unwrap_or_else(|| panic!("no stage {name}\n{}", self.describe()))
    }

    /// Fails the test unless the job ended in this way, without warnings, and left nothing behind.
    #[track_caller]
    pub fn expect(self, outcome: &Outcome) -> Self {
        assert_eq!(self.outcome, *outcome, "{}", self.describe());
        self.expect_clean()
    }

    /// The same for a system failure, whatever its text.
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
            !self.log().contains(super::job::TOKEN),
            "the log has the token: {}",
            self.describe()
        );
        if !self.machine.is_empty() {
            assert_eq!(crate::left_of(&self.machine), "", "{}", self.describe());
        }
        self
    }

    /// All there is to see.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!("{:?}, warnings {:?}\n", self.outcome, self.warnings);
        for record in &self.records {
            let _ = writeln!(text, "{}", record.describe());
        }
        text
    }
}

fn shortened(text: &str) -> String {
    const MOST: usize = 4000;
    let chars = text.chars().count();
    if chars <= 2 * MOST {
        return text.to_owned();
    }
    let (head, tail): (String, String) = (
        text.chars().take(MOST).collect(),
        text.chars().skip(chars - MOST).collect(),
    );
    format!("{head}\n[{} characters]\n{tail}", chars - 2 * MOST)
}
