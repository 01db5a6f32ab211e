//! The verb: a command, or a stage of a GitLab job, and what its end means to the caller.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nspawn_common::agent::protocol;
use nspawn_common::agent::protocol::{Program, Request};
use nspawn_common::config::init::Init;
use nspawn_common::error;
use nspawn_common::exit_code;
use nspawn_common::exit_code::Exit;
use nspawn_common::gitlab;
use nspawn_common::gitlab::{ExitCodes, Job};
use nspawn_common::lifecycle::{caller, retention, usage};
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::processes;
use nspawn_common::machine::state::State;
use nspawn_common::report;

use crate::PROGRAM;
use crate::cli;
use crate::cli::Options;
use crate::client::session;
use crate::client::session::{Ended, Stdin};
use crate::client::terminal;
use crate::service_logs;
use crate::target::Machine;

/// GitLab Runner's name for the stage that removes what a job has left.
const LAST_STAGE: &str = "cleanup_file_variables";
/// The stages that are GitLab Runner's own, and not for the `entrypoint:` of a job's image.
const OWN_STAGES: [&str; 10] = [
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

/// Reads the options, runs the command, and returns the exit status.
pub fn main(argv: &[OsString]) -> Result<u8> {
    let Some(options) = cli::parse(argv)? else {
        return Ok(Exit::Success.code());
    };
    if !caller::is_root() {
        bail!("only root can reach machines; try sudo");
    }
    let done = match (&options.image, gitlab::is_active()) {
        (Some(_), true) => {
            bail!("--image is not for GitLab jobs: their machines are made by nspawn-prepare")
        }
        (Some(image), false) => Machine::with_own(image, |machine| run_command(machine, &options)),
        (None, true) => run_stage(&options),
        (None, false) => Machine::with(&MachineName::new(&options.machine)?, |machine| {
            run_command(machine, &options)
        }),
    };
    done.map_err(caller::explain)
}

fn run_command(machine: &Machine, options: &Options) -> Result<u8> {
    let terminal = options.terminal || (options.command.is_empty() && terminal::is_interactive());
    let program = if options.command.is_empty() {
        Program::Shell
    } else {
        Program::Command(options.command.clone())
    };
    let request = request(
        &machine.state,
        options,
        program,
        terminal.then(terminal::size),
    );
    Ok(
        match session::run(machine.name(), &request, Stdin::Ours, options.stop_timeout)? {
            Ended::Exited(code) => code,
            Ended::Signaled(number) => {
                // A shell is silent on these two as well: they are how pipelines and Ctrl-C end.
                if ![Signal::SIGPIPE, Signal::SIGINT]
                    .map(|signal| signal as i32)
                    .contains(&number.into())
                {
                    say_signal(number, "command");
                }
                exit_code::of_signal(number.into())
            }
            Ended::Refused(refusal) => refusal.code(),
        },
    )
}

/// A stage of a GitLab job: the arguments are the script and the stage's name, whatever it is.
fn run_stage(options: &Options) -> Result<u8> {
    let name = Job::from_env()?.machine_name()?;
    let exit_code_file = gitlab::exit_code_file();
    let cleared = exit_code_file
        .as_ref()
        .map_or(Ok(()), |path| gitlab::store_exit_code(path, None));
    let run = |machine: &Machine| run_script(machine, options, exit_code_file.as_deref());
    let done = cleared.and_then(|()| Machine::with(&name, run));
    // The one that comes last, whatever came before (GitLab Runner 14.0).
    if options
        .command
        .first()
        .is_some_and(|stage| stage == LAST_STAGE)
    {
        service_logs::tell_ended(&name).unwrap_or_else(|error| {
            report::print_diagnostic(PROGRAM, OsStr::new(&format!("{error:#}")))
        });
        report::print_diagnostic(PROGRAM, OsStr::new(&usage::describe(&name)));
    }
    match &done {
        Ok(0) => {}
        Err(error) if error::is_interrupted(error) => {}
        _ => keep_for_a_look(&name).unwrap_or_else(|error| {
            report::print_diagnostic(PROGRAM, OsStr::new(&format!("{error:#}")))
        }),
    }
    done
}

// Tells the job's log, since nobody reads what the cleanup stage says.
fn keep_for_a_look(name: &MachineName) -> Result<()> {
    let paths = State::paths_of(name);
    let Some(state) = State::read(name)
        .ok()
        .filter(|state| state.keep.applies_to(true))
    else {
        return Ok(());
    };
    if !retention::has_failed(&paths) {
        retention::record_failure(&paths)?;
        report::print_diagnostic(
            PROGRAM,
            OsStr::new(&retention::describe(&state, processes::is_running(&paths))),
        );
    }
    Ok(())
}

fn run_script(machine: &Machine, options: &Options, exit_code_file: Option<&Path>) -> Result<u8> {
    let script = read_script(&options.machine)?;
    let is_own = options
        .command
        .first()
        .is_some_and(|stage| OWN_STAGES.iter().any(|own| stage == own));
    let entrypoint = if is_own {
        Vec::new()
    } else {
        machine.state.entrypoint.clone()
    };
    let mut request = request(
        &machine.state,
        options,
        Program::Script(script, entrypoint),
        None,
    );
    request.user = request
        .user
        .or_else(|| machine.state.user.clone().map(OsString::from));
    let code = match session::run(machine.name(), &request, Stdin::Empty, options.stop_timeout)? {
        Ended::Exited(0) => return Ok(0),
        Ended::Exited(code) => code,
        Ended::Signaled(number) => {
            say_signal(number, "script");
            exit_code::of_signal(number.into())
        }
        // Whom the job wants to be is not there, as far as anybody can tell.
        Ended::Refused(Exit::RunFailure) if machine.state.user.is_some() => {
            return Ok(ExitCodes::from_env().build);
        }
        Ended::Refused(Exit::RunFailure) => return Ok(ExitCodes::from_env().system),
        Ended::Refused(refusal) => refusal.code(),
    };
    if let Some(path) = exit_code_file {
        gitlab::store_exit_code(path, Some(code))?;
    }
    Ok(ExitCodes::from_env().build)
}

fn read_script(path: &OsStr) -> Result<Vec<u8>> {
    let limit = protocol::MAX_REQUEST as u64 / 2;
    let mut script = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut script));
    read.with_context(|| format!("can't read the script {path:?}"))?;
    if script.len() as u64 > limit {
        bail!("the script {path:?} is larger than {} MiB", limit >> 20);
    }
    Ok(script)
}

fn request(
    state: &State,
    options: &Options,
    program: Program,
    terminal: Option<(u16, u16)>,
) -> Request {
    let mut environment = state.environment.clone();
    if let (Some(_), Some(term)) = (terminal, std::env::var_os("TERM")) {
        environment.push([OsStr::new("TERM="), &term].into_iter().collect());
    }
    environment.extend(options.environment.iter().cloned());
    Request {
        program,
        environment,
        user: options.user.clone(),
        directory: options.directory.clone(),
        terminal,
        // Processes end with the run that began them, also where another run keeps the machine.
        kill_remaining: options.kill_remaining || state.init == Init::None,
    }
}

fn say_signal(number: u8, what: &str) {
    report::print_diagnostic(
        PROGRAM,
        OsStr::new(&format!(
            "{} ended the {what}",
            exit_code::describe_signal(number.into())
        )),
    );
}
