//! One call of a machine's agent: sends the command, moves the streams, and waits for the end.

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nspawn_common::exit::{self, Exit};
use nspawn_common::interrupt;
use nspawn_common::name::MachineName;
use nspawn_common::paths::MachinePaths;
use nspawn_common::wire::{self, Request};

use crate::PROGRAM;
use crate::death;
use crate::streams::{self, Output};
use crate::terminal::{self, Raw};

/// How long the agent may take to start a command.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How much longer than the grace period the end of a command that is stopped may take.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Exited(u8),
    Signaled(u8),
    /// It never ran.
    Refused(Exit),
}

/// What the command reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdin {
    Ours,
    Empty,
}

/// Runs a command to its end. A signal that ends this program ends the command first: SIGTERM, and
/// SIGKILL after `grace`.
pub fn run(name: &MachineName, request: &Request, stdin: Stdin, grace: Duration) -> Result<Ended> {
    let paths = MachinePaths::new(name);
    let agent = wire::connect(&paths, START_LIMIT).with_context(|| format!("machine {name} does not take commands"))?;
    // Before any byte is moved and before there are threads, so that no signal is missed.
    interrupt::catch()?;
    let mut call = Call { name: name.clone(), agent, resized: resize_events()?, deadline: None, interrupted: None };
    let (stdin_there, stdin_here) = streams::pipe()?;
    let (stdout_here, stdout_there) = streams::pipe()?;
    let (stderr_here, stderr_there) = streams::pipe()?;
    wire::send(&mut call.agent, request, [stdin_there, stdout_there, stderr_there])
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
    let ended = call.wait(grace);
    // Who asked for the end is not kept waiting by a reader that does not read.
    let limit = call.interrupted.is_some().then_some(STOP_MARGIN);
    let delivered: Result<()> = outputs.into_iter().try_for_each(|output| output.finish(limit));
    drop(raw);
    if let Some(interrupted) = call.interrupted {
        return Err(interrupted);
    }
    let ended = ended.with_context(|| format!("machine {name} gave no result of the command"))?;
    delivered.map(|()| ended)
}

struct Call {
    name: MachineName,
    agent: UnixStream,
    resized: SignalFd,
    /// Of what is waited for now.
    deadline: Option<Instant>,
    interrupted: Option<Error>,
}

impl Call {
    fn wait(&mut self, grace: Duration) -> Result<Ended> {
        self.deadline = Some(Instant::now() + START_LIMIT);
        match self.answer(grace)? {
            (wire::STARTED, _) => {}
            (wire::REFUSED, body) => return refused(&body),
            (tag, _) => bail!("its agent answered with the unknown message {tag}"),
        }
        if self.interrupted.is_none() {
            self.deadline = None;
        }
        match self.answer(grace)? {
            (wire::EXITED, body) => Ok(Ended::Exited(one_byte(&body)?)),
            (wire::SIGNALED, body) => Ok(Ended::Signaled(one_byte(&body)?)),
            (tag, _) => bail!("its agent answered with the unknown message {tag}"),
        }
    }

    // The agent's next message.
    fn answer(&mut self, grace: Duration) -> Result<(u8, Vec<u8>)> {
        while !self.has_answer()? {
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                bail!("its agent does not answer");
            }
            while let Ok(Some(_)) = self.resized.read_signal() {
                self.tell(wire::RESIZE, &wire::encode_size(terminal::size()))?;
            }
            if let Err(interrupted) = interrupt::check() {
                self.interrupted = Some(interrupted);
                self.deadline = Some(Instant::now() + grace + STOP_MARGIN);
                self.tell(wire::STOP, &wire::encode_seconds(grace))?;
                // The next one ends this program, and so the command, at once.
                interrupt::release()?;
            }
        }
        let frame = wire::read_frame(&mut self.agent, wire::MAX_ANSWER);
        frame.ok().flatten().with_context(|| death::cause(&self.name))
    }

    // Waits for anything; whether it is an answer.
    fn has_answer(&self) -> Result<bool> {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        let mut fds = vec![PollFd::new(self.agent.as_fd(), PollFlags::POLLIN)];
        if self.interrupted.is_none() {
            fds.push(PollFd::new(self.resized.as_fd(), PollFlags::POLLIN));
            fds.extend(interrupt::descriptor().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(fds[0].any() == Some(true)),
            Err(error) => Err(error).context("can't wait for the command"),
        }
    }

    fn tell(&mut self, tag: u8, body: &[u8]) -> Result<()> {
        self.agent.write_all(&wire::frame(tag, body)).context("its agent does not listen")
    }
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
    Ok(Ended::Refused(Exit::of_refusal(*code)))
}

fn resize_events() -> Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGWINCH);
    signals.thread_block().context("can't block a signal")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("can't watch the terminal's size")
}
