//! Messages between the host and the agent while a command runs.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nspawn_common::agent::client;
use nspawn_common::agent::protocol;
use nspawn_common::agent::request::Request;
use nspawn_common::exit_code::Exit;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::processes;
use nspawn_common::report;
use nspawn_common::sys::clock::Moment;
use nspawn_common::sys::signals;
use nspawn_common::text;

use crate::cli::PROGRAM;
use crate::client::machine_exit;
use crate::client::oom;
use crate::client::task_limit;
use crate::client::terminal;
use crate::client::terminal::RawMode;

/// Time limit for the agent to start a command.
pub const START_LIMIT: Duration = Duration::from_secs(30);
/// Time without a message after which the host pings the agent of a running command.
const PING_INTERVAL: Duration = Duration::from_secs(60);
/// Time limit for the answer to a ping, unless the machine is frozen.
const PING_LIMIT: Duration = Duration::from_secs(60);
/// Period in which further signals are ignored after the first one. The end of a process group or
/// of a session may send several.
const SIGNAL_PAUSE: Duration = Duration::from_millis(300);
/// Time that the end of a stopped command may take in addition to the grace period.
pub const STOP_MARGIN: Duration = Duration::from_secs(5);

/// End of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command exited with this status.
    Exited(u8),
    /// The signal of this number ended the command.
    Signaled(u8),
    /// The command did not start.
    Refused(Exit),
}

/// Connection to the agent, for one command.
pub struct Connection {
    paths: MachinePaths,
    start: Moment,
    oom_watch: oom::Watch,
    agent: UnixStream,
    /// Bytes from the agent that are not yet a whole message.
    unread: Vec<u8>,
    resize_events: SignalFd,
    raw_mode: Option<RawMode>,
    /// Time by which the agent must have sent a message.
    deadline: Instant,
    /// True if it is a failure to miss the deadline. Otherwise the host then pings the agent.
    deadline_is_final: bool,
    grace_period: Duration,
    /// Error of a signal that interrupted this program.
    interruption: Option<Error>,
    /// Time after which another signal ends this program, and with it the command, at once.
    signals_restored_at: Option<Instant>,
}

impl Connection {
    /// Prepares to run a command over a new connection to the agent. `oom_watch` has begun before
    /// the agent got the connection.
    pub fn new(
        paths: MachinePaths,
        agent: UnixStream,
        grace_period: Duration,
        oom_watch: oom::Watch,
    ) -> Result<Self> {
        Ok(Self {
            oom_watch,
            paths,
            start: Moment::now(),
            agent,
            unread: Vec::new(),
            resize_events: watch_resizes()?,
            raw_mode: None,
            deadline: Instant::now() + START_LIMIT,
            deadline_is_final: true,
            grace_period,
            interruption: None,
            signals_restored_at: None,
        })
    }

    /// Sends the request, with stdin, stdout and stderr of the command.
    pub fn send_request(&mut self, request: &Request, streams: [OwnedFd; 3]) -> Result<()> {
        client::send_request(&mut self.agent, request, streams)
    }

    /// Switches the caller's terminal to raw mode, until the command ends.
    pub fn enter_raw_mode(&mut self) -> Result<()> {
        self.raw_mode = RawMode::enter()?;
        Ok(())
    }

    /// Restores the mode of the caller's terminal.
    pub fn leave_raw_mode(&mut self) {
        self.raw_mode = None;
    }

    /// Returns the error of the signal that interrupted this program, if there was one.
    pub fn take_interruption(&mut self) -> Option<Error> {
        self.interruption.take()
    }

    /// Returns the kills of the OOM killer since the connection began, if there were any.
    pub fn oom_report(&self) -> Option<oom::Report> {
        self.oom_watch.report()
    }

    /// Returns the error that the agent has ended, or its session for the command.
    ///
    /// A machine without memory ends with any of its processes. Few of them can be killed if files
    /// hold the memory.
    pub fn exit_error(&self) -> Error {
        match self.oom_report() {
            Some(report) => report.into_error(),
            None => anyhow!(machine_exit::cause(&self.paths, self.start)),
        }
    }

    /// Waits until the command has ended.
    ///
    /// A signal that asks this program to end stops the command first.
    pub fn wait_for_outcome(&mut self) -> Result<Outcome> {
        match self.next_message()? {
            (protocol::STARTED, _) => {}
            (protocol::REFUSED, body) => return self.refused(&body),
            (tag, _) => bail!("its agent sent the unknown message {tag}"),
        }
        loop {
            if self.interruption.is_none() {
                self.set_deadline(PING_INTERVAL, false);
            }
            match self.next_message()? {
                (protocol::PING, _) => {}
                (protocol::EXITED, body) => return Ok(Outcome::Exited(single_byte(&body)?)),
                (protocol::SIGNALED, body) => return Ok(Outcome::Signaled(single_byte(&body)?)),
                (tag, _) => bail!("its agent sent the unknown message {tag}"),
            }
        }
    }

    fn refused(&self, body: &[u8]) -> Result<Outcome> {
        let (code, reason) = body
            .split_first()
            .context("its agent refused the command without a reason")?;
        let exit = Exit::from_refusal(*code);
        let reason = text::printable(reason);
        if exit == Exit::Exhausted {
            return Err(task_limit::exhausted(&self.paths, &reason));
        }
        report::print_diagnostic(PROGRAM, OsStr::new(&reason));
        Ok(Outcome::Refused(exit))
    }

    fn next_message(&mut self) -> Result<(u8, Vec<u8>)> {
        loop {
            if let Some(message) = protocol::take_frame(&mut self.unread, protocol::MAX_ANSWER)? {
                return Ok(message);
            }
            if self.wait_for_agent()? {
                self.read_more()?;
            } else if Instant::now() >= self.deadline {
                self.check_liveness()?;
            }
            // The time limit also applies to an agent that sends messages without end.
            if self.interruption.is_some() && Instant::now() >= self.deadline {
                bail!("its agent does not end the command");
            }
            while let Ok(Some(_)) = self.resize_events.read_signal() {
                self.send(protocol::RESIZE, &protocol::encode_size(terminal::size()));
            }
            self.handle_signals()?;
        }
    }

    // Waits for any event until the deadline, and returns whether the agent has sent something.
    fn wait_for_agent(&self) -> Result<bool> {
        let next = match self.signals_restored_at {
            Some(time) => time.min(self.deadline),
            None => self.deadline,
        };
        let left = next.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![
            PollFd::new(self.agent.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.resize_events.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(signals::descriptor().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(fds[0].any() == Some(true)),
            Err(error) => Err(error).context("can't wait for the command"),
        }
    }

    // Uses read(2), which discards descriptors that a hostile agent sends.
    fn read_more(&mut self) -> Result<()> {
        let mut buffer = [0; protocol::MAX_ANSWER];
        match self.agent.read(&mut buffer) {
            Ok(count) if count > 0 => self.unread.extend(&buffer[..count]),
            _ => return Err(self.exit_error()),
        }
        Ok(())
    }

    // Pings the agent, or fails if the deadline was final. A frozen machine can't answer, so it
    // gets another ping, unless this program is to end.
    fn check_liveness(&mut self) -> Result<()> {
        if self.deadline_is_final
            && (self.interruption.is_some() || !processes::is_frozen(&self.paths))
        {
            bail!("its agent does not answer");
        }
        self.set_deadline(PING_LIMIT, true);
        self.send(protocol::PING, &[]);
        Ok(())
    }

    fn handle_signals(&mut self) -> Result<()> {
        if let Err(interruption) = signals::check() {
            signals::ignore();
            self.stop_command(interruption);
        }
        if self
            .signals_restored_at
            .is_some_and(|time| Instant::now() >= time)
        {
            self.signals_restored_at = None;
            signals::restore()?;
        }
        Ok(())
    }

    fn stop_command(&mut self, interruption: Error) {
        self.interruption = Some(interruption);
        self.raw_mode = None;
        self.set_deadline(self.grace_period + STOP_MARGIN, true);
        self.signals_restored_at = Some(Instant::now() + SIGNAL_PAUSE);
        self.send(protocol::STOP, &protocol::encode_seconds(self.grace_period));
    }

    fn set_deadline(&mut self, limit: Duration, is_final: bool) {
        self.deadline = Instant::now() + limit;
        self.deadline_is_final = is_final;
    }

    // Ignores errors: the last message of an agent that has ended is still to be read.
    fn send(&mut self, tag: u8, body: &[u8]) {
        let _ = self.agent.write_all(&protocol::frame(tag, body));
    }
}

fn single_byte(body: &[u8]) -> Result<u8> {
    match body {
        [byte] => Ok(*byte),
        _ => bail!("its agent sent an invalid result of {} bytes", body.len()),
    }
}

fn watch_resizes() -> Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGWINCH);
    signals.thread_block().context("can't block a signal")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("can't watch the terminal's size")
}
