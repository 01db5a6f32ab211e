//! The verb: asks the machine's agent for the command, moves the streams, and tells the end.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nspawn_common::exit::{self, Exit};
use nspawn_common::gitlab::{self, ExitCodes, Job};
use nspawn_common::lifecycle;
use nspawn_common::name::MachineName;
use nspawn_common::paths::MachinePaths;
use nspawn_common::state::State;
use nspawn_common::wire::{self, Program, Request};

use crate::PROGRAM;
use crate::options::{self, Options};
use crate::streams::{self, Output};
use crate::terminal::{self, Raw};

/// How long the agent may take to start a command.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Exited(u8),
    Signaled(u8),
    /// It never ran: an exit status by the convention of env(1).
    Refused(u8),
}

/// Reads the options, runs the command, and returns the exit status.
pub fn main(argv: &[OsString]) -> Result<u8> {
    let Some(options) = options::parse(argv)? else { return Ok(Exit::Success.code()) };
    if !lifecycle::is_root() {
        bail!("only root can reach machines; try sudo");
    }
    if gitlab::is_active() { run_stage(options) } else { run_command(options) }
}

fn run_command(options: Options) -> Result<u8> {
    let name = MachineName::new(&options.machine)?;
    let terminal = options.terminal || (options.command.is_empty() && terminal::is_interactive());
    let program = if options.command.is_empty() { Program::Shell } else { Program::Command(options.command.clone()) };
    let ended = run(&name, request(&name, &options, program, terminal.then(terminal::size))?, Stdin::Ours)?;
    Ok(match ended {
        Ended::Exited(code) | Ended::Refused(code) => code,
        Ended::Signaled(number) => exit::code_of_signal(number.into()),
    })
}

/// A stage of a GitLab job: the arguments are the script and the stage's name, whatever it is.
fn run_stage(options: Options) -> Result<u8> {
    let name = Job::from_env()?.machine_name()?;
    let exit_code_file = gitlab::exit_code_file();
    if let Some(path) = &exit_code_file {
        gitlab::store_exit_code(path, None)?;
    }
    let script = read_script(&options.machine)?;
    let ended = run(&name, request(&name, &options, Program::Script(script), None)?, Stdin::Empty)?;
    let code = match ended {
        Ended::Exited(0) => return Ok(0),
        Ended::Exited(code) => code,
        Ended::Refused(code) if code == Exit::RunFailure.code() => return Ok(ExitCodes::from_env().system),
        Ended::Refused(code) => code,
        Ended::Signaled(number) => {
            exit::say(PROGRAM, OsStr::new(&format!("signal {number} ended the script")));
            exit::code_of_signal(number.into())
        }
    };
    if let Some(path) = &exit_code_file {
        gitlab::store_exit_code(path, Some(code))?;
    }
    Ok(ExitCodes::from_env().build)
}

fn read_script(path: &OsStr) -> Result<Vec<u8>> {
    let limit = wire::MAX_REQUEST as u64 / 2;
    let mut script = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut script));
    read.with_context(|| format!("can't read the script {path:?}"))?;
    if script.len() as u64 > limit {
        bail!("the script {path:?} is larger than {} MiB", limit >> 20);
    }
    Ok(script)
}

fn request(name: &MachineName, options: &Options, program: Program, terminal: Option<(u16, u16)>) -> Result<Request> {
    let mut environment = State::read(name)?.environment;
    if let (Some(_), Some(term)) = (terminal, std::env::var_os("TERM")) {
        environment.push([OsStr::new("TERM="), &term].into_iter().collect());
    }
    environment.extend(options.environment.iter().cloned());
    Ok(Request {
        program,
        environment,
        user: options.user.clone(),
        directory: options.directory.clone(),
        terminal,
        kill_remaining: options.kill_remaining,
    })
}

/// What the command reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stdin {
    Ours,
    Empty,
}

fn run(name: &MachineName, request: Request, stdin: Stdin) -> Result<Ended> {
    let paths = MachinePaths::new(name);
    let mut agent =
        wire::connect(&paths, START_LIMIT).with_context(|| format!("machine {name} does not take commands"))?;
    // Before any byte is moved, so that no change of the terminal's size is missed.
    let resized = resize_events()?;
    let (stdin_there, stdin_here) = streams::pipe()?;
    let (stdout_here, stdout_there) = streams::pipe()?;
    let (stderr_here, stderr_there) = streams::pipe()?;
    wire::send(&mut agent, &request, [stdin_there, stdout_there, stderr_there])
        .with_context(|| format!("machine {name} does not take the command"))?;
    let raw = if request.terminal.is_some() { Raw::enter()? } else { None };
    let outputs = [
        Output::start(stdout_here, std::io::stdout().as_fd().try_clone_to_owned()?)?,
        Output::start(stderr_here, std::io::stderr().as_fd().try_clone_to_owned()?)?,
    ];
    match stdin {
        Stdin::Ours => streams::feed(std::io::stdin().as_fd().try_clone_to_owned()?, stdin_here),
        Stdin::Empty => drop(stdin_here),
    }
    let ended = wait(&mut agent, &resized);
    let delivered: Result<()> = outputs.into_iter().try_for_each(Output::finish);
    drop(raw);
    let ended = ended.with_context(|| format!("machine {name} gave no result"))?;
    delivered.map(|()| ended)
}

fn wait(agent: &mut UnixStream, resized: &SignalFd) -> Result<Ended> {
    match answer(agent)? {
        (wire::STARTED, _) => {}
        (wire::REFUSED, body) => return refused(&body),
        (tag, _) => bail!("its agent answered with the unknown message {tag}"),
    }
    loop {
        let mut fds = [PollFd::new(agent.as_fd(), PollFlags::POLLIN), PollFd::new(resized.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("can't wait for the command"),
        }
        if fds[0].any() == Some(true) {
            return match answer(agent)? {
                (wire::EXITED, body) => Ok(Ended::Exited(one_byte(&body)?)),
                (wire::SIGNALED, body) => Ok(Ended::Signaled(one_byte(&body)?)),
                (tag, _) => bail!("its agent answered with the unknown message {tag}"),
            };
        }
        while let Ok(Some(_)) = resized.read_signal() {
            agent.write_all(&wire::frame(wire::RESIZE, &wire::encode_size(terminal::size())))?;
        }
    }
}

fn answer(agent: &mut UnixStream) -> Result<(u8, Vec<u8>)> {
    let frame = wire::read_frame(agent, wire::MAX_ANSWER).context("its agent does not answer")?;
    frame.context("it went away, or its agent did, while the command ran")
}

fn one_byte(body: &[u8]) -> Result<u8> {
    match body {
        [byte] => Ok(*byte),
        _ => bail!("its agent gave a result of {} bytes", body.len()),
    }
}

fn refused(body: &[u8]) -> Result<Ended> {
    let (code, why) = body.split_first().context("its agent gave no reason")?;
    exit::say(PROGRAM, OsStr::new(&wire::printable(why)));
    Ok(Ended::Refused(*code))
}

fn resize_events() -> Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGWINCH);
    signals.thread_block().context("can't block a signal")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("can't watch the terminal's size")
}
