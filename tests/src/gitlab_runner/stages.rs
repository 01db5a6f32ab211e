//! Sub-stages of run, in GitLab Runner's order.

use super::attempt::Attempt;
use super::interventions::Reaction;
use super::received::ReceivedJob;
use super::remote::Remote;
use super::report::{Failure, Interruption, Outcome, Report};
use super::runner::add_record;

/// Stages before the script, each with the variable that sets the number of attempts.
const BEFORE: [(&str, &str); 4] = [
    ("prepare_script", ""),
    ("get_sources", "GET_SOURCES_ATTEMPTS"),
    ("restore_cache", "RESTORE_CACHE_ATTEMPTS"),
    ("download_artifacts", "ARTIFACT_DOWNLOAD_ATTEMPTS"),
];
/// Stages after a script that succeeded.
const AFTER_SUCCESS: [&str; 2] = ["archive_cache", "upload_artifacts_on_success"];
/// Stages after a script that failed.
const AFTER_FAILURE: [&str; 2] = ["archive_cache_on_failure", "upload_artifacts_on_failure"];
/// Further stages of GitLab Runner 19.4.
const OTHER: [&str; 4] = [
    "build_script",
    "clear_worktree",
    "after_script",
    "cleanup_file_variables",
];

/// The sub-stages of one job.
pub struct Stages<'a> {
    attempt: &'a Attempt<'a>,
    job: &'a ReceivedJob,
    remote: &'a Remote,
    report: &'a mut Report,
    /// Reason for which no more stages are called.
    aborted: Option<Interruption>,
}

impl<'a> Stages<'a> {
    /// Creates the sub-stages of `job`, whose machine is prepared.
    pub fn new(
        attempt: &'a Attempt<'a>,
        job: &'a ReceivedJob,
        remote: &'a Remote,
        report: &'a mut Report,
    ) -> Self {
        Self {
            attempt,
            job,
            remote,
            report,
            aborted: None,
        }
    }

    /// Calls the sub-stages, and returns the outcome of the job.
    pub fn run(mut self) -> Outcome {
        let mut result = BEFORE
            .iter()
            .try_for_each(|(stage, attempts)| self.try_repeatedly(stage, attempts));
        if result.is_ok() {
            result = self
                .steps()
                .iter()
                .try_for_each(|step| self.call(step, "running"));
            // A failure of `after_script` does not change the outcome.
            let _ = self.call("after_script", status_of(&result));
        }
        let last = if result.is_ok() {
            AFTER_SUCCESS
        } else {
            AFTER_FAILURE
        };
        let uploaded = last
            .iter()
            .try_for_each(|stage| self.call(stage, status_of(&result)));
        let _ = self.call("cleanup_file_variables", status_of(&result));
        if let Some(why) = self.aborted {
            return Failure::Interrupted(why).into();
        }
        match result.and(uploaded) {
            Ok(()) => Outcome::Success,
            Err(failure) => failure.into(),
        }
    }

    /// Calls a stage until it succeeds, at most as often as the variable says.
    fn try_repeatedly(&mut self, stage: &str, variable: &str) -> Result<(), Failure> {
        let attempts = self
            .job
            .value(variable)
            .and_then(|count| count.parse().ok())
            .unwrap_or(1);
        let mut result = Ok(());
        for attempt in 0..attempts {
            if attempt > 0 && stage == "get_sources" {
                self.call("clear_worktree", "running")?;
            }
            result = self.call(stage, "running");
            if matches!(result, Ok(()) | Err(Failure::Interrupted(_))) {
                break;
            }
        }
        result
    }

    /// Returns the script and the stages whose names GitLab Runner 19.4 does not have.
    fn steps(&self) -> Vec<String> {
        let known: Vec<_> = BEFORE
            .map(|(stage, _)| stage)
            .into_iter()
            .chain(AFTER_SUCCESS)
            .chain(AFTER_FAILURE)
            .chain(OTHER)
            .collect();
        let unknown = self
            .job
            .stages
            .iter()
            .map(|(stage, _)| stage.clone())
            .filter(|stage| !known.contains(&&**stage));
        std::iter::once("build_script".to_owned())
            .chain(unknown)
            .collect()
    }

    fn call(&mut self, stage: &str, status: &str) -> Result<(), Failure> {
        if let Some(why) = self.aborted {
            return Err(Failure::Interrupted(why));
        }
        let result = match self.remote.request_for(stage) {
            Reaction::Continue => self
                .attempt
                .run(stage, status)
                .map_or(Ok(()), |record| add_record(record, self.report)),
            Reaction::Canceling => Err(Failure::Interrupted(Interruption::Canceling)),
            Reaction::Abort => Err(Failure::Interrupted(Interruption::Abort)),
        };
        if let Err(Failure::Interrupted(why @ (Interruption::Abort | Interruption::TimeOut))) =
            result
        {
            self.aborted = Some(why);
        }
        result
    }
}

/// Returns whether the stage comes before the script.
pub fn is_before_script(stage: &str) -> bool {
    ["config", "prepare", "clear_worktree"].contains(&stage)
        || BEFORE.iter().any(|(other, _)| *other == stage)
}

/// Returns whether the stage comes after the script.
pub fn is_after_script(stage: &str) -> bool {
    let last = ["after_script", "cleanup_file_variables"];
    last.contains(&stage) || AFTER_SUCCESS.contains(&stage) || AFTER_FAILURE.contains(&stage)
}

/// Returns the value of `CI_JOB_STATUS`.
fn status_of(result: &Result<(), Failure>) -> &'static str {
    match result {
        Ok(()) => "success",
        Err(Failure::Interrupted(_)) => "canceled",
        Err(_) => "failed",
    }
}
