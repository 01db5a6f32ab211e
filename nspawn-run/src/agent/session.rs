//! One connection of the host: a command, from its request to its end.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{ForkResult, Pid, pipe2};
use nspawn_common::agent::protocol;
use nspawn_common::agent::protocol::{Program, Request};
use nspawn_common::command;
use nspawn_common::sys::socket;

use crate::agent::command_cgroup::Cgroup;
use crate::agent::descendants;
use crate::agent::exec;
use crate::agent::exec::{Plan, Refusal, Stdio};
use crate::agent::passwd;
use crate::agent::passwd::User;
use crate::agent::pty::{Console, Source};
use crate::agent::reaper;
use crate::agent::reaper::End;

/// Answers one request of the host.
pub fn serve(mut stream: UnixStream, cgroup: &Cgroup) -> Result<()> {
    let (tag, length, fds) = receive_header(&stream)?;
    match tag {
        protocol::HELLO => stream
            .write_all(&protocol::frame(protocol::HELLO, &[]))
            .context("can't answer"),
        protocol::RUN => {
            let body = protocol::read_body(&mut stream, length, protocol::MAX_REQUEST)
                .context("can't read the request")?;
            let Ok(pipes) = <[OwnedFd; 3]>::try_from(fds) else {
                bail!("a request came without its three pipes")
            };
            run(stream, cgroup, Request::decode(&body)?, pipes)
        }
        // A host with a later version of these programs.
        _ => refuse(
            &mut stream,
            &Refusal {
                exit: nspawn_common::exit_code::Exit::RunFailure,
                why: "the machine was made by another version of nspawn-prepare; make it anew"
                    .into(),
            },
        ),
    }
}

fn run(
    mut stream: UnixStream,
    cgroup: &Cgroup,
    request: Request,
    pipes: [OwnedFd; 3],
) -> Result<()> {
    descendants::adopt_orphans()?;
    let kill_remaining = request.kill_remaining;
    let mut command = match Command::start(cgroup, request, pipes) {
        Ok(command) => command,
        Err(refusal) => return refuse(&mut stream, &refusal),
    };
    stream
        .write_all(&protocol::frame(protocol::STARTED, &[]))
        .context("can't answer")?;
    let end = command.supervise(cgroup, &mut stream)?;
    if kill_remaining {
        cgroup.kill_all()?;
    }
    let answer = match end {
        End::Exited(code) => protocol::frame(protocol::EXITED, &[code]),
        End::Signaled(number) => protocol::frame(protocol::SIGNALED, &[number]),
    };
    stream.write_all(&answer).context("can't answer")
}

/// Answers that the command does not run, and why.
pub fn refuse(stream: &mut UnixStream, refusal: &Refusal) -> Result<()> {
    let why: Vec<u8> = refusal.why.bytes().take(protocol::MAX_ANSWER - 1).collect();
    stream
        .write_all(&protocol::frame(
            protocol::REFUSED,
            &[&[refusal.exit.code()][..], &why].concat(),
        ))
        .context("can't answer")
}

/// What has happened.
struct Events {
    host: bool,
    end: bool,
    console: Vec<(Source, PollFlags)>,
}

struct Command {
    pid: Pid,
    console: Option<Console>,
    script: Option<Script>,
}

impl Command {
    fn start(cgroup: &Cgroup, request: Request, pipes: [OwnedFd; 3]) -> Result<Self, Refusal> {
        let user = passwd::find(request.user.as_deref().unwrap_or(OsStr::new("root")))?;
        let script = match &request.program {
            Program::Script(text, _) => Some(Script::write(text, &user)?),
            _ => None,
        };
        let (console, stdio) = match request.terminal {
            None => (None, Stdio::Pipes(pipes)),
            Some(size) => {
                let [input, output, _] = pipes;
                let console = Console::open(size, input, output)?;
                let near_side = console.near_side()?;
                (Some(console), Stdio::Terminal(near_side))
            }
        };
        let (program, arguments) =
            words(&request.program, &user, script.as_ref(), console.is_some());
        cgroup.make()?;
        let plan = Plan {
            cgroup,
            stdio,
            user: &user,
            directory: request.directory,
            environment: request.environment,
            program,
            arguments,
        };
        Ok(Self {
            pid: spawn(plan)?,
            console,
            script,
        })
    }

    /// Waits for the command's end; a host that goes away first is an error.
    fn supervise(&mut self, cgroup: &Cgroup, stream: &mut UnixStream) -> Result<End> {
        let ends = reaper::watch()?;
        let mut end = None;
        loop {
            if let Some(end) =
                end.filter(|_| self.console.as_ref().is_none_or(Console::is_delivered))
            {
                return Ok(end);
            }
            let events = self.wait(&ends, stream)?;
            if let Some(grace) = if events.host {
                self.obey(stream)?
            } else {
                None
            } {
                // The end of its terminal is a SIGHUP, which a shell heeds that a person works in.
                self.console = None;
                cgroup.stop(grace, stream.as_fd())?;
                return end.map_or_else(
                    || reaper::wait_for(self.pid).context("can't wait for the command"),
                    Ok,
                );
            }
            for (source, happened) in events.console {
                // A terminal that nobody looks at any more is hung up.
                self.console = self
                    .console
                    .take()
                    .and_then(|mut it| it.serve(source, happened).then_some(it));
            }
            if events.end {
                while let Ok(Some(_)) = ends.read_signal() {}
                end = end.or(self.reap());
            }
        }
    }

    fn wait(&self, ends: &SignalFd, stream: &UnixStream) -> Result<Events> {
        let interests = self
            .console
            .as_ref()
            .map(Console::interests)
            .unwrap_or_default();
        let mut fds = vec![PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            interests
                .iter()
                .map(|(_, fd, events)| PollFd::new(*fd, *events)),
        );
        fds.push(PollFd::new(ends.as_fd(), PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("can't wait for the command"),
        }
        let seen = |place: usize| {
            fds.get(place)
                .and_then(PollFd::revents)
                .unwrap_or(PollFlags::empty())
        };
        let console = interests
            .iter()
            .enumerate()
            .map(|(place, (source, ..))| (*source, seen(1 + place)));
        Ok(Events {
            host: !seen(0).is_empty(),
            end: !seen(1 + interests.len()).is_empty(),
            console: console.filter(|(_, events)| !events.is_empty()).collect(),
        })
    }

    // Waits for the children that have ended, the orphans that were adopted too; the command's end.
    fn reap(&mut self) -> Option<End> {
        let mut end = None;
        while let Some((pid, how)) = reaper::next_ended() {
            if pid == self.pid {
                end = Some(how);
                self.console.iter_mut().for_each(Console::take_rest);
                self.script = None;
            }
        }
        end
    }

    // What the host asks for; a time if that is the command's end.
    fn obey(&mut self, stream: &mut UnixStream) -> Result<Option<Duration>> {
        match protocol::read_frame(stream, protocol::MAX_ANSWER) {
            Ok(Some((protocol::RESIZE, body))) => {
                if let (Some(console), Some(size)) = (&self.console, protocol::decode_size(&body)) {
                    console.resize(size);
                }
                Ok(None)
            }
            Ok(Some((protocol::PING, _))) => {
                stream
                    .write_all(&protocol::frame(protocol::PING, &[]))
                    .context("can't answer")?;
                Ok(None)
            }
            Ok(Some((protocol::STOP, body))) => {
                Ok(Some(protocol::decode_seconds(&body).unwrap_or_default()))
            }
            Ok(Some(_)) => Ok(None),
            Ok(None) | Err(_) => bail!("the host went away, so its command is ended"),
        }
    }
}

/// What to execute, and its arguments.
fn words(
    program: &Program,
    user: &User,
    script: Option<&Script>,
    on_terminal: bool,
) -> (OsString, Vec<OsString>) {
    match (program, script) {
        (Program::Command(words), _) => (words.first().cloned().unwrap_or_default(), words.clone()),
        (Program::Script(_, by), Some(script)) if !by.is_empty() => (
            by[0].clone(),
            by.iter()
                .cloned()
                .chain([script.path.clone().into()])
                .collect(),
        ),
        (_, Some(script)) if script.wants_bash && command::find_program("bash").is_none() => {
            ("sh".into(), vec!["sh".into(), script.path.clone().into()])
        }
        (_, Some(script)) => (script.path.clone().into(), vec![script.path.clone().into()]),
        // login(1): a dash before the name makes it a login shell.
        (_, None) if on_terminal => {
            let name = Path::new(&user.shell).file_name().unwrap_or(&user.shell);
            (
                user.shell.clone(),
                vec![[OsStr::new("-"), name].into_iter().collect()],
            )
        }
        (_, None) => (user.shell.clone(), vec![user.shell.clone()]),
    }
}

// Forks the command. A pipe that closes by itself when the command is executed tells its start.
fn spawn(plan: Plan) -> Result<Pid, Refusal> {
    let (told, tell) = pipe2(OFlag::O_CLOEXEC).context("can't make a pipe")?;
    let forked = plan.cgroup.fork_into();
    let pid = match forked.map_err(Refusal::of_fork)? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let Err(refusal) = exec::become_command(plan);
            let _ = File::from(tell)
                .write_all(&[&[refusal.exit.code()][..], refusal.why.as_bytes()].concat());
            exit(refusal.exit.code().into());
        }
    };
    drop(tell);
    drop(plan);
    let mut refused = Vec::new();
    File::from(told)
        .take(protocol::MAX_ANSWER as u64)
        .read_to_end(&mut refused)
        .context("can't tell whether the command started")?;
    let Some((code, why)) = refused.split_first() else {
        return Ok(pid);
    };
    reaper::wait_for(pid).context("can't wait for the command")?;
    Err(Refusal {
        exit: nspawn_common::exit_code::Exit::from_refusal(*code),
        why: String::from_utf8_lossy(why).into_owned(),
    })
}

/// A script of the host, in a file of the machine while it runs: so its stdin is its own.
struct Script {
    path: PathBuf,
    /// Whether it names bash as its interpreter. GitLab Runner's scripts do, and content themselves with a plain
    /// shell.
    wants_bash: bool,
}

impl Script {
    fn write(text: &[u8], user: &User) -> Result<Self> {
        let first_line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let wants_bash = first_line.starts_with(b"#!") && first_line.ends_with(b"bash");
        let script = Self {
            path: format!("/run/nspawn-script-{}", std::process::id()).into(),
            wants_bash,
        };
        // An earlier session of the same number left it when it was killed.
        let _ = fs::remove_file(&script.path);
        let written = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o700)
            .open(&script.path)
            .and_then(|mut file| file.write_all(text));
        written
            .and_then(|()| chown(&script.path, Some(user.uid), Some(user.gid)))
            .context("can't write the script into the machine")?;
        Ok(script)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

// Receives a header and the descriptors that come with it.
fn receive_header(stream: &UnixStream) -> Result<(u8, usize, Vec<OwnedFd>)> {
    let mut header = [0; protocol::HEADER];
    let (count, fds) = socket::receive(stream, &mut header).context("can't read the request")?;
    if count < protocol::HEADER {
        bail!("the host went away");
    }
    let (tag, length) = protocol::parse_header(header);
    Ok((tag, length, fds))
}
