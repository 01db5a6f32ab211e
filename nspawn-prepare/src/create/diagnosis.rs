//! Why a machine did not start: what it still waits for and warns of, and what it said last.

use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use nspawn_common::command;
use nspawn_common::command::argv;
use nspawn_common::config::init::Init;
use nspawn_common::error;
use nspawn_common::error::Failure;
use nspawn_common::error::TimedOut;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::processes;
use nspawn_common::machine::state::State;
use nspawn_common::sys::clock::Moment;
use nspawn_common::systemd::journal;
use nspawn_common::text;

use crate::preflight;

/// Whose fault it was, in a note.
const JOB: &str = "job";
const HOST: &str = "host";

/// How long a machine that does not boot may take to tell.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// `error` with all that is known, below the line that says what failed. Asks the machine, if it runs.
pub fn of(state: &State, error: Error, since: Moment) -> Error {
    let error = if error.is::<TimedOut>() {
        anyhow!(
            "it did not boot within {} s, see --timeout",
            state.timeout.as_secs()
        )
    } else {
        error
    };
    let paths = &MachinePaths::new(&state.name);
    if let Some(why) = noted(paths) {
        let text = format!(
            "machine {} of image {} did not start: {why:#}",
            state.name, state.image
        );
        return if error::is_job_fault(&why) {
            Failure::job(text).into()
        } else {
            Error::msg(text)
        };
    }
    let runs = processes::is_running(paths);
    let ask = |question| {
        if runs && state.init == Init::Systemd {
            ask(paths, question)
        } else {
            None
        }
    };
    let parts = [
        (
            "its systemd still waits for these jobs:",
            ask("systemctl list-jobs --no-pager --plain --full"),
        ),
        (
            "its journal warns:",
            ask("journalctl --quiet --no-pager --output=cat --priority=warning --lines=10"),
        ),
        (
            "its console and its unit said last:",
            journal::last_words(paths, since).ok(),
        ),
    ];
    let parts = parts.into_iter().filter_map(|(title, text)| {
        let text = text.filter(|text| !text.is_empty())?;
        Some(text::indent(&format!("{title}\n{text}")))
    });
    let (name, image, hint) = (&state.name, &state.image, preflight::machined_hint());
    anyhow!(
        "machine {name} of image {image} did not start: {error:#}{hint}{}",
        parts.collect::<String>()
    )
}

/// Notes why the machine's unit can't start it, for [`of`].
pub fn note(paths: &MachinePaths, error: &Error) {
    let whose = if error::is_job_fault(error) {
        JOB
    } else {
        HOST
    };
    // If it can't be written, the journal has it.
    let _ = fs::write(paths.start_error_file(), format!("{whose}\n{error:#}"));
}

/// Forgets what an earlier start has noted.
pub fn forget(paths: &MachinePaths) -> Result<()> {
    match fs::remove_file(paths.start_error_file()) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context("can't forget an earlier start")
        }
        _ => Ok(()),
    }
}

fn noted(paths: &MachinePaths) -> Option<Error> {
    let text = fs::read_to_string(paths.start_error_file()).ok()?;
    let (whose, why) = text.split_once('\n')?;
    Some(if whose == JOB {
        Failure::job(why.to_owned()).into()
    } else {
        Error::msg(why.to_owned())
    })
}

// Through the machine's agent, which starts beside the boot; and not as a stage of a GitLab job.
fn ask(paths: &MachinePaths, question: &str) -> Option<String> {
    let mut command = argv(["env", "--unset=CUSTOM_ENV_CI_JOB_ID"]);
    command.extend([
        preflight::agent_program().ok()?.into(),
        paths.name().as_str().into(),
    ]);
    command.extend(question.split(' ').map(Into::into));
    command::run_checked(&command, ASK_LIMIT)
        .ok()
        .map(|answer| text::printable_lines(&answer))
}
