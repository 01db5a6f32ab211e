//! Explains why a machine did not start.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};

use crate::command;
use crate::command::argv;
use crate::config::init::Init;
use crate::error;
use crate::error::{Failure, TimedOut};
use crate::machine::paths::MachinePaths;
use crate::machine::processes;
use crate::machine::state::State;
use crate::sys::clock::Moment;
use crate::sys::fs::ignore_missing;
use crate::systemd::journal;
use crate::text;

/// Time limit for a query to a machine that does not boot.
const QUERY_LIMIT: Duration = Duration::from_secs(5);
/// Time limit for `systemctl is-active`.
const SYSTEMCTL_LIMIT: Duration = Duration::from_secs(10);

/// Returns `error` with everything that is known about the failed start, one fact a line.
///
/// Queries the machine if it runs. `since` is when the start began.
pub fn explain(state: &State, error: Error, since: Moment) -> Error {
    let paths = State::paths_of(&state.name);
    if let Some(cause) = start_error(&paths) {
        return did_not_start(state, &cause);
    }
    let error = if error.is::<TimedOut>() {
        let limit = state.timeout.as_secs();
        anyhow!("it did not boot within {limit} s; see --timeout")
    } else {
        error
    };
    anyhow!(
        "machine {} of image {} did not start: {error:#}{}{}",
        state.name,
        state.image,
        machined_hint(),
        details(state, &paths, since)
    )
}

// A recorded error needs no details, and keeps its type.
fn did_not_start(state: &State, cause: &Error) -> Error {
    let text = format!(
        "machine {} of image {} did not start: {cause:#}",
        state.name, state.image
    );
    if error::is_job_fault(cause) {
        Failure::job(text).into()
    } else {
        Error::msg(text)
    }
}

fn details(state: &State, paths: &MachinePaths, since: Moment) -> String {
    let can_answer = processes::is_running(paths) && state.init == Init::Systemd;
    let query = |command| can_answer.then(|| query(paths, command)).flatten();
    let sections = [
        (
            "its systemd still waits for these jobs:",
            query("systemctl list-jobs --no-pager --plain --full"),
        ),
        (
            "warnings in its journal:",
            query("journalctl --quiet --no-pager --output=cat --priority=warning --lines=10"),
        ),
        (
            "the last lines of its console and its unit:",
            Some(journal::last_words(paths, since)),
        ),
    ];
    let sections = sections.into_iter().filter_map(|(title, content)| {
        let content = content.filter(|content| !content.is_empty())?;
        Some(text::indent(&format!("{title}\n{content}")))
    });
    sections.collect()
}

/// Records why the launcher could not start the machine, for [`explain`].
pub fn record_start_error(paths: &MachinePaths, error: &Error) {
    // If the file can't be written, the journal has the error.
    let _ = fs::write(paths.start_error_file(), error::encode(error));
}

/// Removes the error that an earlier start recorded.
pub fn remove_start_error(paths: &MachinePaths) -> Result<()> {
    ignore_missing(fs::remove_file(paths.start_error_file()))
        .context("can't remove the recorded error of an earlier start")
}

fn start_error(paths: &MachinePaths) -> Option<Error> {
    error::decode(&fs::read_to_string(paths.start_error_file()).ok()?)
}

// The agent starts early in the boot, so it can run commands in a machine that does not finish
// booting. The query must not count as a stage of a GitLab job.
fn query(paths: &MachinePaths, command: &str) -> Option<String> {
    let mut argv = argv(["env", "--unset=CUSTOM_ENV_CI_JOB_ID"]);
    argv.extend([
        command::find_sibling("nspawn-run").ok()?.into(),
        paths.name().as_str().into(),
    ]);
    argv.extend(command.split(' ').map(Into::into));
    let answer = command::run_checked(&argv, QUERY_LIMIT).ok()?;
    Some(text::printable_lines(&answer))
}

// A stopped systemd-machined may be why the machine did not start.
fn machined_hint() -> &'static str {
    let command = argv([
        "systemctl",
        "is-active",
        "--quiet",
        "systemd-machined.service",
    ]);
    let outcome = command::run(&command, SYSTEMCTL_LIMIT);
    if outcome.is_ok_and(|outcome| outcome.status.success()) {
        ""
    } else {
        "\n  systemd-machined is not running; see systemctl status systemd-machined"
    }
}
