//! A stage of a GitLab job.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::unistd::dup2_stderr;
use nspawn_common::agent::protocol;
use nspawn_common::agent::request::Program;
use nspawn_common::error;
use nspawn_common::exit_code;
use nspawn_common::exit_code::Exit;
use nspawn_common::gitlab;
use nspawn_common::gitlab::{ExitCodes, Job};
use nspawn_common::lifecycle::{list, lost_writes, retention, usage};
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::processes;
use nspawn_common::machine::state::State;
use nspawn_common::report;

use crate::cli::{Options, PROGRAM};
use crate::client::connection::Outcome;
use crate::client::session;
use crate::client::session::Stdin;
use crate::commands::request;
use crate::service_logs;
use crate::target::Machine;

/// Maximum size of a script, in bytes.
const MAX_SCRIPT: u64 = protocol::MAX_REQUEST as u64 / 2;

/// Stage in which GitLab Runner removes the files of a job. It is the last stage whatever happened
/// before (GitLab Runner 14.0).
const LAST_STAGE: &str = "cleanup_file_variables";
/// Stages with scripts of GitLab Runner itself, which run without the `entrypoint:` of the job's
/// image.
const RUNNER_STAGES: [&str; 10] = [
    "prepare_script",
    "get_sources",
    "clear_worktree",
    "restore_cache",
    "download_artifacts",
    "archive_cache",
    "archive_cache_on_failure",
    "upload_artifacts_on_success",
    "upload_artifacts_on_failure",
    LAST_STAGE,
];

/// Runs a stage of the GitLab job that this program is called for, and returns the exit status.
///
/// The arguments are the path of a script and the name of the stage, which may be an unknown one.
pub fn run_stage(options: &Options) -> Result<u8> {
    // GitLab Runner reads the two streams from two pipes, which loses the order of their lines. So
    // everything goes to one of them. A failure costs no more than the order.
    let _ = dup2_stderr(io::stdout());
    let name = Job::from_env()?.machine_name()?;
    let result = run_in_machine(&name, options);
    if is_stage(options, &[LAST_STAGE]) {
        print_if_err(service_logs::print(&name, wants_service_logs()));
        report::print_diagnostic(PROGRAM, OsStr::new(&usage::describe(&name)));
    }
    let has_failed = match &result {
        Ok(code) => *code != 0,
        Err(error) => !error::is_interrupted(error),
    };
    if has_failed {
        print_if_err(record_failure(&name));
    }
    result
}

/// Returns whether the job asks for the logs of its services.
fn wants_service_logs() -> bool {
    let value = gitlab::variable("CI_DEBUG_SERVICES").unwrap_or_default();
    // These are the values that GitLab Runner takes for true (Go's strconv.ParseBool).
    ["1", "t", "T", "true", "True", "TRUE"].contains(&&*value)
}

fn run_in_machine(name: &MachineName, options: &Options) -> Result<u8> {
    let exit_code_file = gitlab::exit_code_file();
    if let Some(path) = &exit_code_file {
        gitlab::store_exit_code(path, None)?;
    }
    Machine::with_existing(name, |machine| {
        run_script(machine, options, exit_code_file.as_deref())
    })
}

fn is_stage(options: &Options, stages: &[&str]) -> bool {
    let stage = options.command.first();
    stage.is_some_and(|stage| stages.iter().any(|name| stage == name))
}

fn print_if_err(result: Result<()>) {
    if let Err(error) = result {
        report::print_diagnostic(PROGRAM, OsStr::new(&format!("{error:#}")));
    }
}

// Records the failure if the machine is to be kept for inspection. This stage also reports how to
// inspect the machine, since the output of the cleanup stage is not part of the job's log.
fn record_failure(name: &MachineName) -> Result<()> {
    let paths = State::paths_of(name);
    let Ok(state) = State::read(name) else {
        return Ok(());
    };
    if !state.keep.applies_to(true) || retention::has_failed(&paths) {
        return Ok(());
    }
    retention::record_failure(&paths)?;
    let line = retention::describe(&state, processes::is_running(&paths));
    report::print_diagnostic(PROGRAM, OsStr::new(&line));
    Ok(())
}

fn run_script(machine: &Machine, options: &Options, exit_code_file: Option<&Path>) -> Result<u8> {
    let script = read_script(&options.machine)?;
    let entrypoint = if is_stage(options, &RUNNER_STAGES) {
        Vec::new()
    } else {
        machine.state.entrypoint.clone()
    };
    let program = Program::Script(script, entrypoint);
    let mut request = request::create(&machine.state, options, program, None);
    if request.user.is_none() {
        request.user = machine.state.user.clone().map(OsString::from);
    }
    let outcome = session::run(&machine.state, &request, Stdin::Empty, options.stop_timeout)?;
    check_services(&machine.state.name)?;
    let code = match outcome {
        Outcome::Exited(0) => return Ok(0),
        Outcome::Exited(code) => code,
        Outcome::Signaled(number) => {
            request::print_signal(number, "script");
            exit_code::of_signal(number.into())
        }
        // The most likely cause is that the machine does not have the user that the job requests,
        // so this counts as an error of the job.
        Outcome::Refused(Exit::RunFailure) if machine.state.user.is_some() => {
            return Ok(ExitCodes::from_env().build);
        }
        Outcome::Refused(Exit::RunFailure) => return Ok(ExitCodes::from_env().system),
        Outcome::Refused(exit) => exit.code(),
    };
    if let Some(path) = exit_code_file {
        gitlab::store_exit_code(path, Some(code))?;
    }
    Ok(ExitCodes::from_env().build)
}

/// Fails if a service of the job has lost a write, since the job relies on its services.
fn check_services(job: &MachineName) -> Result<()> {
    for service in list::services_of(job)? {
        // The end of a service is reported at the end of the job.
        lost_writes::check_if_running(&service)?;
    }
    Ok(())
}

fn read_script(path: &OsStr) -> Result<Vec<u8>> {
    let mut script = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_SCRIPT + 1).read_to_end(&mut script))
        .with_context(|| format!("can't read the script {path:?}"))?;
    if script.len() as u64 > MAX_SCRIPT {
        bail!(
            "can't run the script {path:?}: it is larger than {} MiB",
            MAX_SCRIPT >> 20
        );
    }
    Ok(script)
}
