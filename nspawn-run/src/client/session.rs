//! One call of a machine's agent: sends the command, moves the streams, and waits for the end.

use std::ffi::OsStr;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nspawn_common::agent::client;
use nspawn_common::agent::protocol;
use nspawn_common::agent::protocol::Request;
use nspawn_common::exit_code::Exit;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::processes;
use nspawn_common::machine::state::State;
use nspawn_common::report;
use nspawn_common::sys::clock::Moment;
use nspawn_common::sys::signals;
use nspawn_common::text;

use crate::PROGRAM;
use crate::client::machine_exit;
use crate::client::oom;
use crate::client::stdio;
use crate::client::stdio::Output;
use crate::client::task_limit;
use crate::client::terminal;
use crate::client::terminal::Raw;

/// How long the agent may take to start a command.
const START_LIMIT: Duration = Duration::from_secs(30);
/// After how much silence of a running command its agent is asked whether it is there.
const PING_INTERVAL: Duration = Duration::from_secs(60);
/// How long it may take to answer that, in a machine that is not frozen.
const LIFE_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to answer when it has just told of an end.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// Signals within this time are one: who ends a process group or a session may send several.
const SIGNAL_PAUSE: Duration = Duration::from_millis(300);
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
    let paths = State::paths_of(name);
    let agent = client::connect(&paths, START_LIMIT)
        .with_context(|| format!("machine {name} does not take commands"))?;
    // Before any byte is moved and before there are threads, so that no signal is missed.
    signals::catch()?;
    let mut call = Call::new(name, agent, grace)?;
    let memory = oom::Watch::start(&paths);
    let (stdin_there, stdin_here) = stdio::pipe()?;
    let (outputs, [stdout_there, stderr_there]) = stdio::outputs()?;
    let sent = client::send_request(
        &mut call.agent,
        request,
        [stdin_there, stdout_there, stderr_there],
    );
    // An agent that has no process for the command hangs up once it has said so.
    let sent = sent.or_else(|error| {
        if !is_hang_up(&error) {
            return Err(error);
        }
        call.wait()
            .and_then(|_| bail!(machine_exit::cause(&paths, call.started)))
    });
    sent.with_context(|| format!("machine {name} does not take the command"))?;
    call.raw = if request.terminal.is_some() {
        Raw::enter()?
    } else {
        None
    };
    let outputs = outputs
        .into_iter()
        .map(Output::start)
        .collect::<Result<Vec<_>>>()?;
    let input = match stdin {
        Stdin::Ours => Some(stdio::feed(
            std::io::stdin().as_fd().try_clone_to_owned()?,
            stdin_here,
        )?),
        Stdin::Empty => {
            drop(stdin_here);
            None
        }
    };
    let (ended, started) = (call.wait(), call.started);
    call.raw = None;
    if let Some(interrupted) = call.interrupted {
        // Who asked for the end is not kept waiting by a reader that does not read.
        outputs
            .into_iter()
            .try_for_each(|output| output.finish(Some(STOP_MARGIN)))
            .unwrap_or_default();
        return Err(interrupted);
    }
    // Delivering may take as long as the reader likes; a signal ends that.
    signals::restore()?;
    let delivered: Result<()> = outputs
        .into_iter()
        .try_for_each(|output| output.finish(None));
    if !matches!(ended, Ok(Ended::Exited(0))) {
        memory
            .verdict()
            .iter()
            .for_each(|verdict| report::print_diagnostic(PROGRAM, OsStr::new(verdict)));
    }
    let ended = ended.and_then(|ended| {
        if is_end_of_all(ended, &paths) {
            bail!(machine_exit::cause(&paths, started))
        } else {
            Ok(ended)
        }
    });
    let ended = ended.with_context(|| format!("machine {name} gave no result of the command"))?;
    if let Some(Ok(error)) = input.map(|input| input.try_recv()) {
        return Err(error).context("can't read stdin");
    }
    delivered.map(|()| ended)
}

// Who kills all of a machine may reach the command before the agent, which then tells of its end. Once the agent has
// had the time for another word, the machine's systemd-nspawn is dead as well, if it was to be.
fn is_end_of_all(ended: Ended, paths: &MachinePaths) -> bool {
    if ended != Ended::Signaled(Signal::SIGKILL as u8) {
        return false;
    }
    let _ = client::ping(paths, HELLO_LIMIT);
    processes::supervisor(paths).is_none()
}

struct Call {
    paths: MachinePaths,
    started: Moment,
    agent: UnixStream,
    /// What the agent has said that is no whole message yet.
    said: Vec<u8>,
    resized: SignalFd,
    raw: Option<Raw>,
    /// Until when the agent must have said something.
    deadline: Instant,
    /// Whether its silence is a failure then; else it is asked.
    is_last_chance: bool,
    grace: Duration,
    interrupted: Option<Error>,
    /// From when on another signal ends this program, and so the command, at once.
    released: Option<Instant>,
}

impl Call {
    fn new(name: &MachineName, agent: UnixStream, grace: Duration) -> Result<Self> {
        Ok(Self {
            paths: State::paths_of(name),
            started: Moment::now(),
            agent,
            said: Vec::new(),
            resized: resize_events()?,
            raw: None,
            deadline: Instant::now() + START_LIMIT,
            is_last_chance: true,
            grace,
            interrupted: None,
            released: None,
        })
    }

    fn wait(&mut self) -> Result<Ended> {
        match self.answer()? {
            (protocol::STARTED, _) => {}
            (protocol::REFUSED, body) => return refused(&self.paths, &body),
            (tag, _) => bail!("its agent answered with the unknown message {tag}"),
        }
        loop {
            if self.interrupted.is_none() {
                (self.deadline, self.is_last_chance) = (Instant::now() + PING_INTERVAL, false);
            }
            match self.answer()? {
                (protocol::PING, _) => {}
                (protocol::EXITED, body) => return Ok(Ended::Exited(one_byte(&body)?)),
                (protocol::SIGNALED, body) => return Ok(Ended::Signaled(one_byte(&body)?)),
                (tag, _) => bail!("its agent answered with the unknown message {tag}"),
            }
        }
    }

    // The agent's next message.
    fn answer(&mut self) -> Result<(u8, Vec<u8>)> {
        loop {
            if let Some(message) = protocol::take_frame(&mut self.said, protocol::MAX_ANSWER)? {
                return Ok(message);
            }
            if self.has_answer()? {
                self.listen()?;
            } else if Instant::now() >= self.deadline {
                self.ask_for_life()?;
            }
            // One that talks all the time must come to an end as well.
            if self.interrupted.is_some() && Instant::now() >= self.deadline {
                bail!("its agent does not end the command");
            }
            while let Ok(Some(_)) = self.resized.read_signal() {
                self.tell(protocol::RESIZE, &protocol::encode_size(terminal::size()));
            }
            self.heed_signals()?;
        }
    }

    fn heed_signals(&mut self) -> Result<()> {
        if let Err(interrupted) = signals::check() {
            signals::ignore();
            let now = Instant::now();
            self.interrupted = Some(interrupted);
            self.raw = None;
            (self.deadline, self.is_last_chance) = (now + self.grace + STOP_MARGIN, true);
            self.released = Some(now + SIGNAL_PAUSE);
            self.tell(protocol::STOP, &protocol::encode_seconds(self.grace));
        }
        if self
            .released
            .is_some_and(|released| Instant::now() >= released)
        {
            self.released = None;
            signals::restore()?;
        }
        Ok(())
    }

    // Waits for anything, until the deadline; whether it is the agent.
    fn has_answer(&self) -> Result<bool> {
        let next = self
            .released
            .map_or(self.deadline, |released| released.min(self.deadline));
        let left = next.saturating_duration_since(Instant::now());
        let mut fds = vec![PollFd::new(self.agent.as_fd(), PollFlags::POLLIN)];
        fds.push(PollFd::new(self.resized.as_fd(), PollFlags::POLLIN));
        fds.extend(signals::descriptor().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(
            &mut fds,
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        ) {
            Ok(_) | Err(Errno::EINTR) => Ok(fds[0].any() == Some(true)),
            Err(error) => Err(error).context("can't wait for the command"),
        }
    }

    // Reads with read(2), which drops descriptors that a hostile agent sends.
    fn listen(&mut self) -> Result<()> {
        let mut buffer = [0; protocol::MAX_ANSWER];
        match self.agent.read(&mut buffer) {
            Ok(count) if count > 0 => self.said.extend(&buffer[..count]),
            _ => bail!(machine_exit::cause(&self.paths, self.started)),
        }
        Ok(())
    }

    fn ask_for_life(&mut self) -> Result<()> {
        if self.is_last_chance && (self.interrupted.is_some() || !processes::is_frozen(&self.paths))
        {
            bail!("its agent does not answer");
        }
        (self.deadline, self.is_last_chance) = (Instant::now() + LIFE_LIMIT, true);
        self.tell(protocol::PING, &[]);
        Ok(())
    }

    // An agent that has gone has its last message still to be read.
    fn tell(&mut self, tag: u8, body: &[u8]) {
        let _ = self.agent.write_all(&protocol::frame(tag, body));
    }
}

fn is_hang_up(error: &Error) -> bool {
    let kind = error.downcast_ref().map(io::Error::kind);
    let kind = kind.or_else(|| {
        error
            .downcast_ref()
            .map(|errno: &Errno| io::Error::from(*errno).kind())
    });
    kind.is_some_and(|kind| [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&kind))
}

fn one_byte(body: &[u8]) -> Result<u8> {
    match body {
        [byte] => Ok(*byte),
        _ => bail!("its agent gave a result of {} bytes", body.len()),
    }
}

fn refused(paths: &MachinePaths, body: &[u8]) -> Result<Ended> {
    let (code, why) = body.split_first().context("its agent gave no reason")?;
    if Exit::from_refusal(*code) == Exit::Exhausted {
        return Err(task_limit::exhausted(paths, &text::printable(why)));
    }
    report::print_diagnostic(PROGRAM, OsStr::new(&text::printable(why)));
    Ok(Ended::Refused(Exit::from_refusal(*code)))
}

fn resize_events() -> Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGWINCH);
    signals.thread_block().context("can't block a signal")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("can't watch the terminal's size")
}
