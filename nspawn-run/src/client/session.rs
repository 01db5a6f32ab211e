//! A command in a machine, from its request to its result.

use std::ffi::OsStr;
use std::io;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::{Context, Error, Result};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nspawn_common::agent::client;
use nspawn_common::agent::request::Request;
use nspawn_common::lifecycle::lost_writes;
use nspawn_common::machine::mounts::UnitMounts;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::processes;
use nspawn_common::machine::state::State;
use nspawn_common::report;
use nspawn_common::sys::signals;

use crate::cli::PROGRAM;
use crate::client::connection::{Connection, Outcome, START_LIMIT, STOP_MARGIN};
use crate::client::oom;
use crate::client::stdio;
use crate::client::stdio::{InputFailure, Output};

/// Time limit for an agent to answer that has just reported the end of a command.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// Input of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdin {
    /// The command reads this program's stdin.
    Inherited,
    /// The command's stdin is /dev/null.
    Empty,
}

/// Runs a command in the machine of this state, until it has ended and its output is delivered.
///
/// A signal that asks this program to end stops the command first, with SIGTERM, and with SIGKILL
/// after `grace_period`.
pub fn run(
    state: &State,
    request: &Request,
    stdin: Stdin,
    grace_period: Duration,
) -> Result<Outcome> {
    Session::start(state, request, stdin, grace_period)?.finish()
}

/// Command whose request the agent has received.
struct Session<'a> {
    state: &'a State,
    paths: MachinePaths,
    connection: Connection,
    outputs: Vec<Output>,
    /// Channel that receives a failure to read this program's stdin.
    stdin_failure: Option<Receiver<InputFailure>>,
}

impl<'a> Session<'a> {
    fn start(
        state: &'a State,
        request: &Request,
        stdin: Stdin,
        grace_period: Duration,
    ) -> Result<Self> {
        let paths = state.paths();
        let name = paths.name();
        let oom_watch = oom::Watch::start(&paths);
        let not_ready = || format!("machine {name} does not accept commands");
        let mounts = UnitMounts::of(&paths).with_context(not_ready)?;
        let agent = client::connect_in(&mounts, &paths, START_LIMIT).with_context(not_ready)?;
        // Nothing of the layer stays open meanwhile, so that the machine can be removed.
        lost_writes::Watch::open(&mounts, state)
            .with_context(not_ready)?
            .check()?;
        // Signals are caught before any byte is moved and before there are threads, so that no
        // signal is missed.
        signals::catch()?;
        let mut connection = Connection::new(paths.clone(), agent, grace_period, oom_watch)?;
        let (stdin_reader, stdin_writer) = match stdin {
            Stdin::Inherited => {
                let (reader, writer) = stdio::pipe()?;
                (reader, Some(writer))
            }
            Stdin::Empty => (stdio::empty_file()?, None),
        };
        let (routes, [stdout_writer, stderr_writer]) = stdio::create_routes()?;
        let streams = [stdin_reader, stdout_writer, stderr_writer];
        send_request(&mut connection, request, streams)
            .with_context(|| format!("machine {name} does not accept the command"))?;
        if request.terminal.is_some() {
            connection.enter_raw_mode()?;
        }
        let outputs = routes
            .into_iter()
            .map(Output::start)
            .collect::<Result<_>>()?;
        let stdin_failure = stdin_writer.map(start_input).transpose()?;
        Ok(Self {
            state,
            paths,
            connection,
            outputs,
            stdin_failure,
        })
    }

    fn finish(mut self) -> Result<Outcome> {
        let outcome = self.connection.wait_for_outcome();
        self.connection.leave_raw_mode();
        // A signal may also have arrived after the command has ended.
        let interruption = self.connection.take_interruption();
        if let Some(interruption) = interruption.or_else(|| signals::check().err()) {
            // A reader that does not read must not delay the end that the caller requested.
            let _ = deliver(self.outputs, Some(STOP_MARGIN));
            return Err(interruption);
        }
        // The delivery may take as long as the reader likes. A signal ends it.
        signals::release()?;
        let delivery = deliver(self.outputs, None);
        // A lost write may be the cause of any other failure.
        lost_writes::check_if_running(self.state)?;
        let name = self.paths.name();
        let outcome = outcome
            .and_then(|outcome| check_machine(outcome, &self.paths, &self.connection))
            .with_context(|| format!("machine {name} returned no result for the command"))?;
        if let Some(Ok(failure)) = self.stdin_failure.map(|receiver| receiver.try_recv()) {
            failure.into_result().context("can't read stdin")?;
        }
        delivery?;
        Ok(outcome)
    }
}

// An agent that has no process for the command closes the connection after it has sent the reason.
fn send_request(
    connection: &mut Connection,
    request: &Request,
    streams: [OwnedFd; 3],
) -> Result<()> {
    match connection.send_request(request, streams) {
        Err(error) if is_closed_connection(&error) => {
            connection.wait_for_outcome()?;
            Err(connection.exit_error())
        }
        result => result,
    }
}

fn is_closed_connection(error: &Error) -> bool {
    let kind = match (
        error.downcast_ref::<io::Error>(),
        error.downcast_ref::<Errno>(),
    ) {
        (Some(error), _) => error.kind(),
        (None, Some(errno)) => io::Error::from(*errno).kind(),
        (None, None) => return false,
    };
    matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

// Returns a channel that receives a failure to read this program's stdin.
fn start_input(target: OwnedFd) -> Result<Receiver<InputFailure>> {
    let source = io::stdin().as_fd().try_clone_to_owned()?;
    stdio::start_input(source, target)
}

fn deliver(outputs: Vec<Output>, limit: Option<Duration>) -> Result<()> {
    outputs
        .into_iter()
        .try_for_each(|output| output.finish(limit))
}

fn print_oom_report(report: &oom::Report) {
    report::print_diagnostic(PROGRAM, OsStr::new(&report.to_string()));
}

// Reports the kills of the OOM killer while the command failed. Fails if the machine has ended
// together with the command.
//
// If the whole machine is killed, the command may die before the agent, which then reports SIGKILL
// as the result of the command. After the agent had the time for another answer, the machine's
// systemd-nspawn has ended as well.
fn check_machine(
    outcome: Outcome,
    paths: &MachinePaths,
    connection: &Connection,
) -> Result<Outcome> {
    if outcome == Outcome::Exited(0) {
        return Ok(outcome);
    }
    let oom_report = connection.oom_report();
    if outcome == Outcome::Signaled(Signal::SIGKILL as u8) {
        let _ = client::ping(paths, PING_LIMIT);
        if processes::supervisor(paths).is_none() {
            return Err(match oom_report {
                Some(report) => report.into_error(),
                None => connection.exit_error(),
            });
        }
    }
    if let Some(report) = oom_report {
        print_oom_report(&report);
    }
    Ok(outcome)
}
