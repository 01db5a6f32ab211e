//! A running command: its start, its supervision and its end.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::exit;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{ForkResult, Pid, pipe2};
use nspawn_common::agent::protocol;
use nspawn_common::agent::request::{Program, Request};
use nspawn_common::machine::passwd;

use crate::agent::command_cgroup::{CommandCgroup, HOST_IS_GONE};
use crate::agent::exec;
use crate::agent::exec::{ExecRequest, Refusal, Stdio};
use crate::agent::pty::{Pty, Source};
use crate::agent::reaper;
use crate::agent::reaper::ProcessEnd;
use crate::agent::reply;
use crate::agent::script::{Script, Words};
use crate::agent::user_manager;

/// Events that a session waits for.
struct Events {
    host_message: bool,
    ended_child: bool,
    pty: Vec<(Source, PollFlags)>,
}

/// Running command of a session.
pub struct RunningCommand {
    pid: Pid,
    pty: Option<Pty>,
    script: Option<Script>,
}

impl RunningCommand {
    /// Starts the command of a request, in its cgroup.
    pub fn start(
        cgroup: &CommandCgroup,
        request: Request,
        pipes: [OwnedFd; 3],
    ) -> Result<Self, Refusal> {
        let user = passwd::find(request.user.as_deref().unwrap_or(OsStr::new("root")))?;
        if request.user_manager {
            user_manager::start(&user)?;
        }
        let script = match &request.program {
            Program::Script(text, _) => Some(Script::write(text, &user)?),
            _ => None,
        };
        let (pty, stdio) = match request.terminal {
            None => (None, Stdio::Pipes(pipes)),
            Some(size) => {
                let [input, output, _] = pipes;
                let pty = Pty::open(size, input, output)?;
                let terminal = pty.terminal()?;
                (Some(pty), Stdio::Terminal(terminal))
            }
        };
        let words = Words::of_program(&request.program, &user, script.as_ref(), pty.is_some());
        cgroup.create()?;
        let exec_request = ExecRequest {
            cgroup,
            stdio,
            has_unreadable_stdin: request.has_unreadable_stdin,
            user: &user,
            directory: request.directory,
            environment: request.environment,
            words,
        };
        Ok(Self {
            pid: spawn(exec_request)?,
            pty,
            script,
        })
    }

    /// Waits until the command has ended and its terminal's output is delivered.
    ///
    /// Fails if the host closes the connection before that.
    pub fn supervise(
        &mut self,
        cgroup: &CommandCgroup,
        stream: &mut UnixStream,
    ) -> Result<ProcessEnd> {
        let child_events = reaper::watch()?;
        let mut end = None;
        loop {
            let is_delivered = self.pty.as_ref().is_none_or(Pty::is_delivered);
            if let Some(end) = end.filter(|_| is_delivered) {
                return Ok(end);
            }
            let events = self.wait(&child_events, stream)?;
            let grace_period = if events.host_message {
                self.handle_host_message(stream)?
            } else {
                None
            };
            if let Some(grace_period) = grace_period {
                return self.stop(end, cgroup, grace_period, stream);
            }
            for (source, flags) in events.pty {
                self.serve_pty(source, flags);
            }
            if events.ended_child {
                while let Ok(Some(_)) = child_events.read_signal() {}
                end = end.or(self.reap());
            }
        }
    }

    // Ends all processes of the command. `end` is that of the command itself, if it has ended.
    fn stop(
        &mut self,
        end: Option<ProcessEnd>,
        cgroup: &CommandCgroup,
        grace_period: Duration,
        stream: &UnixStream,
    ) -> Result<ProcessEnd> {
        // Closing the pty sends SIGHUP. An interactive shell ignores SIGTERM, but not SIGHUP.
        self.pty = None;
        cgroup.stop(grace_period, stream.as_fd())?;
        match end {
            Some(end) => Ok(end),
            None => reaper::wait_for(self.pid).context("can't wait for the command"),
        }
    }

    // Closes the pty, which hangs up the terminal, if the host no longer reads its output.
    fn serve_pty(&mut self, source: Source, flags: PollFlags) {
        let is_open = self
            .pty
            .as_mut()
            .is_some_and(|pty| pty.serve(source, flags));
        if !is_open {
            self.pty = None;
        }
    }

    fn wait(&self, child_events: &SignalFd, stream: &UnixStream) -> Result<Events> {
        let interests = self.pty.as_ref().map(Pty::interests).unwrap_or_default();
        let mut fds = vec![
            PollFd::new(stream.as_fd(), PollFlags::POLLIN),
            PollFd::new(child_events.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(
            interests
                .iter()
                .map(|(_, fd, flags)| PollFd::new(*fd, *flags)),
        );
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("can't wait for the command"),
        }
        let flags: Vec<PollFlags> = fds
            .iter()
            .map(|fd| fd.revents().unwrap_or(PollFlags::empty()))
            .collect();
        let pty = interests
            .iter()
            .zip(&flags[2..])
            .map(|((source, ..), flags)| (*source, *flags))
            .filter(|(_, flags)| !flags.is_empty())
            .collect();
        Ok(Events {
            host_message: !flags[0].is_empty(),
            ended_child: !flags[1].is_empty(),
            pty,
        })
    }

    // Reaps all ended children, which include adopted orphans. Returns the end of the command if it
    // is among them.
    fn reap(&mut self) -> Option<ProcessEnd> {
        let mut command_end = None;
        while let Some((pid, end)) = reaper::next() {
            if pid == self.pid {
                command_end = Some(end);
                if let Some(pty) = &mut self.pty {
                    pty.read_rest();
                }
                self.script = None;
            }
        }
        command_end
    }

    // Handles a message of the host. Returns the grace period if the host asks to stop the command.
    fn handle_host_message(&mut self, stream: &mut UnixStream) -> Result<Option<Duration>> {
        match protocol::read_frame(stream, protocol::MAX_ANSWER) {
            Ok(Some((protocol::RESIZE, body))) => {
                if let (Some(pty), Some(size)) = (&self.pty, protocol::decode_size(&body)) {
                    pty.resize(size);
                }
                Ok(None)
            }
            Ok(Some((protocol::PING, _))) => {
                reply::send(stream, protocol::PING, &[])?;
                Ok(None)
            }
            Ok(Some((protocol::STOP, body))) => {
                Ok(Some(protocol::decode_seconds(&body).unwrap_or_default()))
            }
            Ok(Some(_)) => Ok(None),
            Ok(None) | Err(_) => bail!(HOST_IS_GONE),
        }
    }
}

// Starts the process of the command. The child writes the reason of a failure into a pipe, which is
// closed without a byte when the child executes the command.
fn spawn(request: ExecRequest) -> Result<Pid, Refusal> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).context("can't create a pipe")?;
    let pid = match request.cgroup.fork_into().map_err(Refusal::of_fork)? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let Err(refusal) = exec::become_command(request);
            let _ = File::from(writer).write_all(&refusal.encode());
            exit(refusal.exit.code().into());
        }
    };
    drop(writer);
    drop(request);
    let mut refusal = Vec::new();
    File::from(reader)
        .take(protocol::MAX_ANSWER as u64)
        .read_to_end(&mut refusal)
        .context("can't read whether the command started")?;
    let Some(refusal) = Refusal::decode(&refusal) else {
        return Ok(pid);
    };
    reaper::wait_for(pid).context("can't wait for the command")?;
    Err(refusal)
}
